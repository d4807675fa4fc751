"""Continuations of prompts, drawn or greedy: batched over prompts and samples, the same whatever the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import (
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from epicrisis.llm.adapters import causal_model
from epicrisis.llm.prefixes import Prefix, read_prompts
from epicrisis.llm.random_numbers import gumbel, stream_keys
from epicrisis.llm.trie import Trie

ENDINGS = ("end", "stop", "length")
"""Why a continuation ended: the model ended it (EOS, or the last token of a trie's sequence), a stop criterion was
met, or it had as many tokens as it may have."""
_END, _STOP, _LENGTH = range(3)
_GOES_ON = -1


@dataclass(frozen=True)
class Stop:
    """A criterion on the text written so far, looked at whenever that has grown by one of `characters`.

    ended: the prompts' places (int [n]) and the texts → bool [n].
    """

    characters: str
    ended: Callable[[np.ndarray, list[str]], np.ndarray]


def stop_at(strings: Sequence[str]) -> Stop:
    """Stop as soon as one of these has been written."""

    def ended(_: np.ndarray, texts: list[str]) -> np.ndarray:
        return np.array([any(string in text for string in strings) for text in texts], dtype=bool)

    return Stop("".join({string[-1] for string in strings}), ended)


@dataclass(frozen=True)
class Decoding:
    """How continuations are written.

    temperature: 0 is greedy. top_k, top_p: as in transformers, in this order after the temperature. forbidden:
    token ids that are never written. trie: nothing but its sequences is written. batch_size: so many
    continuations at once, which changes nothing but the rounding of logits.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0
    batch_size: int = 64
    stops: tuple[Stop, ...] = ()
    forbidden: tuple[int, ...] = ()
    trie: Trie | None = None


@dataclass
class Written:
    """Continuations, n_samples of each prompt, in the prompts' order.

    prompt, sample: int64 [n]. ids: of each, without EOS. log_probability: float64 [n], the model's own (temperature
    1, nothing forbidden) of all that was written, EOS included. ending: int8 [n], places in ENDINGS.
    """

    prompt: np.ndarray
    sample: np.ndarray
    ids: list[list[int]]
    log_probability: np.ndarray
    ending: np.ndarray

    def endings(self) -> list[str]:
        """Why each ended, one of ENDINGS."""
        return [ENDINGS[place] for place in self.ending]


def write(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    keys: np.ndarray,
    n_samples: int,
    decoding: Decoding,
    advance: Callable[[int], None] = lambda _: None,
) -> Written:
    """Write `n_samples` continuations of each prompt, of at least one token id each.

    keys: uint64 [n_prompts]; together with decoding.seed, the number of the sample and the step they decide what
    is drawn, so that a prompt's continuations do not depend on its company. advance: is told how many prompts
    were done. A prompt is read once for its samples, or once for every batch_size of them. Raises ValueError for
    a prompt without any token, and what `read_prompts` raises.
    """
    if not all(map(len, prompts)):
        raise ValueError("a prompt without any token has nothing to go on from")
    n = len(prompts) * n_samples
    prompt, sample = np.divmod(np.arange(n), n_samples)
    written = Written(prompt, sample, [[] for _ in range(n)], np.zeros(n), np.full(n, _GOES_ON, dtype=np.int8))
    writer = _Writer(model, tokenizer, decoding, written)
    with torch.inference_mode():
        for places, samples in _batches([len(ids) for ids in prompts], n_samples, decoding.batch_size):
            prefix = read_prompts(model, [prompts[place] for place in places], len(samples))
            rows = (places[:, None] * n_samples + samples).ravel()
            last = torch.tensor([prompts[place][-1] for place in prompt[rows]])
            writer.write(prefix, rows, last, keys[prompt[rows]])
            advance(len(places) if samples[-1] == n_samples - 1 else 0)
    return written


def log_probabilities(
    model: nn.Module, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], batch_size: int
) -> np.ndarray:
    """The log-probability of each of a few continuations after each prompt: float64 [n_prompts, n_continuations]."""
    n, longest = len(continuations), max(map(len, continuations))
    scores = np.zeros((len(prompts), n))
    device = causal_model(model).device
    padded = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in continuations], device=device)
    counts = torch.arange(longest, device=device) < torch.tensor([[len(ids)] for ids in continuations], device=device)
    with torch.inference_mode():
        for places, samples in _batches([len(ids) for ids in prompts], n, max(batch_size, n)):
            prefix = read_prompts(model, [prompts[place] for place in places], len(samples))
            tokens = torch.tensor([prompts[place][-1] for place in places], device=device).repeat_interleave(n)
            total = torch.zeros(len(tokens), dtype=torch.float64, device=device)
            for step in range(longest):
                told = torch.log_softmax(prefix.step(tokens).double(), dim=-1)
                tokens = padded[:, step].repeat(len(places))
                total += told.gather(1, tokens[:, None])[:, 0] * counts[:, step].repeat(len(places))
            scores[places] = total.view(len(places), n).cpu().numpy()
    return scores


def texts_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]]) -> list[str]:
    """The text of each sequence of ids, without special tokens."""
    if not len(ids):
        return []
    return tokenizer.batch_decode(
        [list(one) for one in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


class _Writer:
    """Writes batch after batch of one run into the same table."""

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, decoding: Decoding, written: Written
    ) -> None:
        causal = causal_model(model)
        self._device, self._tokenizer, self._decoding = causal.device, tokenizer, decoding
        self._written = written
        self._trie = decoding.trie.to(causal.device) if decoding.trie is not None else None
        self._narrow = _narrowing(decoding)
        self._is_trigger = _triggers(tokenizer, decoding.stops, causal.config.get_text_config().vocab_size)

    def write(self, prefix: Prefix, rows: np.ndarray, last: torch.Tensor, keys: np.ndarray) -> None:
        """rows: the places in the table that this batch fills; last: each one's last prompt token."""
        decoding, written = self._decoding, self._written
        streams = stream_keys(decoding.seed, keys, written.sample[rows], self._device)
        tokens = last.to(self._device)
        nodes = torch.zeros_like(tokens)
        for step in range(decoding.max_new_tokens):
            logits = prefix.step(tokens).float()
            tokens = self._choose(logits, nodes, streams, step)
            own = torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0]
            written.log_probability[rows] += own.double().cpu().numpy()
            if self._trie is not None:
                nodes = self._trie.following[nodes, tokens]
            ending = self._append(rows, tokens.cpu().numpy(), nodes)
            if step == decoding.max_new_tokens - 1:
                ending[ending == _GOES_ON] = _LENGTH
            written.ending[rows] = ending
            on = np.flatnonzero(ending == _GOES_ON)
            if not len(on):
                return
            if len(on) < len(rows):
                chosen = torch.from_numpy(on).to(self._device)
                prefix.keep(chosen)
                rows, tokens, nodes, streams = rows[on], tokens[chosen], nodes[chosen], streams[chosen]

    def _choose(self, logits: torch.Tensor, nodes: torch.Tensor, streams: torch.Tensor, step: int) -> torch.Tensor:
        scores = logits
        if self._decoding.forbidden:
            scores = scores.index_fill(1, torch.tensor(self._decoding.forbidden, device=self._device), float("-inf"))
        if self._trie is not None:
            vocabulary = self._trie.following.shape[1]
            scores = scores[:, :vocabulary].masked_fill(self._trie.following[nodes] < 0, float("-inf"))
        if self._decoding.temperature > 0:
            scores = self._narrow(None, scores)  # type: ignore[arg-type]  # these warpers read no ids
            scores = scores + gumbel(streams, step, scores.shape[1])
        return scores.argmax(dim=-1)

    def _append(self, rows: np.ndarray, tokens: np.ndarray, nodes: torch.Tensor) -> np.ndarray:
        """Append a token to each row that goes on; returns why it ended, or _GOES_ON: int8 [n]."""
        written = self._written
        ending = np.full(len(rows), _GOES_ON, dtype=np.int8)
        ending[tokens == self._tokenizer.eos_token_id] = _END
        for row, token in zip(rows[ending != _END].tolist(), tokens[ending != _END].tolist(), strict=True):
            written.ids[row].append(token)
        if self._trie is not None:
            ending[self._trie.ends[nodes].cpu().numpy()] = _END
        asked = np.flatnonzero(self._is_trigger[tokens] & (ending == _GOES_ON))
        if len(asked):
            texts = texts_of(self._tokenizer, [written.ids[row] for row in rows[asked]])
            prompts = written.prompt[rows[asked]]
            stopped = np.any([stop.ended(prompts, texts) for stop in self._decoding.stops], axis=0)
            ending[asked[stopped]] = _STOP
        return ending


def _narrowing(decoding: Decoding) -> LogitsProcessorList:
    """Temperature, top_k and top_p, in this order."""
    warpers = LogitsProcessorList()
    if decoding.temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k is not None:
        warpers.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        warpers.append(TopPLogitsWarper(decoding.top_p))
    return warpers


def _triggers(tokenizer: PreTrainedTokenizerBase, stops: Sequence[Stop], vocabulary: int) -> np.ndarray:
    """bool [vocabulary]: tokens after which some criterion must be asked."""
    is_trigger = np.zeros(max(vocabulary, len(tokenizer)), dtype=bool)
    characters = {character for stop in stops for character in stop.characters}
    if characters:
        texts = texts_of(tokenizer, [[token] for token in range(len(tokenizer))])
        is_trigger[: len(texts)] = [not characters.isdisjoint(text) for text in texts]
    return is_trigger


def _batches(lengths: Sequence[int], n_samples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places of prompts, their samples): whole prompts of like length together, or a part of one's samples."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    at_once = max(1, batch_size // n_samples)
    for first in range(0, len(order), at_once):
        for start in range(0, n_samples, batch_size):
            yield order[first : first + at_once], np.arange(start, min(start + batch_size, n_samples))
