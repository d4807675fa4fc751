"""`epicrisis prepare`: events and labels become narratives and token ids, with a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epicrisis.commands.judging import report_corpus
from epicrisis.commands.processes import processes
from epicrisis.commands.train import open_inputs, open_together, refuse_unopenable
from epicrisis.corpus.executors import executor_for
from epicrisis.corpus.lengths import lengths_text
from epicrisis.corpus.prepare import prepare
from epicrisis.llm.arm import narrator_for, telling_for
from epicrisis.llm.base import load_tokenizer
from epicrisis.llm.pretrain import whole_records
from epicrisis.settings import load_settings
from epicrisis.tracking.progress import say
from epicrisis.training.device import make_accelerator


def run(config_filepath: Path | None, overrides: Sequence[str]) -> None:
    """Write narratives/, tokens/ and the reports of every row of the cohort into the run directory.

    No summary.json: a directory that is prepared can be prepared again, and trained in.
    """
    settings = load_settings(config_filepath, overrides)
    state = processes()
    refuse_unopenable(settings)
    cohort, lookups = open_inputs(settings, state, training=False)
    tokenizer = load_tokenizer(settings.model, make_accelerator(settings.training), settings.lora.new_code_tokens)
    run_directory = open_together(settings, state)
    history = cohort.history(cohort.rows)
    narrator = narrator_for(settings, lookups, cohort.rows, history, run_directory.dir)
    telling = telling_for(settings, narrator, lookups, tokenizer)
    if settings.narrative.records == "whole":
        telling = whole_records(telling)
    prepared = prepare(cohort.rows, history, telling, run_directory.dir, executor_for(settings.prepare))
    if state.is_main_process:
        said = lengths_text(prepared.lengths())
        lead = f"{cohort.rows.height:,} narratives told and tokenised; nothing was trained."
        report_corpus(run_directory, settings, cohort, lookups, telling.inputs(), rows=cohort.rows, lead=lead)
        say(f"{said}\nnarratives, tokens, coverage.html and report.html in {run_directory.dir}")
