"""Finished-stage stamps: a stage is done only for the very inputs and settings that it ran with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epicrisis import __version__
from epicrisis.tracking.run_directory import plain, replacing

_BLOCK = 1 << 20


def stage_done(folder: Path, name: str, inputs: Mapping[str, Any]) -> bool:
    """True if the stage finished with these very inputs and what it wrote is still there, unchanged in size.

    inputs: settings (any nesting of plain values) and files or folders as `Path`, which count by their
    content. A changed setting, file or package version makes the stage undone, and so does an unreadable
    stamp.
    """
    stamp = _read(folder, name)
    if stamp is None or stamp["hash"] != hash_of(inputs):
        return False
    return all(_size(folder / path) == size for path, size in stamp["outputs"].items())


def mark_done(folder: Path, name: str, inputs: Mapping[str, Any], outputs: Sequence[Path] = ()) -> None:
    """Stamp a stage as finished: `stamps/<name>.json` in `folder`, with the hash of its inputs and settings.

    outputs: files or folders inside `folder` that the stage wrote; a later loss of one makes the stage
    undone.
    """
    content = {
        "stage": name,
        "hash": hash_of(inputs),
        "parts": {key: hash_of({key: value}) for key, value in inputs.items()},
        "outputs": {str(path.relative_to(folder)): _size(path) for path in outputs},
        "version": __version__,
    }
    with replacing(_stamp(folder, name)) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def changed_inputs(folder: Path, name: str, inputs: Mapping[str, Any]) -> list[str]:
    """The keys of `inputs` that differ from the stamp, to say why a stage runs again."""
    parts = (_read(folder, name) or {"parts": {}})["parts"]
    unchanged = {key for key, value in inputs.items() if parts.get(key) == hash_of({key: value})}
    return sorted({*parts, *inputs} - unchanged)


def hash_of(inputs: Mapping[str, Any]) -> str:
    """A hash of settings and of the content of every `Path` among them; the order of keys has no say."""
    content = json.dumps([__version__, _fingerprint(inputs)], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _fingerprint(value: Any) -> Any:
    if isinstance(value, Path):
        return {"content": _content_hash(value)}
    if isinstance(value, Mapping):
        return {str(key): _fingerprint(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fingerprint(item) for item in value]
    return plain(value)


def _content_hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    if not path.exists():
        return "absent"
    for file in _files(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with open(file, "rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _size(path: Path) -> int:
    if not path.exists():
        return -1
    return sum(file.stat().st_size for file in _files(path))


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    """The stamp; None where there is none, or one that makes no sense."""
    try:
        stamp = json.loads(_stamp(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(stamp, dict) and all(isinstance(stamp.get(key), dict) for key in ("parts", "outputs"))
    return stamp if whole and "hash" in stamp else None


def _stamp(folder: Path, name: str) -> Path:
    return folder / "stamps" / f"{name}.json"
