"""The token ids of texts as they stand inside narratives, remembered from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from epicrisis.corpus.seams import ANCHORS, LINE, Seams
from epicrisis.corpus.tokens import opening_ids

AT_START, AT_END = 1, 2
"""Where in its narrative a text stands, as bits; 0 is in the midst of it."""

STANDINGS = 4

_TEXTS_AT_ONCE = 8192
_ID_BYTES = 4


class InContext:
    """Tokenises texts between anchors, which are then cut off: a text by itself may be tokenised otherwise."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend = _backend(tokenizer)
        self._opening = opening_ids(tokenizer)
        self._anchors: dict[int, tuple[list[int], list[int]]] = {0: ([], [])}
        for kind, (before, behind) in ANCHORS.items():
            ids, both = self._tokenise([before, before + behind])
            if ids and both[: len(ids)] == ids and len(both) > len(ids):
                self._anchors[kind] = ids, both[len(ids) :]

    @property
    def kinds(self) -> int:
        """The kinds of seam, as bits, at which there is an anchor."""
        return sum(self._anchors)

    def encode(self, texts: Sequence[str], heads: np.ndarray, tails: np.ndarray) -> list[list[int] | None]:
        """Ids of each text, after BOS where it begins a narrative; None where no anchor can be cut off.

        heads, tails: [n_texts], the kind of seam there, or 0 at the start and at the end of a narrative.
        """
        edges = list(zip(heads.tolist(), tails.tolist(), strict=True))
        between = [_before(head) + text + _behind(tail) for text, (head, tail) in zip(texts, edges, strict=True)]
        return [self._cut(ids, *edge) for ids, edge in zip(self._tokenise(between), edges, strict=True)]

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        parts = [texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE)]
        if self._backend is None:
            return [
                i for part in parts for i in self._tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
            ]
        # What transformers calls, without the offsets and masks that it would make of every text besides.
        encoded = (self._backend.encode_batch_fast(part, add_special_tokens=False) for part in parts)
        return [encoding.ids for part in encoded for encoding in part]

    def _cut(self, ids: list[int], head: int, tail: int) -> list[int] | None:
        before, behind = self._anchors[head][0], self._anchors[tail][1]
        end = len(ids) - len(behind)
        if len(before) > end or ids[: len(before)] != before or ids[end:] != behind:
            return None
        return ids[len(before) : end] if head else self._opening + ids[:end]


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """The tokenizer of the tokenizers library that does the work, as a call sets it; None where there is none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    tokenizer([""], add_special_tokens=False)  # sets truncation, padding and what to do with special tokens' names
    return backend


def _before(kind: int) -> str:
    return ANCHORS[kind][0] if kind else ""


def _behind(kind: int) -> str:
    return ANCHORS[kind][1] if kind else ""


def as_bytes(ids: Sequence[Sequence[int]]) -> pa.LargeBinaryArray:
    """Ids, four bytes each: arrow lays binaries end to end three times as fast as lists."""
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    flat = np.fromiter(chain.from_iterable(ids), dtype=np.uint32, count=int(lengths.sum()))
    return _binary(np.concatenate([[0], np.cumsum(lengths)]), flat)


def _binary(offsets: np.ndarray, ids: np.ndarray) -> pa.LargeBinaryArray:
    buffers = [None, pa.py_buffer(offsets * _ID_BYTES), pa.py_buffer(ids)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def as_lists(ids: pa.LargeBinaryArray, bounds: np.ndarray) -> pa.LargeListArray:
    """The uint32 lists that begin and end at these places of `ids`, which are laid end to end."""
    _, offsets, data = ids.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64, count=len(ids) + 1)[bounds] // _ID_BYTES
    values = pa.Array.from_buffers(pa.uint32(), int(ends[-1]), [None, data])
    return pa.LargeListArray.from_arrays(pa.array(ends), values)


class PieceIds:
    """Pieces, by the places in which they were met, and their ids as far as they were wanted.

    edges: uint8 [n_pieces, 2], the kinds of separable seam that a piece may begin with, and end with.
    """

    def __init__(self, in_context: InContext, seams: Seams) -> None:
        self._in_context = in_context
        self._seams = seams
        self._place: dict[str, int] = {}
        self._texts: list[str] = []
        self._edges = np.zeros((0, 2), dtype=np.uint8)
        self._entry = np.zeros((0, STANDINGS), dtype=np.int32)
        self._offsets = np.zeros(1, dtype=np.int64)
        self._ids = np.zeros(0, dtype=np.uint32)
        self._n_entries = 0

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def edges(self) -> np.ndarray:
        return self._edges[: len(self)]

    def places(self, texts: Sequence[str]) -> np.ndarray:
        """int64 [n_texts]: where each piece is kept, or -1 where it was never met."""
        return np.array([self._place.get(text, -1) for text in texts], dtype=np.int64)

    def learn(self, places: np.ndarray, standings: np.ndarray) -> bool:
        """Tokenises what is not yet known of these pieces, each standing in its narrative as is said.

        Returns: False if some proved inseparable after all. Their edges are gone then, and they stand otherwise.
        """
        missing = self._entry[places, standings] < 0
        if not missing.any():
            return True
        places, standings = places[missing], standings[missing]
        edges = self._edges[places]
        edges[:, 0][standings & AT_START > 0] = 0
        edges[:, 1][standings & AT_END > 0] = 0
        ids = self._encode(places, edges)
        found = np.array([i is not None for i in ids])
        self._remember(places[found], standings[found], [i for i in ids if i is not None])
        self.withdraw(places[~found])
        return bool(found.all())

    def entries(self, places: np.ndarray, standings: np.ndarray) -> pa.LargeBinaryArray:
        """The ids of pieces that were learnt, as bytes."""
        known = _binary(self._offsets[: self._n_entries + 1], self._ids[: self._offsets[self._n_entries]])
        return known.take(pa.array(self._entry[places, standings]))

    def lengths(self, places: np.ndarray, standings: np.ndarray) -> np.ndarray:
        """int64: how many ids each of these pieces has that were learnt, BOS included."""
        entries = self._entry[places, standings]
        return self._offsets[entries + 1] - self._offsets[entries]

    def midst(self, places: np.ndarray) -> np.ndarray:
        """How pieces stand in the midst of a narrative: as at its start or end where they are not separable."""
        none = self._edges[places] == 0
        return none[:, 0] * AT_START + none[:, 1] * AT_END

    def withdraw(self, places: np.ndarray) -> None:
        """From now on these pieces are tokenised together with their neighbours."""
        self._edges[places] = 0

    def add(self, new: Sequence[str]) -> None:
        """Judges distinct pieces that were never met."""
        places = np.arange(len(self), len(self) + len(new))
        self._texts += new
        self._edges = _with_room(self._edges, len(self), 0)
        self._entry = _with_room(self._entry, len(self), -1)
        self._edges[places] = self._seams.edges(new) & self._in_context.kinds
        self._judge(places[self._edges[places].any(axis=1)])
        self._place.update(zip(new, places.tolist(), strict=True))

    def _judge(self, places: np.ndarray) -> None:
        """Tokenises new pieces in the midst of a narrative, to see whether their seams are what they seemed."""
        ids = self._encode(places, self._edges[places])
        sure = np.array([i is not None and self._seams.guarded.isdisjoint(i) for i in ids], dtype=bool)
        self.withdraw(places[~sure])
        places, kept = places[sure], [i for i, known in zip(ids, sure, strict=True) if i is not None and known]
        self._remember(places, self.midst(places), kept)
        # Some patterns look ahead for a word. What ends in a line break must be told alike before one and before none.
        lines = np.flatnonzero(self._edges[places, 1] == LINE)
        alone = self._encode(places[lines], self._edges[places[lines]] * np.array([1, 0], dtype=np.uint8))
        differ = [kept[line] != ids for line, ids in zip(lines.tolist(), alone, strict=True)]
        self._edges[places[lines[differ]], 1] = 0

    def _encode(self, places: np.ndarray, edges: np.ndarray) -> list[list[int] | None]:
        return self._in_context.encode([self._texts[place] for place in places.tolist()], *edges.T)

    def _remember(self, places: np.ndarray, standings: np.ndarray, ids: list[list[int]]) -> None:
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        first, used = self._n_entries, int(self._offsets[self._n_entries])
        self._n_entries += len(ids)
        ends = used + np.cumsum(lengths)
        self._offsets = _with_room(self._offsets, self._n_entries + 1, 0)
        self._offsets[first + 1 : self._n_entries + 1] = ends
        self._ids = _with_room(self._ids, used + int(lengths.sum()), 0)
        self._ids[used : used + int(lengths.sum())] = np.fromiter(chain.from_iterable(ids), dtype=np.uint32)
        self._entry[places, standings] = np.arange(first, self._n_entries)


def _with_room(array: np.ndarray, n: int, empty: int) -> np.ndarray:
    """The array with room for n rows, twice as long whenever it is too short."""
    if n <= len(array):
        return array
    more = np.full((max(n, 2 * len(array)) - len(array), *array.shape[1:]), empty, dtype=array.dtype)
    return np.concatenate([array, more])
