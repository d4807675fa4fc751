"""What a saved arm of this room says of itself, and what it refuses to be loaded with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epicrisis.settings import Settings, refuse
from epicrisis.tracking.run_directory import replacing

FILE = "narrative.json"


def write_about(folder: Path, about: Mapping[str, Any], settings: Settings, decisive: Sequence[str]) -> None:
    """Write narrative.json: `about`, the model's name, and the decisive keys of the section `encoder`."""
    whole = {**about, "arm": settings.arm, "model_name": settings.model.model_name, **_choice(settings, decisive)}
    with replacing(folder / FILE) as part:
        part.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_about(folder: Path, settings: Settings, decisive: Sequence[str]) -> dict[str, Any]:
    """What `write_about` wrote. Raises InputError where there is none, or the settings ask for another model."""
    if not (folder / FILE).is_file():
        raise refuse(str(folder), "holds no fitted arm", "name the directory of a finished run")
    about = json.loads((folder / FILE).read_text(encoding="utf-8"))
    check_saved("arm", about.get("arm"), settings.arm)
    choice = _choice(settings, decisive)
    changed = [f"encoder.{key}" for key, value in choice["encoder"].items() if about["encoder"].get(key) != value]
    changed += ["model.max_length"] if about["max_length"] != choice["max_length"] else []
    if changed:
        what = "is not what this model was trained with"
        raise refuse(", ".join(changed), what, "use the config.yaml of its run")
    return about


def check_saved(where: str, saved: Any, now: Any) -> None:
    """Raise InputError where something is not what a saved arm goes with."""
    if saved != now:
        raise refuse(where, "is not what this model was trained with", "use the config.yaml of its run, on its base")


def _choice(settings: Settings, decisive: Sequence[str]) -> dict[str, Any]:
    encoder = settings.encoder.model_dump(mode="json")
    return {"encoder": {key: encoder[key] for key in decisive}, "max_length": settings.model.max_length}
