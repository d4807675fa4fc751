"""Vectors of a frozen encoder, computed once for each distinct text and kept in the run directory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from epicrisis.encoders.classifier import RecordEncoder
from epicrisis.encoders.windows import Reading, lay
from epicrisis.tracking.progress import bar
from epicrisis.tracking.run_directory import replacing

_SIZE = 16
_WRITE_EACH = 20_000
"""Texts that are embedded between two writings: what a run that is broken off loses at most."""


class Embedded:
    """Vectors by a text's fingerprint, in one safetensors file.

    file: named by its maker after all that decides a vector but the text. width: of the vectors.
    """

    def __init__(self, file: Path, width: int):
        self._file = file
        self._keys: dict[bytes, int] = {}
        self._vectors = np.zeros((0, width), dtype=np.float32)
        if file.is_file():
            kept = load_file(file)
            self._keys = {key.tobytes(): place for place, key in enumerate(kept["keys"])}
            self._vectors = kept["vectors"]

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, keys: Sequence[bytes], embed: Callable[[list[int]], np.ndarray], *, write: bool) -> np.ndarray:
        """float32 [n, width] in the order of the keys; `embed` is asked for the places of those that are not known."""
        first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in self._keys}
        missing = sorted(first.values())
        with bar("embed", len(missing)) as progress:
            for start in range(0, len(missing), _WRITE_EACH):
                some = missing[start : start + _WRITE_EACH]
                self._add([keys[place] for place in some], embed(some))
                if write:
                    self._write()
                progress.advance(len(some))
        return self._vectors[[self._keys[key] for key in keys]]

    def _add(self, keys: list[bytes], vectors: np.ndarray) -> None:
        self._keys |= {key: len(self._keys) + place for place, key in enumerate(keys)}
        self._vectors = np.concatenate([self._vectors, vectors.astype(np.float32)])

    def _write(self) -> None:
        keys = np.frombuffer(b"".join(self._keys), dtype=np.uint8).reshape(-1, _SIZE)
        with replacing(self._file) as part:
            save_file({"keys": keys, "vectors": self._vectors}, part)


def ids_fingerprint(ids: Sequence[int]) -> bytes:
    """What a text is known by: a hash of its token ids."""
    return hashlib.blake2b(np.asarray(ids, dtype=np.uint32).tobytes(), digest_size=_SIZE).digest()


def embed_narratives(
    module: RecordEncoder, narratives: Sequence[Sequence[int]], reading: Reading, at_once: int, accelerator: Accelerator
) -> np.ndarray:
    """float32 [n, hidden]: the vector of each narrative's token ids, of like lengths `at_once` windows together."""
    windows = [reading.cut(ids) for ids in narratives]
    order = sorted(range(len(windows)), key=lambda place: -sum(map(len, windows[place])))
    found: list[np.ndarray] = []
    start = 0
    with torch.inference_mode():
        while start < len(order):
            stop = start + max(1, at_once // len(windows[order[start]]))
            batch = lay([windows[place] for place in order[start:stop]], reading.frame.pad_id)
            found.append(module(batch.to(accelerator.device)).float().cpu().numpy())
            start = stop
    joined = np.concatenate(found)
    return joined[np.argsort(order)]


def phrase_ids(tokenizer: PreTrainedTokenizerBase, phrases: Sequence[str], reading: Reading) -> list[list[int]]:
    """Token ids of phrases, each as a narrative of its own."""
    ids = tokenizer(list(phrases), add_special_tokens=False)["input_ids"] if len(phrases) else []
    return [[0] * reading.frame.n_opening + one[: reading.room] for one in ids]
