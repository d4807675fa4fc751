"""What gives logits of states: a layer on [CLS], or a recurrent network over all of them (Lentzen et al. 2023)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from epicrisis.structured.age_visit_model import BodyShape, RecordHead

HeadName = Literal["ffn", "gru", "lstm"]


class RecurrentHead(nn.Module):
    """A GRU or LSTM that reads the states in order; logits off its last state. Pads are not read."""

    def __init__(self, shape: BodyShape, n_outputs: int, kind: Literal["gru", "lstm"]):
        super().__init__()
        network = nn.GRU if kind == "gru" else nn.LSTM
        self.network = network(shape.hidden, shape.hidden, batch_first=True)
        self.dropout = nn.Dropout(shape.dropout)
        self.score = nn.Linear(shape.hidden, n_outputs)

    def forward(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(states, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.network(packed)
        state = last[0] if isinstance(last, tuple) else last
        return self.score(self.dropout(state[-1]))


def make_head(name: HeadName, shape: BodyShape, n_outputs: int) -> nn.Module:
    """The head of that name, untrained."""
    return RecordHead(shape, n_outputs) if name == "ffn" else RecurrentHead(shape, n_outputs, name)
