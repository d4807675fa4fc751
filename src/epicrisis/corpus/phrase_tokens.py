"""Token ids of narratives from the ids of their pieces: each distinct piece is tokenised once and laid end to end.

The ids are those of `encode_narratives`, to the last one. Pieces that cannot be shown to be tokenised apart
(see `seams`) are tokenised together, in the worst case a whole narrative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from epicrisis.corpus.piece_ids import AT_END, AT_START, STANDINGS, InContext, PieceIds, as_bytes, as_lists
from epicrisis.corpus.seams import Seams
from epicrisis.corpus.tokens import encode_narratives, opening_ids
from epicrisis.narrative.assembly import Assembly


class PhraseTokens:
    """A tokenizer that remembers the ids of the pieces that it has seen.

    most_pieces: when it would come to remember more pieces than that, it forgets all.
    joint_runs: how many runs of several pieces `encode` has tokenised together so far.

    The tokenizer must not change as long as this lives.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, most_pieces: int = 1_000_000) -> None:
        self.joint_runs = 0
        self._tokenizer = tokenizer
        self._most_pieces = most_pieces
        self._seams = Seams(tokenizer)
        self._in_context = InContext(tokenizer)
        self._known = PieceIds(self._in_context, self._seams)

    def lengths(self, texts: pa.LargeStringArray, first: np.ndarray | None = None) -> np.ndarray:
        """int32 [n_texts]: tokens of each piece as it stands inside a narrative, to add up to a budget.

        first: bool [n_texts], the piece begins its narrative. BOS is not counted. Where a piece can only be
        tokenised together with its neighbours, its count is that of the piece by itself.
        """
        places = self._places(texts)
        at_start = np.zeros(len(texts), dtype=bool) if first is None else first
        while True:
            standings = self._known.midst(places) | at_start * AT_START
            if self._known.learn(places, standings):
                break
        opening = len(opening_ids(self._tokenizer)) * (standings & AT_START)
        return (self._known.lengths(places, standings) - opening).astype(np.int32)

    def encode(self, assembly: Assembly) -> pa.LargeListArray:
        """uint32 ids of each narrative, BOS included: what `encode_narratives` gives for its text."""
        assembly = _without_voids(assembly)
        places = np.full(len(assembly.texts), -1)
        used = np.flatnonzero(np.bincount(assembly.pieces, minlength=len(places)))
        places[used] = self._places(assembly.texts.take(pa.array(used)))
        while (ids := self._laid_end_to_end(assembly, places)) is None:
            pass
        return ids

    def audit(self, assembly: Assembly, ids: pa.LargeListArray, sample: int, seed: int) -> None:
        """Tokenises a sample of the narratives as a whole. Raises RuntimeError if the ids of any differ."""
        n = len(assembly.bounds) - 1
        chosen = np.sort(np.random.default_rng(seed).choice(n, min(sample, n), replace=False))
        whole = encode_narratives(self._tokenizer, _some(assembly, chosen).narratives().to_pylist())
        differing = sum(a != b for a, b in zip(whole, ids.take(pa.array(chosen)).to_pylist(), strict=True))
        if differing:
            raise RuntimeError(
                f"{differing} of {len(chosen)} narratives have other token ids when tokenised as a whole: this "
                "tokenizer joins pieces in a way that epicrisis.corpus.seams does not know; please report it"
            )

    def _places(self, texts: pa.LargeStringArray) -> np.ndarray:
        pieces = texts.to_pylist()
        places = self._known.places(pieces)
        unmet = list(dict.fromkeys(pieces[i] for i in np.flatnonzero(places < 0)))
        if not unmet:
            return places
        if len(self._known) + len(unmet) > self._most_pieces:
            self._known = PieceIds(self._in_context, self._seams)
            unmet = list(dict.fromkeys(pieces))
        self._known.add(unmet)
        return self._known.places(pieces)

    def _laid_end_to_end(self, assembly: Assembly, places: np.ndarray) -> pa.LargeListArray | None:
        """None if, on tokenising them, pieces proved inseparable that seemed separable."""
        runs = _runs(assembly, self._known.edges[places])
        keys = assembly.pieces[runs.starts].astype(np.int64) * STANDINGS + runs.standings
        wanted = np.flatnonzero(np.bincount(keys[runs.single], minlength=len(places) * STANDINGS))
        wanted_places, wanted_standings = places[wanted // STANDINGS], wanted % STANDINGS
        if not self._known.learn(wanted_places, wanted_standings):
            return None
        unit_of = np.zeros(len(places) * STANDINGS, dtype=np.int64)
        unit_of[wanted] = np.arange(len(wanted))
        units = unit_of[keys]
        ids = self._known.entries(wanted_places, wanted_standings)
        if not runs.single.all():
            joint = self._joint(assembly, runs, places)
            if joint is None:
                return None
            units[~runs.single] = joint[0] + len(wanted)
            ids = pa.concat_arrays([ids, joint[1]])
            self.joint_runs += len(joint[0])
        return as_lists(ids.take(pa.array(units)), runs.bounds)

    def _joint(self, assembly: Assembly, runs: _Runs, places: np.ndarray) -> tuple[np.ndarray, pa.Array] | None:
        """Which of the distinct runs of several pieces each such run is, and their ids."""
        longer = ~runs.single
        within = Assembly(
            assembly.texts,
            assembly.pieces[np.repeat(longer, runs.lengths)],
            np.concatenate([[0], np.cumsum(runs.lengths[longer])]),
        )
        outer = places[np.stack([within.pieces[within.bounds[:-1]], within.pieces[within.bounds[1:] - 1]], axis=1)]
        edges = np.stack([self._known.edges[outer[:, 0], 0], self._known.edges[outer[:, 1], 1]], axis=1)
        edges *= runs.standings[longer, None] & [AT_START, AT_END] == 0
        texts = within.narratives().dictionary_encode()
        codes = np.asarray(texts.indices).astype(np.int64) * 16 + edges @ [4, 1]
        distinct, at, which = np.unique(codes, return_index=True, return_inverse=True)
        ids = self._in_context.encode(texts.dictionary.take(pa.array(distinct // 16)).to_pylist(), *edges[at].T)
        unfit = np.array([i is None for i in ids])
        if unfit.any():
            self._known.withdraw(outer[at[unfit]].ravel())
            return None
        return which, as_bytes([i for i in ids if i is not None])


@dataclass(frozen=True)
class _Runs:
    """The longest stretches of pieces that stand between separable seams, or the ends of a narrative.

    starts, lengths: int64 [n_runs], in pieces. single: bool [n_runs], one piece alone. standings: int64 [n_runs],
    AT_START and AT_END. bounds: int64 [n_narratives + 1], where each narrative begins among the runs.
    """

    starts: np.ndarray
    lengths: np.ndarray
    single: np.ndarray
    standings: np.ndarray
    bounds: np.ndarray


def _runs(assembly: Assembly, edges: np.ndarray) -> _Runs:
    heads, tails = (column.take(assembly.pieces) for column in edges.T.copy())
    begins = np.ones(len(heads), dtype=bool)
    begins[1:] = tails[:-1] & heads[1:] != 0
    begins[assembly.bounds[:-1]] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=len(heads))
    bounds = np.searchsorted(starts, assembly.bounds)
    standings = np.zeros(len(starts), dtype=np.int64)
    standings[bounds[:-1]] |= AT_START
    standings[bounds[1:] - 1] |= AT_END
    return _Runs(starts, lengths, lengths == 1, standings, bounds)


def _some(assembly: Assembly, narratives: np.ndarray) -> Assembly:
    starts, ends = assembly.bounds[narratives], assembly.bounds[narratives + 1]
    pieces = [assembly.pieces[start:end] for start, end in zip(starts, ends, strict=True)]
    bounds = np.concatenate([[0], np.cumsum(ends - starts)])
    return Assembly(assembly.texts, np.concatenate([assembly.pieces[:0], *pieces]), bounds)


def _without_voids(assembly: Assembly) -> Assembly:
    """An empty narrative told by one empty piece, so that every narrative has a first piece."""
    empty = np.diff(assembly.bounds) == 0
    if not empty.any():
        return assembly
    texts = pa.concat_arrays([assembly.texts, pa.array([""], type=assembly.texts.type)])
    pieces = np.insert(assembly.pieces, assembly.bounds[:-1][empty], len(assembly.texts))
    return Assembly(texts, pieces, assembly.bounds + np.concatenate([[0], np.cumsum(empty)]))
