"""Keys of services: from the environment, else from `env/.env`; never printed, logged or written by anything here."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dotenv.parser import parse_stream

from epicrisis.settings.problems import InputError, Problem, refuse

KEYS_FILE = Path("env") / ".env"
NAMES = ("WANDB_API_KEY", "WANDB_PROJECT_NAME", "WANDB_ENTITY", "HF_DOWNLOAD_TOKEN", "HF_UPLOAD_TOKEN", "HF_USERNAME")
SECRETS = (
    *("WANDB_API_KEY", "HF_DOWNLOAD_TOKEN", "HF_UPLOAD_TOKEN"),
    *("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
)
"""What may be shown nowhere, whether it is read here or by a library; the other keys are names."""

_HANDED_ON = {"WANDB_API_KEY": "WANDB_API_KEY", "WANDB_ENTITY": "WANDB_ENTITY", "HF_DOWNLOAD_TOKEN": "HF_TOKEN"}
"""What wandb and huggingface_hub look up by themselves, and the name under which they do."""


def key(name: str) -> str | None:
    """The key of this name; None where it is not set, or empty.

    A name that the environment has, even empty, is not looked up in the file. Raises InputError for a file that
    cannot be read.
    """
    if name in os.environ:
        return os.environ[name] or None
    return _of_file().get(name) or None


def hand_on_keys() -> None:
    """Put into the environment what libraries read there, without changing anything that is set.

    Of the download token under the name HF_TOKEN. What uploads is never handed on. Raises InputError for a file that
    cannot be read.
    """
    for ours, theirs in _HANDED_ON.items():
        value = key(ours)
        if value is not None:
            os.environ.setdefault(theirs, value)


def without_keys(text: str) -> str:
    """The text with `***` for every secret that is set and for who logs in in an address.

    For messages of libraries, which may hold one.
    """
    try:
        kept = _of_file()
    except InputError:  # it could be read when the command began; what it held was handed on then
        kept = {}
    for name in SECRETS:
        secret = os.environ.get(name) or kept.get(name)
        if secret:
            text = text.replace(secret, "***")
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def keys_file() -> Path | None:
    """`env/.env` below the current directory, else below the checkout that this package runs from."""
    checkout = Path(__file__).resolve().parents[3]
    places = [Path.cwd(), *([checkout] if (checkout / "pyproject.toml").is_file() else [])]
    return next((place / KEYS_FILE for place in places if (place / KEYS_FILE).exists()), None)


def _of_file() -> dict[str, str]:
    """Names and values of the file; other names than NAMES are left alone. No message quotes a line of it."""
    path: Path | None = KEYS_FILE
    try:
        path = keys_file()
        if path is None:
            return {}
        with path.open(encoding="utf-8-sig") as file:
            lines = list(parse_stream(file))
    except UnicodeDecodeError:
        raise refuse(str(path), "is no UTF-8 text", "write it anew, as env/.env.example shows") from None
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise refuse(str(path), f"cannot be read ({why})", "mend its permissions, or remove it") from None
    bad = [line.original.line for line in lines if line.error or (line.key is not None and line.value is None)]
    if bad:
        raise InputError([Problem(str(path), f"line {number} is no NAME=value", "mend or remove it") for number in bad])
    return {line.key: line.value for line in lines if line.key in NAMES and line.value}
