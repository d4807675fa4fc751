"""Columns as small integers: which of the distinct values each entry is."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

NONE = -1
"""Stands where there is no value."""


def coded(column: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """int32 [n], the place of each entry among the distinct values (NONE for null), and these, as they first appear."""
    encoded = pc.dictionary_encode(column.to_arrow(compat_level=pl.CompatLevel.oldest()))
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    places = encoded.indices.fill_null(NONE).to_numpy(zero_copy_only=False)
    return places.astype(np.int32, copy=False), pl.Series(column.name, encoded.dictionary, dtype=column.dtype)


def renumbered(numbers: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [n], numbers from 0 to size - 1 counted anew without gaps, and int [n_distinct], what they were."""
    occurs = np.zeros(size, dtype=bool)
    occurs[numbers] = True
    return (np.cumsum(occurs, dtype=np.int32) - 1)[numbers], np.flatnonzero(occurs)


def changes(*columns: np.ndarray) -> np.ndarray:
    """bool [n]: where any of the columns differs from its predecessor; true for the first."""
    new = np.ones(len(columns[0]), dtype=bool)
    if len(new):
        np.not_equal(columns[0][1:], columns[0][:-1], out=new[1:])
        for column in columns[1:]:
            new[1:] |= column[1:] != column[:-1]
    return new
