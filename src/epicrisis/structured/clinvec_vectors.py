"""Tables of code vectors in: ClinVec as it is published, or any file of codes and numbers.

ClinVec (Johnson et al. 2024, Unified clinical vocabulary embeddings for advancing precision medicine, medRxiv
2024.12.03.24318322) comes as one `ClinVec_<vocabulary>.csv` per vocabulary, whose rows are named by node_index, and
`ClinGraph_nodes.csv`, tab-separated, which says of each node_index its node_id, such as `E11.65:icd10cm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from epicrisis.settings import refuse
from epicrisis.structured.clinvec_codes import normal_key

NODES = "ClinGraph_nodes.csv"
_SUFFIXES = (".csv", ".parquet", ".npy")
_CODE_COLUMNS = ("code", "node_id", "node_index")
_UNREADABLE = (pl.exceptions.PolarsError, OSError, ValueError)


@dataclass(frozen=True)
class CodeVectors:
    """keys: distinct codes; vectors: float32 [n_codes, n_dims], finite."""

    keys: list[str]
    vectors: np.ndarray


def read_clinvec(folder: Path, vocabularies: tuple[str, ...]) -> dict[str, CodeVectors]:
    """The vectors of those of the vocabularies that have a file in the folder, by vocabulary; keys are normal.

    Raises InputError where there is none, or one cannot be read, or they differ in their dimensions.
    """
    if not folder.is_dir():
        raise refuse("clinvec.path", f"{folder} is no folder", "name the folder of the ClinVec_<vocabulary> files")
    files = {name: _file_of(folder, name) for name in vocabularies}
    found = {name: path for name, path in files.items() if path is not None}
    if not found:
        what = f"{folder} holds none of {', '.join(f'ClinVec_{name}.csv' for name in vocabularies)}"
        raise refuse("clinvec.path", what, "download them from the Harvard Dataverse, doi:10.7910/DVN/Z6H1A8")
    read = {name: _in_keys(read_vectors(path), name, folder) for name, path in found.items()}
    sizes = {name: vectors.vectors.shape[1] for name, vectors in read.items()}
    if len(set(sizes.values())) > 1:
        what = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise refuse("clinvec.path", f"vectors of unequal dimensions: {what}", "take all files from one release")
    return read


def read_vectors(path: Path) -> CodeVectors:
    """A CSV or Parquet file whose first column names codes and whose others are numbers, or a .npy with its codes.

    A CSV header may leave the first column out, as R and ClinVec do. The codes of `x.npy` are the lines of `x.txt`.
    Raises InputError for a file that cannot be read, holds no finite numbers, or names a code twice.
    """
    try:
        keys, vectors = _read_npy(path) if path.suffix == ".npy" else _read_table(path)
    except _UNREADABLE as error:
        what = f"cannot be read as code vectors ({type(error).__name__})"
        raise refuse(str(path), what, "write codes in the first column and numbers in the others") from error
    if len(keys) != len(vectors) or not len(keys) or not vectors.shape[1]:
        what = f"{len(keys)} codes and {vectors.shape[0]} vectors of {vectors.shape[1]} dimensions"
        raise refuse(str(path), what, "give each code one vector")
    if not np.isfinite(vectors).all():
        what = f"{int((~np.isfinite(vectors)).any(axis=1).sum())} vectors hold values that are missing or not finite"
        raise refuse(str(path), what, "leave these codes out")
    twice = len(keys) - len(set(keys))
    if twice:
        raise refuse(str(path), f"{twice} codes are named more than once", "keep one vector for each")
    return CodeVectors(keys, vectors)


def _file_of(folder: Path, vocabulary: str) -> Path | None:
    paths = (folder / f"ClinVec_{vocabulary}{suffix}" for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _read_npy(path: Path) -> tuple[list[str], np.ndarray]:
    vectors = np.load(path, allow_pickle=False).astype(np.float32)
    if vectors.ndim != 2:
        raise ValueError(f"{vectors.ndim} axes in place of two")
    return path.with_suffix(".txt").read_text(encoding="utf-8").split(), vectors


def _read_table(path: Path) -> tuple[list[str], np.ndarray]:
    table = pl.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    first = table.columns[0]
    keys = table[first].cast(pl.String).fill_null("").str.strip_chars().to_list()
    numbers = table.drop(first).select(pl.all().cast(pl.Float32, strict=False).fill_null(np.nan))
    return keys, numbers.to_numpy()


def _read_csv(path: Path) -> pl.DataFrame:
    with open(path, encoding="utf-8") as lines:
        header, first = next(lines, "").rstrip("\r\n"), next(lines, "").rstrip("\r\n")
    separator = "\t" if "\t" in header else ","
    names = [name.strip('"') for name in header.split(separator)]
    if len(first.split(separator)) == len(names) + 1:
        names = ["node_index", *names]
    return pl.read_csv(
        path, separator=separator, has_header=False, skip_rows=1, new_columns=names, infer_schema=False, glob=False
    )


def _in_keys(read: CodeVectors, vocabulary: str, folder: Path) -> CodeVectors:
    """The same by normal keys, node indices looked up in the table of nodes where there is one."""
    keys, nodes = pl.Series("key", read.keys), folder / NODES
    if nodes.is_file():
        named = keys.to_frame().join(
            _nodes(nodes), left_on="key", right_on="node_index", how="left", maintain_order="left"
        )
        known = named["node_id"].is_not_null()
        if known.all():
            keys = named["node_id"]
        elif known.any():
            what = f"{(~known).sum()} of {len(keys)} rows of ClinVec_{vocabulary} are not in {NODES}"
            raise refuse("clinvec.path", what, "take both files from one release")
    bare = [normal_key(vocabulary, key.partition(":")[0]) for key in keys.to_list()]
    first = {key: place for place, key in reversed(list(enumerate(bare)))}
    places = sorted(first.values())
    return CodeVectors([bare[place] for place in places], read.vectors[places])


def _nodes(path: Path) -> pl.DataFrame:
    """node_index · node_id, both as text, unique by node_index."""
    try:
        with open(path, encoding="utf-8") as lines:
            separator = "\t" if "\t" in next(lines, "") else ","
        table = pl.read_csv(path, separator=separator, infer_schema=False, quote_char=None, glob=False)
        return table.select("node_index", "node_id").unique("node_index", keep="first", maintain_order=True)
    except _UNREADABLE as error:
        what = f"cannot be read as a table of node_index and node_id ({type(error).__name__})"
        raise refuse(str(path), what, "take it as it is published") from error
