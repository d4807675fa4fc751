"""`epicrisis prepare`: events and labels become narratives and token ids, with a coverage report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epicrisis.commands.inputs import coverage_of
from epicrisis.commands.processes import processes
from epicrisis.commands.train import open_inputs, open_together, refuse_unopenable
from epicrisis.corpus.prepare import prepare
from epicrisis.llm.arm import telling_for
from epicrisis.llm.base import load_tokenizer
from epicrisis.llm.device import make_accelerator
from epicrisis.narrative import write_csv
from epicrisis.settings import load_settings
from epicrisis.tracking.progress import say


def run(config_filepath: Path | None, overrides: Sequence[str]) -> None:
    """Write narratives/, tokens/ and coverage.csv of every row of the cohort into the run directory."""
    settings = load_settings(config_filepath, overrides)
    state = processes()
    refuse_unopenable(settings)
    cohort, lookups = open_inputs(settings, state, training=False)
    tokenizer = load_tokenizer(settings.model, make_accelerator(settings.training))
    telling = telling_for(settings, lookups, tokenizer)
    run_directory = open_together(settings, state)
    prepared = prepare(cohort.rows, cohort.history(cohort.rows), telling, run_directory.dir)
    write_csv(coverage_of(cohort, cohort.rows, lookups), run_directory.dir / "coverage.csv")
    for row in prepared.statistics().iter_rows(named=True):
        say(
            f"{row['split']}: {row['n']} narratives, {row['tokens_mean']:.0f} tokens on average, "
            f"{row['events_told']} events, {row['events_dropped']} of them beyond the token budget"
        )
    say(f"narratives, tokens and coverage.csv in {run_directory.dir}")
