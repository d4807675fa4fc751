"""An LSTM over embedded codes (Hochreiter & Schmidhuber 1997): the recurrent baseline."""

from __future__ import annotations

import torch
from torch import nn


class Lstm(nn.Module):
    """A causal body: token ids [n, length] to states [n, length, hidden]."""

    def __init__(self, vocabulary: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        between = dropout if layers > 1 else 0.0  # torch drops between layers only, and warns of one layer
        self.layers = nn.LSTM(hidden, hidden, layers, batch_first=True, dropout=between)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states, _ = self.layers(self.dropout(self.embedding(ids)))
        return self.norm(states)
