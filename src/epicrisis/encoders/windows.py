"""Narratives as an encoder reads them: token ids cut into windows, each between the encoder's own special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from transformers import PreTrainedTokenizerBase

from epicrisis.corpus.tokens import opening_ids
from epicrisis.settings import refuse


@dataclass(frozen=True)
class Frame:
    """Special tokens around every window, such as [CLS] and [SEP].

    n_opening: how many ids a prepared narrative begins with (BOS) that no window keeps: `before` has them already.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    n_opening: int
    pad_id: int

    @property
    def n_tokens(self) -> int:
        """Special tokens of a window."""
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class Reading:
    """How a narrative becomes windows: at most `most` of at most `room` tokens of text each."""

    frame: Frame
    room: int
    most: int = 1

    @property
    def max_tokens(self) -> int:
        """The longest narrative that is read whole, BOS included, in tokens."""
        return self.room * self.most + self.frame.n_opening

    def cut(self, narrative: Sequence[int]) -> list[list[int]]:
        """Windows of even lengths that hold a prepared narrative's latest tokens, special tokens around each.

        Even, so that where windows are averaged no event weighs more for standing in a short last one. A narrative
        is longer than `max_tokens` only where its header alone is.
        """
        body = list(narrative[self.frame.n_opening :])[-self.room * self.most :]
        count = max(1, -(-len(body) // self.room))
        bounds = [len(body) * number // count for number in range(count + 1)]
        frame = self.frame
        return [[*frame.before, *body[start:stop], *frame.after] for start, stop in pairwise(bounds)]

    def places(self, n_tokens: int) -> int:
        """Tokens of a prepared narrative of `n_tokens` in its windows, special tokens included."""
        body = min(max(0, n_tokens - self.frame.n_opening), self.room * self.most)
        return body + max(1, -(-body // self.room)) * self.frame.n_tokens


@dataclass(frozen=True)
class WindowBatch:
    """Windows of some narratives, padded on the right.

    input_ids, attention_mask: int64 [n_windows, length]; document: int64 [n_windows], whose each is, in order;
    n_documents: their number.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    document: torch.Tensor
    n_documents: int

    def to(self, device: torch.device) -> WindowBatch:
        ids, mask, document = self.input_ids.to(device), self.attention_mask.to(device), self.document.to(device)
        return WindowBatch(ids, mask, document, self.n_documents)

    @property
    def places(self) -> int:
        """Places of tokens, padding included."""
        return self.input_ids.numel()

    @property
    def useful_tokens(self) -> int:
        """Tokens that are no padding."""
        return int(self.attention_mask.sum())


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """What this tokenizer lays around a text; InputError where it has no padding token."""
    if tokenizer.pad_token_id is None:
        raise refuse("model.model_name", "this tokenizer has no padding token", "name an encoder such as a BERT")
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    before, after = whole[:start], whole[start + len(bare) :]
    return Frame(tuple(before), tuple(after), len(opening_ids(tokenizer)), tokenizer.pad_token_id)


def lay(windows: Sequence[Sequence[Sequence[int]]], pad_id: int) -> WindowBatch:
    """A batch of documents' windows, as `Reading.cut` makes them."""
    flat = [window for document in windows for window in document]
    width = max(map(len, flat))
    input_ids = torch.full((len(flat), width), pad_id)
    attention_mask = torch.zeros((len(flat), width), dtype=torch.long)
    for number, window in enumerate(flat):
        input_ids[number, : len(window)] = torch.as_tensor(window)
        attention_mask[number, : len(window)] = 1
    counts = torch.tensor([len(document) for document in windows])
    return WindowBatch(input_ids, attention_mask, torch.arange(len(windows)).repeat_interleave(counts), len(windows))
