"""Code embeddings begun from published vectors, with a report of which code got whose.

A code that has a vector begins as it is; another, where that is wanted, begins as its nearest parent that has one; the
rest are drawn at random with the mean and the spread of the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl

from epicrisis.structured.clinvec_codes import OTHER, ClinvecVocabulary, PlacedCode, parents_of, place_code
from epicrisis.structured.clinvec_resize import ResizeMethod, chosen_method, resize
from epicrisis.structured.clinvec_vectors import CodeVectors, read_clinvec, read_vectors

VOCABULARIES: tuple[str, ...] = get_args(ClinvecVocabulary)
Source = Literal["exact", "parent", "random"]
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True)
class InitialVectors:
    """How a vocabulary's embeddings begin.

    vectors: float32 [n_tokens, n_dims], where n_dims is the asked-for size or, with `projected`, the vectors' own.
    source: which of SOURCES each token's is, int8 [n_tokens]. report: vocabulary · exact · parent · random, counts
    that together are n_tokens. method: what resizing was done, None for none.
    """

    vectors: np.ndarray
    source: np.ndarray
    report: pl.DataFrame
    method: ResizeMethod | None

    @property
    def known(self) -> np.ndarray:
        """bool [n_tokens]: where a vector, its own or a parent's, was found."""
        return self.source != SOURCES.index("random")

    @property
    def projected(self) -> bool:
        """Whether a trained linear layer must bring the vectors to the size of the embeddings."""
        return self.method == "learned_projection"


def from_clinvec(
    tokens: Sequence[str],
    n_dims: int,
    folder: Path,
    *,
    vocabularies: tuple[str, ...] = VOCABULARIES,
    method: ResizeMethod = "auto",
    hierarchy: bool = True,
    seed: int = 0,
) -> InitialVectors:
    """Vectors for a vocabulary's tokens (codes and special ones) out of a folder of ClinVec files.

    Every vocabulary that has a file takes part; codes of one that has none begin at random. Raises InputError as
    `read_clinvec` and `chosen_method` do.
    """
    published = read_clinvec(folder, vocabularies)
    names = list(published)
    starts = dict(zip(names, np.cumsum([0, *(len(published[name].keys) for name in names)]).tolist(), strict=False))
    places = {
        name: {key: starts[name] + place for place, key in enumerate(vectors.keys)}
        for name, vectors in published.items()
    }
    found = [_find(place_code(token), places, vocabularies, hierarchy) for token in tokens]
    every = np.concatenate([published[name].vectors for name in names])
    return _initial(every, found, [*vocabularies, OTHER], n_dims, method, seed)


def from_file(
    tokens: Sequence[str], n_dims: int, path: Path, *, method: ResizeMethod = "auto", seed: int = 0
) -> InitialVectors:
    """Vectors out of one file whose codes are written as in the data; see `read_vectors`."""
    read: CodeVectors = read_vectors(path)
    places = {key: place for place, key in enumerate(read.keys)}
    found: list[tuple[str, Source, int]] = [
        (path.stem, "exact", places[token]) if token in places else (OTHER, "random", -1) for token in tokens
    ]
    return _initial(read.vectors, found, [path.stem, OTHER], n_dims, method, seed)


def report_text(report: pl.DataFrame) -> str:
    """One line: how many tokens of each vocabulary began from their own vector, a parent's, or at random."""
    parts = [
        f"{row['vocabulary']}: {row['exact']} exact, {row['parent']} from a parent, {row['random']} at random"
        for row in report.iter_rows(named=True)
    ]
    return f"code vectors of {int(report.select(pl.sum_horizontal(SOURCES).sum()).item())} tokens ({'; '.join(parts)})"


def _find(
    code: PlacedCode, places: dict[str, dict[str, int]], vocabularies: tuple[str, ...], hierarchy: bool
) -> tuple[str, Source, int]:
    """vocabulary, whose vector, and its place."""
    if code.key is None or code.vocabulary not in vocabularies:
        return OTHER, "random", -1
    known = places.get(code.vocabulary, {})
    if code.key in known:
        return code.vocabulary, "exact", known[code.key]
    above = parents_of(code.vocabulary, code.key) if hierarchy else []
    parent = next((key for key in above if key in known), None)
    if parent is None:
        return code.vocabulary, "random", -1
    return code.vocabulary, "parent", known[parent]


def _initial(
    every: np.ndarray,
    found: list[tuple[str, Source, int]],
    names: list[str],
    n_dims: int,
    asked: ResizeMethod,
    seed: int,
) -> InitialVectors:
    method = chosen_method(asked, every.shape[1], n_dims)
    fitting = resize(every, n_dims, method, seed)
    places = np.array([place for *_, place in found], dtype=np.int64)
    generator = np.random.default_rng(seed % 2**32)
    drawn = generator.normal(fitting.mean(axis=0), fitting.std(axis=0), (len(found), fitting.shape[1]))
    vectors = np.where((places >= 0)[:, None], fitting[places], drawn).astype(np.float32)
    source = np.array([SOURCES.index(source) for _, source, _ in found], dtype=np.int8)
    return InitialVectors(vectors, source, _report(found, names), method)


def _report(found: list[tuple[str, Source, int]], names: list[str]) -> pl.DataFrame:
    table = pl.DataFrame(
        {"vocabulary": [name for name, *_ in found], "source": [source for _, source, _ in found]},
        schema={"vocabulary": pl.String, "source": pl.String},
    )
    counts = table.group_by("vocabulary").agg((pl.col("source") == source).sum().alias(source) for source in SOURCES)
    listed = pl.DataFrame({"vocabulary": names}).join(counts, on="vocabulary", how="left", maintain_order="left")
    return listed.with_columns(pl.col(SOURCES).fill_null(0).cast(pl.Int64))
