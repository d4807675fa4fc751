"""How the narratives of a run, or of a benchmark's arms, turned out: how they were told, and how long they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf

from epicrisis.corpus.lengths import length_bins, length_table
from epicrisis.corpus.prepare import KEYS, Prepared
from epicrisis.evaluation.plots import plot_lengths, save
from epicrisis.tracking.run_directory import RunDirectory

LENGTHS = "narrative lengths"
READERS = ("llm", "encoder", "frozen_encoder")
"""Arms that read narratives token by token."""

SHARED_ROWS = (
    "each narrative with its question after it; those of one batch are laid into the rows of at most "
    "model.max_length that cost least to compute, where none sees another"
)
"""How classification batches narratives."""


@dataclass(frozen=True)
class Measured:
    """How the narratives of a run, or of an arm, were told, and how long they are."""

    facts: dict[str, Any]
    lengths: pl.DataFrame
    """As `length_table` returns it."""
    bins: pl.DataFrame
    """As `length_bins` returns it, with `budget`."""


def measured_arms(rows: pl.DataFrame, places: Mapping[str, RunDirectory]) -> dict[str, Measured]:
    """The narratives of the arms that read any, by arm; arms whose figures are all the same share one entry.

    rows: of the cohort. A split whose narratives are of other rows, such as those of a later prediction, is left
    out.
    """
    measured: dict[str, Measured] = {}
    names: dict[str, list[str]] = {}
    for name, place in places.items():
        arm = _measured_arm(rows, place)
        if arm is not None:
            figures = json.dumps([arm.facts, arm.lengths.to_dicts()])
            measured[figures] = arm
            names.setdefault(figures, []).append(name)
    return {", ".join(arms): measured[figures] for figures, arms in names.items()}


def _measured_arm(rows: pl.DataFrame, place: RunDirectory) -> Measured | None:
    told_as = place.dir / "adapters" / "narrative.json"
    config: Any = OmegaConf.to_container(OmegaConf.load(place.config)) if place.config.is_file() else {}
    if config.get("arm") not in READERS or not told_as.is_file():
        return None
    parts: dict[str, pl.DataFrame] = {}
    for prepared in (Prepared(place.dir), Prepared(place.dir / "judged")):
        for split in prepared.splits():
            if split not in parts and _is_of(prepared, split, rows):
                parts[split] = prepared.lengths([split])
    if not parts:
        return None
    told = json.loads(told_as.read_text())
    return measure(pl.concat(parts.values()), told, config["model"]["model_name"], rows=SHARED_ROWS)


def _is_of(prepared: Prepared, split: str, rows: pl.DataFrame) -> bool:
    told = prepared.narratives(split).select(KEYS).collect()
    return told.sort(KEYS).equals(rows.filter(pl.col("split") == split).select(KEYS).sort(KEYS))


def measure(lengths: pl.DataFrame, told: Mapping[str, Any], tokenizer: str, **more: str) -> Measured:
    """lengths: as `Prepared.lengths` returns them. told: what `Telling.inputs` says of how they came about."""
    budget = told["max_tokens"]
    facts = {name: told[name] for name in ("style", "dates", "values")}
    facts |= {"tokenizer": tokenizer, "token_budget": budget or "none", **more}
    bins = length_bins(lengths).with_columns(budget=pl.lit(budget, pl.Int64))
    return Measured(facts, length_table(lengths, told["style"], tokenizer), bins)


def facts_of(told: Mapping[str, Measured]) -> dict[str, Any]:
    """The facts of the only telling, or of each by the arms that read it."""
    if len(told) == 1:
        return next(iter(told.values())).facts
    return {label: one.facts for label, one in told.items()}


def lengths_of(told: Mapping[str, Measured]) -> pl.DataFrame | None:
    """The length tables of all tellings, with `arm` where there are several; None where nothing was told."""
    tables = [one.lengths.select(pl.lit(label).alias("arm"), pl.all()) for label, one in told.items()]
    whole = pl.concat(tables) if tables else None
    return whole.drop("arm") if whole is not None and len(tables) == 1 else whole


def plotted(run: RunDirectory, told: Mapping[str, Measured], title: str) -> Path:
    """How long the narratives are, drawn into the run's plots."""
    bins = pl.concat(one.bins.select(pl.lit(label).alias("told"), pl.all()) for label, one in told.items())
    return save(plot_lengths(bins, title), run.plots / "narrative_lengths.png")
