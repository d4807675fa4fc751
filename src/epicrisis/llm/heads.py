"""What is computed on top of a causal model's hidden states: next-token loss and class scores.

Both read packed batches: rows of several documents whose position_ids restart, which `attention.read_rows` turns
into attention that never crosses documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from epicrisis.corpus.packing import IGNORED, PackedBatch, pack
from epicrisis.llm.adalora import distance_from_orthogonal, is_adalora
from epicrisis.llm.adapters import causal_model
from epicrisis.llm.answer_tree import AnswerTree, Branched, answer_tree, branch
from epicrisis.llm.attention import as_mask, read_rows
from epicrisis.llm.cross_entropy import OutputLayer, summed_cross_entropy
from epicrisis.llm.prompts import is_prompted, prompted_states
from epicrisis.settings import refuse


class NextToken(nn.Module):
    """Summed next-token loss over the supervised positions of a packed batch."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        hidden = hidden_states(self.model, batch)[:, :-1]
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORED  # logits only where they are scored
        layer = OutputLayer(causal_model(self.model))
        loss = summed_cross_entropy(layer, hidden[supervised], targets[supervised])
        if self.training and is_adalora(self.model):  # a part of the mean loss, and this is a sum
            loss = loss + distance_from_orthogonal(self.model) * supervised.sum()  # type: ignore[arg-type]
        return loss


class LabelTokens(nn.Module):
    """Class logits as the log-probabilities of the answers after each document's prompt.

    answers: each class's answer as token ids. Where each begins with a token of its own, its logit says it all: only
    those rows of the output layer are multiplied, never the whole vocabulary, and a softmax over them is the
    answers' probability renormalised to the answers. Where some begin alike, an answer's logit is the sum of its
    tokens' log-probabilities (less what all answers share); the answers are read behind the document as branches
    that share it, in the same pass.
    """

    def __init__(self, model: nn.Module, answers: Sequence[int] | Sequence[Sequence[int]]):
        super().__init__()
        self.model = model
        self.tree = answer_tree([[answer] if isinstance(answer, int) else list(answer) for answer in answers])
        if self.tree.n_nodes:
            refuse_unless_branching(model, self.tree)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits, float32 [n_documents, n_classes]."""
        return self._logits(self._states(batch), normalised=False)

    def log_probabilities(self, batch: PackedBatch) -> torch.Tensor:
        """Log-probabilities of the answers among all continuations, float32 [n_documents, n_classes].

        The exponentials of a row sum to the answers' share of the whole vocabulary's probability.
        """
        return self._logits(self._states(batch), normalised=True)

    def _states(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states at the tree's nodes, [n_documents, 1 + n_nodes, hidden]."""
        if not self.tree.n_nodes:
            return last_hidden(self.model, batch)[:, None]
        return branch_states(causal_model(self.model), branch(batch, self.tree))

    def _logits(self, states: torch.Tensor, *, normalised: bool) -> torch.Tensor:
        layer = OutputLayer(causal_model(self.model))
        n_documents, n_nodes, _ = states.shape
        logits = torch.zeros(n_documents, len(self.tree.edges), device=states.device)
        for node in range(n_nodes):
            followed = {place: token for place, edges in enumerate(self.tree.edges) for n, token in edges if n == node}
            tokens = torch.tensor(list(followed.values()), device=states.device)
            scores = layer.of_tokens(states[:, node], tokens)
            if normalised or node:  # at the root all answers have the same normaliser
                scores = scores - layer.log_normaliser(states[:, node])[:, None]
            logits = logits.index_add(1, torch.tensor(list(followed), device=states.device), scores)
        return logits


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
    if is_prompted(model):
        return prompted_states(model, batch)  # type: ignore[arg-type]
    return read_rows(causal_model(model), batch.input_ids, batch.position_ids)


def branch_states(base: PreTrainedModel, branched: Branched) -> torch.Tensor:
    """Hidden states at each document's root and nodes, [n_documents, 1 + n_nodes, hidden].

    Raises InputError where a sliding window is shorter than a document: the branches' mask would lift it.
    """
    window = getattr(base.config.get_text_config(), "sliding_window", None)
    if window and int(branched.position_ids.max()) >= window:
        raise refuse(
            "model.answers",
            f"answers that begin alike are read past this base's attention window of {window} tokens",
            "choose words that begin differently, model.head: score, or a smaller model.max_length",
        )
    states = read_rows(base, branched.input_ids, branched.position_ids, as_mask(base, branched.seen))
    return states[branched.places[..., 0], branched.places[..., 1]]


def refuse_unless_branching(model: nn.Module, tree: AnswerTree) -> None:
    """Raise InputError for a model that cannot read answers which begin alike (see `LabelTokens`).

    A short document with its branches is read, and again with each branch as if it were the only one.
    """
    base = causal_model(model)
    exact = not is_prompted(model) and branches_are_exact(base, tree)
    if not exact:
        what = "answers begin with the same token, and this way of running the base cannot tell such apart"
        fix = "choose words that begin differently, model.head: score, or training.framework: peft with sdpa attention"
        raise refuse("model.answers", what, fix)


def branches_are_exact(base: PreTrainedModel, tree: AnswerTree) -> bool:
    """Whether the states at the tree's nodes are those of each way through the tree read by itself."""
    document = [token % base.config.get_text_config().vocab_size for token in range(8)]
    ways = [document + tree.way_to(node) for node in range(1 + tree.n_nodes)]
    together, *alone = (pack([way], [[0]], 0).to(base.device) for way in (document, *ways))
    was_training = base.training
    base.eval()  # dropout would make the readings differ
    with torch.no_grad():
        found = branch_states(base, branch(together, tree))[0]
        expected = torch.cat([last_hidden(base, batch) for batch in alone])
    base.train(was_training)
    return torch.allclose(found.float(), expected.float(), atol=1e-2, rtol=1e-2)


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
