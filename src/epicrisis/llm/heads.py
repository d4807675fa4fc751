"""What is computed on top of a causal model's hidden states: next-token loss and class scores.

Both read packed batches: rows of several documents whose position_ids restart, which transformers turns
into attention that never crosses documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from epicrisis.corpus.packing import IGNORED, PackedBatch
from epicrisis.llm.adapters import causal_model


class NextToken(nn.Module):
    """Summed next-token loss over the supervised positions of a packed batch."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        hidden = hidden_states(self.model, batch)[:, :-1]
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORED  # logits only where they are scored: most of the memory is here
        logits = causal_model(self.model).get_output_embeddings()(hidden[supervised])
        return F.cross_entropy(logits.float(), targets[supervised], reduction="sum")


class LabelTokens(nn.Module):
    """Class logits as the answers' token logits at the end of each document.

    Only the answers' rows of the output layer are multiplied, never the whole vocabulary; a softmax over
    them is the answers' log-probability renormalised to the answers.
    """

    def __init__(self, model: nn.Module, answer_ids: Sequence[int]):
        super().__init__()
        self.model = model
        self.register_buffer("answer_ids", torch.tensor(answer_ids), persistent=False)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits, float32 [n_documents, n_classes]."""
        rows = causal_model(self.model).get_output_embeddings().weight[self.answer_ids]
        return (last_hidden(self.model, batch) @ rows.T).float()


class ScoreHead(nn.Module):
    """Class logits by a linear layer, trained with the adapter, on each document's hidden states.

    pooling: `last` reads the last token's state, `mean` the average over the document's tokens.
    """

    def __init__(self, model: nn.Module, n_classes: int, seed: int, pooling: Literal["last", "mean"] = "last"):
        super().__init__()
        self.model = model
        self._pooled = mean_hidden if pooling == "mean" else last_hidden
        base = causal_model(model)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.score = nn.Linear(base.config.hidden_size, n_classes)
        nn.init.zeros_(self.score.bias)
        self.score.to(base.device)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits, float32 [n_documents, n_classes]."""
        return self.score(self._pooled(self.model, batch).float())


def hidden_states(model: nn.Module, batch: PackedBatch) -> torch.Tensor:
    """The decoder's last hidden states [n_rows, length, hidden], before the output layer."""
    decoder = causal_model(model).get_decoder()
    output = decoder(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    return output.last_hidden_state


def last_hidden(model: nn.Module, batch: PackedBatch) -> torch.Tensor:
    """The hidden state of each document's last token [n_documents, hidden]."""
    return hidden_states(model, batch)[batch.ends[:, 0], batch.ends[:, 1]]


def mean_hidden(model: nn.Module, batch: PackedBatch) -> torch.Tensor:
    """The hidden states of each document averaged over its tokens, float32 [n_documents, hidden]."""
    rows, last = batch.ends[:, 0], batch.ends[:, 1]
    lengths = batch.position_ids[rows, last] + 1
    # Sums up to and including each token; a document's own sum is the difference of two of them.
    sums = F.pad(hidden_states(model, batch).float().cumsum(dim=1), (0, 0, 1, 0))
    return (sums[rows, last + 1] - sums[rows, last + 1 - lengths]) / lengths[:, None]
