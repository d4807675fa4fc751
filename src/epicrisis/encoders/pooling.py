"""States of windows and of documents: one vector out of many."""

from __future__ import annotations

from typing import Literal

import torch

Pooling = Literal["cls", "mean"]
ChunkPooling = Literal["mean", "max"]


def pool_tokens(states: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """[n, hidden] of [n, length, hidden]: the first token's state, or the mean over what the mask [n, length] has."""
    if pooling == "cls":
        return states[:, 0]
    seen = mask.to(states.dtype).unsqueeze(-1)
    return (states * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)


def pool_windows(
    pooled: torch.Tensor, document: torch.Tensor, n_documents: int, chunk_pooling: ChunkPooling
) -> torch.Tensor:
    """[n_documents, hidden] of the windows' [n_windows, hidden]; document: whose each window is."""
    if len(pooled) == n_documents:  # a window each, in order
        return pooled
    index = document.unsqueeze(-1).expand_as(pooled)
    empty = pooled.new_zeros(n_documents, pooled.shape[1])
    reduce: Literal["mean", "amax"] = "mean" if chunk_pooling == "mean" else "amax"
    return empty.scatter_reduce(0, index, pooled, reduce=reduce, include_self=False)
