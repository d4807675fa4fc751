"""Vectors of one size made to fit embeddings of another."""

from __future__ import annotations

from typing import Literal

import numpy as np

from epicrisis.settings import refuse

ResizeMethod = Literal["auto", "truncate", "pca", "learned_projection", "pad_smart", "pad_random"]

_SHRINKS = ("truncate", "pca")
_GROWS = ("pad_smart", "pad_random")


def chosen_method(method: ResizeMethod, n_source: int, n_target: int) -> ResizeMethod | None:
    """The method that `auto` comes to (pca to shrink, pad_smart to grow); None where nothing has to be done.

    Raises InputError for one that cannot lead from `n_source` to `n_target` dimensions.
    """
    if n_source == n_target and method != "learned_projection":
        return None
    if method == "auto":
        return "pca" if n_source > n_target else "pad_smart"
    wrong = (method in _SHRINKS and n_source < n_target) or (method in _GROWS and n_source > n_target)
    if wrong:
        what = f"{method} cannot make vectors of {n_source} dimensions into {n_target}"
        raise refuse("clinvec.resize", what, "set clinvec.resize: auto")
    return method


def resize(vectors: np.ndarray, n_target: int, method: ResizeMethod | None, seed: int) -> np.ndarray:
    """float32 [n, n_target] of float32 [n, n_source]; the same seed gives the same.

    truncate keeps the first dimensions. pca keeps what varies most, about the mean. pad_smart adds random
    combinations of the vector's own dimensions, so that near codes stay near; pad_random adds noise as strong as
    the vectors are. learned_projection leaves the size as it is: a linear layer that is trained makes it fit.
    """
    n_source = vectors.shape[1]
    if method in (None, "learned_projection"):
        return vectors
    if method == "truncate":
        return vectors[:, :n_target]
    if method == "pca":
        return _principal(vectors, n_target)
    generator = np.random.default_rng([seed % 2**32, n_source, n_target])
    if method == "pad_smart":
        mixing = generator.normal(0, n_source**-0.5, (n_source, n_target - n_source))
        added = vectors @ mixing
    else:
        added = generator.normal(vectors.mean(), vectors.std(), (len(vectors), n_target - n_source))
    return np.concatenate([vectors, added.astype(np.float32)], axis=1)


def _principal(vectors: np.ndarray, n_target: int) -> np.ndarray:
    """The main components of the vectors, 0 beyond their number; float32 [n, n_target]."""
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :n_target]  # eigenvalues come in ascending order
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(n_target)])  # a component's sign is arbitrary
    return (centred @ axes).astype(np.float32)
