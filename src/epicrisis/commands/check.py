"""`epicrisis check`: is this config sound, and what would it do? Trains nothing, writes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from epicrisis.cohort import Cohort
from epicrisis.commands.inputs import coverage_of, open_cohort, open_lookups
from epicrisis.commands.preflight import refuse_unless_runnable
from epicrisis.commands.train import latest_rows
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings, load_settings

_SAMPLE = 200


def run(config_filepath: Path | None, overrides: Sequence[str]) -> None:
    """Print the cohort, the coverage of its codes and, for language models, tokens and steps."""
    settings = load_settings(config_filepath, overrides)
    cohort = open_cohort(settings)
    lookups = open_lookups(settings, cohort)
    refuse_unless_runnable(settings, cohort, lookups)
    print(f"config is sound: arm {settings.arm}, stage {settings.stage}, run directory {settings.training.output_dir}")
    print("\n".join(cohort.notes))
    sample = cohort.rows.sample(min(_SAMPLE, cohort.rows.height), seed=0)
    table = coverage_of(cohort, sample, lookups).filter(pl.col("vocabulary") == "*")
    readable = np.average(table["words"], weights=table["n_events"])
    print(f"{readable:.1%} of the events of {sample.height} sampled rows read as words")
    if settings.arm == "llm":
        print(_cost(settings, cohort, lookups, sample))


def _cost(settings: Settings, cohort: Cohort, lookups: Lookups, sample: pl.DataFrame) -> str:
    from epicrisis.corpus.prepare import prepare
    from epicrisis.llm.arm import telling_for
    from epicrisis.llm.base import load_tokenizer
    from epicrisis.llm.device import make_accelerator
    from epicrisis.llm.loop import make_plan

    tokenizer = load_tokenizer(settings.model, make_accelerator(settings.training))
    with tempfile.TemporaryDirectory() as place:
        telling = telling_for(settings, lookups, tokenizer)
        prepared = prepare(sample, cohort.history(sample), telling, Path(place))
        told = prepared.statistics()
    mean = float(np.average(told["tokens_mean"], weights=told["n"]))
    train = cohort.select("train")
    if settings.stage == "pretrain":
        train = latest_rows(train)
        items = max(1, round(train.height * mean / settings.model.max_length))
    else:
        items = train.height
    plan = make_plan(items, settings.training)
    tokens = train.height * mean * plan.n_steps / plan.steps_per_epoch
    return (
        f"{train.height} train narratives of {mean:.0f} tokens on average (from a sample): "
        f"about {plan.n_steps} optimiser steps, {plan.warmup_steps} of them warm-up, over {tokens:,.0f} tokens"
    )
