"""What is hidden from a bidirectional model, to be found again: single tokens, or spans of them."""

from __future__ import annotations

import numpy as np

from epicrisis.corpus.packing import IGNORED
from epicrisis.structured.batches import CLS, EOS, PAD, SEP, CodeBatch, lengths_of, padded
from epicrisis.structured.vocabulary import SPECIALS

MASK = SPECIALS.index("[MASK]")
MASKED, RANDOM = 0.8, 0.1
"""Of the tokens that are learnt: replaced by [MASK], and by any other token; the rest stays as it is."""
MEAN_SPAN = 3


def n_masked(own: np.ndarray | int, probability: float) -> np.ndarray:
    """How many of so many tokens are masked: the share asked for, rounded, and one at least."""
    return np.maximum(1, np.rint(np.asarray(own) * probability)).astype(np.int64)


def masked_batch(
    sequences: list[np.ndarray],
    context: np.ndarray,
    probability: float,
    vocabulary: int,
    random: np.random.Generator,
) -> CodeBatch:
    """Sequences in [CLS] [SEP], some of their tokens hidden (Devlin et al. 2019, arXiv:1810.04805).

    context: int [n], first tokens of each that are read and not learnt. vocabulary: tokens to draw others from.
    """
    ids, labels = [], []
    for tokens, first in zip(sequences, context.tolist(), strict=True):
        number = int(n_masked(len(tokens) - first, probability))
        hidden = first + random.choice(len(tokens) - first, number, replace=False)
        shown = tokens.astype(np.int64)
        lot = random.random(number)
        shown[hidden[lot < MASKED]] = MASK
        others = hidden[(lot >= MASKED) & (lot < MASKED + RANDOM)]
        shown[others] = random.integers(len(SPECIALS), vocabulary, len(others))
        label = np.full(len(tokens), IGNORED, dtype=np.int64)
        label[hidden] = tokens[hidden]
        ids.append(np.concatenate([[CLS], shown, [SEP]]))
        labels.append(np.concatenate([[IGNORED], label, [IGNORED]]))
    return CodeBatch(padded(ids, PAD), lengths_of(ids), padded(labels, IGNORED))


def n_span_tokens(lengths: np.ndarray | int, probability: float) -> np.ndarray:
    """How many of a sequence's tokens are hidden in spans; never all."""
    lengths = np.asarray(lengths)
    return np.clip(np.rint(lengths * probability), 1, np.maximum(lengths - 1, 1)).astype(np.int64)


def n_spans(lengths: np.ndarray | int, probability: float) -> np.ndarray:
    """How many spans hide them, MEAN_SPAN tokens each on average."""
    hidden = n_span_tokens(lengths, probability)
    most = np.maximum(np.asarray(lengths) - hidden, 1)  # each span follows a token that is shown
    return np.clip(np.rint(hidden / MEAN_SPAN), 1, most).astype(np.int64)


def n_span_targets(lengths: np.ndarray | int, probability: float) -> np.ndarray:
    """Tokens that the decoder learns of a sequence: those hidden, a sentinel before each span, and [EOS]."""
    return n_span_tokens(lengths, probability) + n_spans(lengths, probability) + 1


def span_batch(
    sequences: list[np.ndarray], probability: float, first_sentinel: int, random: np.random.Generator
) -> CodeBatch:
    """Sequences with spans replaced by sentinels, which the decoder fills in (Raffel et al. 2020, arXiv:1910.10683).

    The k-th span of each sequence is told as the token `first_sentinel` + k. Sequences have 2 tokens or more.
    """
    inputs, targets = [], []
    for tokens in sequences:
        hidden = int(n_span_tokens(len(tokens), probability))
        spans = int(n_spans(len(tokens), probability))
        shown_runs = _partition(len(tokens) - hidden, spans, random)
        hidden_runs = _partition(hidden, spans, random)
        ends = np.cumsum(np.stack([shown_runs, hidden_runs], axis=1).ravel())
        runs = np.split(tokens.astype(np.int64), ends[:-1])
        sentinels = first_sentinel + np.arange(spans)
        inputs.append(np.concatenate([_interleaved(runs[::2], sentinels, before=False), [EOS]]))
        targets.append(np.concatenate([_interleaved(runs[1::2], sentinels, before=True), [EOS]]))
    read = [np.concatenate([[PAD], target[:-1]]) for target in targets]
    return CodeBatch(
        padded(inputs, PAD), lengths_of(inputs), padded(targets, IGNORED), padded(read, PAD), lengths_of(read)
    )


def _partition(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """`total` in `parts` numbers of 1 or more, each way of doing so as likely as any other."""
    cuts = np.sort(random.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def _interleaved(runs: list[np.ndarray], sentinels: np.ndarray, *, before: bool) -> np.ndarray:
    pairs = zip(runs, sentinels, strict=True)
    parts = [part for run, sentinel in pairs for part in (([sentinel], run) if before else (run, [sentinel]))]
    return np.concatenate(parts)
