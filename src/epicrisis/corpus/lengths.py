"""How long narratives are, in tokens, and how they lie in rows of a model: figures of many, never of one patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from epicrisis.corpus.packing import best_fit
from epicrisis.corpus.windows import cut

FEWEST_NARRATIVES = 10
"""No bin of `length_bins` holds fewer: neighbours are joined until it does."""

BINS = 40

_IN_ORDER = pl.col("split").replace_strict({"train": 0, "tuning": 1, "held_out": 2}, default=3)
# In 64 bits: the tokens of a hospital do not add up in the 32 that one narrative's need.
_TOKENS, _EVENTS, _DROPPED = (pl.col(name).cast(pl.Int64) for name in ("n_tokens", "n_events", "n_events_dropped"))
_KEPT = _EVENTS - _DROPPED


def length_statistics(lengths: pl.DataFrame) -> pl.DataFrame:
    """Per split: narratives, how long they are in tokens, and how many events the token budget left out.

    lengths: split · n_tokens · n_events · n_events_dropped, one row per narrative. Returns, sorted by split: split ·
    n · n_cut (narratives that lost events) · tokens_mean · tokens_median · tokens_p90 · tokens_max (BOS included) ·
    events · events_dropped · tokens_per_event (all tokens over the events that the budget kept; null if none).
    """
    return (
        lengths.group_by("split")
        .agg(
            n=pl.len(),
            n_cut=(_DROPPED > 0).sum(),
            tokens_mean=_TOKENS.mean(),
            tokens_median=_TOKENS.median(),
            tokens_p90=_TOKENS.quantile(0.9),
            tokens_max=_TOKENS.max(),
            events=_EVENTS.sum(),
            events_dropped=_DROPPED.sum(),
            tokens_per_event=pl.when(_KEPT.sum() > 0).then(_TOKENS.sum() / _KEPT.sum()),
        )
        .sort("split")
    )


def length_table(lengths: pl.DataFrame, style: str, tokenizer: str) -> pl.DataFrame:
    """The same for a report: one row per split, in the order train, tuning, held_out.

    style: name@version. tokenizer: the name of the model that it belongs to. Returns: split · style · tokenizer ·
    narratives · tokens_mean · tokens_median · tokens_p90 · tokens_max · tokens_per_event · events · events_left_out
    (share of the events) · narratives_cut (share of the narratives).
    """
    left_out = pl.when(pl.col("events") > 0).then(pl.col("events_dropped") / pl.col("events"))
    figures = length_statistics(lengths).sort(_IN_ORDER, maintain_order=True)
    return figures.select(
        "split",
        style=pl.lit(style),
        tokenizer=pl.lit(tokenizer),
        narratives=pl.col("n").cast(pl.Int64),
        tokens_mean="tokens_mean",
        tokens_median="tokens_median",
        tokens_p90="tokens_p90",
        tokens_max="tokens_max",
        tokens_per_event="tokens_per_event",
        events="events",
        events_left_out=left_out,
        narratives_cut=pl.col("n_cut") / pl.col("n"),
    )


def lengths_text(lengths: pl.DataFrame) -> str:
    """One line per split that says how long its narratives are; `lengths` as in `length_statistics`."""
    return "\n".join(
        f"{row['split']}: {row['n']:,} narratives of {row['tokens_mean']:.0f} tokens on average (at most "
        f"{row['tokens_max']:,}), {row['tokens_per_event'] or 0:.1f} tokens per event kept; {row['events']:,} events, "
        f"{row['events_dropped']:,} of them beyond the token budget"
        for row in length_statistics(lengths).iter_rows(named=True)
    )


def length_bins(lengths: pl.DataFrame) -> pl.DataFrame:
    """Histograms of `tokens` and of `tokens_per_event` (narratives without an event left out), by split.

    lengths: as in `length_statistics`. Returns: of · split · at_least · below · narratives, at least
    FEWEST_NARRATIVES in each bin; a split that has not so many has no bins. BINS equal bins from the 1st to the
    99th percentile over all splits, of which neighbours are joined where they are too empty; the outermost hold
    the shortest and the longest narratives too.
    """
    told = lengths.select("split", tokens=_TOKENS, tokens_per_event=pl.when(_KEPT > 0).then(_TOKENS / _KEPT))
    schema = {"of": pl.String, "split": pl.String, "at_least": pl.Float64, "below": pl.Float64, "narratives": pl.Int64}
    rows = []
    for of in ("tokens", "tokens_per_event"):
        known = told.select("split", value=pl.col(of).cast(pl.Float64)).drop_nulls().sort(_IN_ORDER, "split")
        if known.is_empty():
            continue
        low, high = np.quantile(known["value"], [0.01, 0.99])
        edges = np.linspace(low, max(high, low + 1), BINS + 1)
        for part in known.partition_by("split", maintain_order=True):
            rows += [(of, part["split"][0], *one) for one in _joined(part["value"].to_numpy(), edges)]
    return pl.DataFrame(rows, schema=schema, orient="row")


def _joined(values: np.ndarray, edges: np.ndarray) -> list[tuple[float, float, int]]:
    """at_least, below, count of the bins, from the left joined until each holds enough."""
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    bins, begin, held = [], 0, 0
    for end, count in enumerate(counts.tolist(), start=1):
        held += count
        if held >= FEWEST_NARRATIVES:
            bins.append((float(edges[begin]), float(edges[end]), held))
            begin, held = end, 0
    if bins and begin < len(counts):
        at_least, _, last = bins.pop()
        bins.append((at_least, float(edges[-1]), last + held))
    return bins


def epoch_seed(seed: int, epoch: int) -> tuple[int, int]:
    """What decides where a run of this seed cuts long narratives in an epoch (numpy takes no negative seed)."""
    return seed % 2**32, epoch


def packing_table(
    lengths: pl.DataFrame,
    capacity: int,
    *,
    repeat_header: bool = False,
    seeds: Mapping[str, Sequence[int]] | None = None,
) -> pl.DataFrame:
    """How each split's narratives, each ended by EOS, lie in rows of `capacity` tokens, packed as in pretraining.

    lengths: split · n_tokens · n_header_tokens, one row per narrative. repeat_header: later windows of a long
    narrative begin with its header. seeds: by split, an `epoch_seed`, where long narratives are cut as in that
    epoch; without one as for an evaluation. Returns: split · documents · windows · rows ·
    rows_full (of the rows' places, those with a narrative's tokens; the rest is free or repeated
    context). Raises ValueError for a capacity below 3.
    """
    rows = []
    for part in lengths.sort(_IN_ORDER, "split", maintain_order=True).partition_by("split", maintain_order=True):
        sizes = part["n_tokens"].to_numpy().astype(np.int64) + 1
        headers = part["n_header_tokens"].to_numpy() if repeat_header else np.zeros_like(sizes)
        windows = cut(sizes, headers, capacity)
        n_rows = len(best_fit(windows.lengths, capacity))
        seed = (seeds or {}).get(part["split"][0])
        if seed is not None:
            windows = cut(sizes, headers, capacity, seed)
            n_rows = max(n_rows, len(best_fit(windows.lengths, capacity)))  # no epoch has fewer than an evaluation
        full = float(sizes.sum()) / (n_rows * capacity)
        rows.append((part["split"][0], len(sizes), len(windows), n_rows, full))
    schema = {"split": pl.String, **dict.fromkeys(("documents", "windows", "rows"), pl.Int64)}
    return pl.DataFrame(rows, schema=schema | {"rows_full": pl.Float64}, orient="row")
