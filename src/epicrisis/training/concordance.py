"""How often a higher risk goes with an earlier event: the counts behind every concordance index.

Sources: Harrell et al. 1982, Evaluating the yield of medical tests (JAMA 247:2543); Uno et al. 2011, On the
C-statistics for evaluating overall adequacy of risk prediction procedures with censored survival data (Statistics in
Medicine 30:1105).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Level:
    """Rows that a bit of their rank tells apart; the places are those of a running sum over `order`.

    order: rows by block, and by risk within it. later: 1 for the rows of a block that come later in time. rows: the
    events of the earlier ones; start, lower, tied, end: where the block begins, where risks equal to the event's begin
    and end, where the block ends.
    """

    order: np.ndarray
    later: np.ndarray
    rows: np.ndarray
    start: np.ndarray
    lower: np.ndarray
    tied: np.ndarray
    end: np.ndarray


class Concordance:
    """Pairs of rows of which one has its event while the other is still followed: was its risk the higher one?

    Ties as in lifelines and scikit-survival: equal risks count half; of two rows of equal times, an event and a
    censored one are compared (the event came first), two events are not. days, observed, risk: [n]. Takes O(n log² n)
    for the first counts, O(n log n) for further weightings of the same rows.
    """

    def __init__(self, days: np.ndarray, observed: np.ndarray, risk: np.ndarray):
        self.n = len(days)
        observed, risk = np.asarray(observed, dtype=bool), np.asarray(risk, dtype=np.float64)
        rank = _ranks(np.asarray(days), observed)
        n_bits = int(rank.max()).bit_length() if self.n else 0
        # Two ranks part at exactly one bit: the highest that differs. So every pair is met once, ties never.
        self._levels = [_level(rank, bit, observed, risk) for bit in range(n_bits)]

    def counts(self, weights: np.ndarray, factors: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(concordant, comparable), each [n_weightings, n_factors], for weights of rows [n_weightings, n].

        A pair counts the product of its rows' weights, times the factor [n_factors, n] of the row with the event
        (1 where none are given).
        """
        weights = weights.astype(np.float64)
        factors = np.ones((1, self.n)) if factors is None else factors
        concordant, comparable = np.zeros((2, len(weights), len(factors)))
        for level in self._levels:
            sums = np.zeros((len(weights), self.n + 1))
            np.cumsum(weights[:, level.order] * level.later, axis=1, out=sums[:, 1:])
            start, lower = sums[:, level.start], sums[:, level.lower]
            of_event, factor = weights[:, level.rows], factors[:, level.rows].T
            concordant += (of_event * ((lower + sums[:, level.tied]) / 2 - start)) @ factor
            comparable += (of_event * (sums[:, level.end] - start)) @ factor
        return concordant, comparable


def concordance_index(days: np.ndarray, observed: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's C; 0.5 for a constant risk, NaN where no two rows can be compared."""
    concordant, comparable = Concordance(days, observed, risk).counts(np.ones((1, len(days))))
    return float(concordant[0, 0] / comparable[0, 0]) if comparable[0, 0] else float("nan")


def _ranks(days: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Places in time from 0, int64 [n]: events of one time share one, rows censored at it share the next."""
    order = np.lexsort((~observed, days))
    day, event = days[order], observed[order]
    ranks = np.zeros(len(days), dtype=np.int64)
    ranks[order[1:]] = np.cumsum((day[1:] != day[:-1]) | (event[1:] != event[:-1]))
    return ranks


def _level(rank: np.ndarray, bit: int, observed: np.ndarray, risk: np.ndarray) -> _Level:
    block, later = rank >> (bit + 1), (rank >> bit) & 1
    order = np.lexsort((risk, block))
    blocks, risks = block[order], risk[order]
    changes = (blocks[1:] != blocks[:-1]) | (risks[1:] != risks[:-1])
    tie = np.concatenate([np.zeros(min(1, len(rank)), dtype=np.int64), np.cumsum(changes)])
    asked = np.flatnonzero((later[order] == 0) & observed[order])
    return _Level(
        order,
        later[order].astype(np.float64),
        order[asked],
        np.searchsorted(blocks, blocks[asked], side="left"),
        np.searchsorted(tie, tie[asked], side="left"),
        np.searchsorted(tie, tie[asked], side="right"),
        np.searchsorted(blocks, blocks[asked], side="right"),
    )
