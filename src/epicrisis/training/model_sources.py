"""Where models come from: a hub's name, a folder, or the cache of those that are made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

from epicrisis.settings import refuse
from epicrisis.settings.schema import ModelSettings


def cache_directory(model: ModelSettings) -> Path:
    """Where embedded models are kept between runs."""
    default = os.environ.get("EPICRISIS_CACHE", Path.home() / ".cache" / "epicrisis")
    return Path(model.cache_dir or default)


def hub_name_or_folder(model_name: str) -> str:
    """The name as the hub or the disk knows it; InputError for a path where no folder is."""
    looks_local = model_name.startswith((".", "/", "~")) or model_name.count("/") != 1
    path = Path(model_name).expanduser()
    if looks_local and not path.is_dir():
        raise refuse("model.model_name", f"{model_name} is no folder", "give a hub name or a model folder")
    return str(path) if path.is_dir() else model_name
