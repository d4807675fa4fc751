"""Narratives as sequences of pieces: of the few distinct texts that records are told with, laid end to end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Assembly:
    """Narratives before they are text or tokens: which piece follows which.

    A piece begins with a space that is followed by none, or follows a piece that ends in a line break, or is
    the first of its narrative; no piece ends in a space. These are the places where tokenizers cut too, so
    that tokens can be laid end to end as texts can.
    """

    texts: pa.LargeStringArray
    """The distinct pieces; none is null."""
    pieces: np.ndarray
    """int32 [n_pieces]: the pieces of all narratives, one narrative after the other."""
    bounds: np.ndarray
    """int64 [n_narratives + 1]: where each narrative begins in `pieces`, and where the last one ends."""

    def narratives(self) -> pa.LargeStringArray:
        """The text of each narrative. To take pieces from an array lays them end to end in its buffer."""
        taken = self.texts.take(pa.array(self.pieces))
        _, offsets, text = taken.buffers()
        ends = np.frombuffer(offsets, dtype=np.int64, count=len(taken) + 1)[self.bounds] if len(taken) else self.bounds
        return pa.LargeStringArray.from_buffers(len(self.bounds) - 1, pa.py_buffer(ends), text)

    def ends(self) -> np.ndarray:
        """bool [n_pieces]: the piece is the last of its narrative."""
        last = np.zeros(len(self.pieces), dtype=bool)
        last[self.bounds[1:][np.diff(self.bounds) > 0] - 1] = True
        return last
