"""Everything that trackers wrote, to be searched: names, bytes, records joined, rows of SQLite, what is packed."""

from __future__ import annotations

import re
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_BLOCK, _HEADER = 32_768, 7
_SPACE = re.compile(rb"\s+")
_PACKED = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]")


def searchable(*folders: Path) -> dict[Path, bytes]:
    """All that a file holds, by file; symbolic links are followed by none."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    whole = {file: b"\n".join([str(file).encode(), *_views(file)]) for file in files}
    return {file: content + b"\n" + _SPACE.sub(b" ", content) for file, content in whole.items()}  # YAML folds lines


def _views(file: Path) -> Iterator[bytes]:
    raw = file.read_bytes()
    yield raw
    if file.suffix == ".wandb":
        yield from _records(raw)
    if raw.startswith(b"SQLite format 3"):
        connection = sqlite3.connect(file)
        yield "\n".join(connection.iterdump()).encode()
        connection.close()
    for found in _PACKED.finditer(raw):
        if raw[: found.start()].endswith(b"IDAT"):  # a picture's pixels
            continue
        try:
            yield zlib.decompressobj(wbits=47).decompress(raw[found.start() :])
        except zlib.error:
            continue


def _records(raw: bytes) -> Iterator[bytes]:
    """Of a log in LevelDB's form, whose blocks may cut a record, the records whole."""
    place, record = _HEADER, b""
    while place + _HEADER <= len(raw):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", raw[place : place + _HEADER])
        part = raw[place + _HEADER : place + _HEADER + size]
        place += _HEADER + size
        record = part if kind in (1, 2) else record + part
        if kind in (1, 4):
            yield record


def forms_of(subject_id: int) -> list[bytes]:
    """A number as text, as eight bytes and as protocol buffers write it."""
    varint, rest = b"", subject_id
    while rest > 127:
        varint, rest = varint + bytes([rest & 127 | 128]), rest >> 7
    return [
        str(subject_id).encode(),
        struct.pack("<q", subject_id),
        struct.pack(">q", subject_id),
        varint + bytes([rest]),
    ]
