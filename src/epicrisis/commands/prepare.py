"""`epicrisis prepare`: events and labels become narratives and token ids, with a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from epicrisis.commands.corpus_report import report_corpus
from epicrisis.commands.processes import processes
from epicrisis.commands.told_narratives import READERS
from epicrisis.commands.train import open_inputs, open_together, refuse_unopenable
from epicrisis.corpus.executors import executor_for
from epicrisis.corpus.lengths import lengths_text
from epicrisis.corpus.prepare import prepare
from epicrisis.corpus.telling import Telling
from epicrisis.settings import Settings, load_settings, refuse
from epicrisis.tracking.progress import say
from epicrisis.tracking.run_record import recording
from epicrisis.training.device import make_accelerator


def run(config_filepath: Path | None, overrides: Sequence[str]) -> None:
    """Write narratives/, tokens/ and the reports of every row of the cohort into the run directory.

    No summary.json: a directory that is prepared can be prepared again, and trained in.
    """
    settings = load_settings(config_filepath, overrides)
    state = processes()
    refuse_unopenable(settings)
    tell = teller_of(settings)
    cohort, lookups = open_inputs(settings, state, training=False)
    run_directory = open_together(settings, state)
    with recording(run_directory, active=state.is_main_process, ends="prepared"):
        history = cohort.history(cohort.rows)
        telling = tell(settings, lookups, cohort.rows, history, run_directory.dir, make_accelerator(settings.training))
        prepared = prepare(cohort.rows, history, telling, run_directory.dir, executor_for(settings.prepare))
        if state.is_main_process:
            said = lengths_text(prepared.lengths())
            lead = f"{cohort.rows.height:,} narratives told and tokenised; nothing was trained."
            report_corpus(run_directory, settings, cohort, lookups, telling.inputs(), rows=cohort.rows, lead=lead)
            say(f"{said}\nnarratives, tokens, coverage.html and report.html in {run_directory.dir}")


def teller_of(settings: Settings) -> Callable[..., Telling]:
    """How the settings' arm tells histories. Raises InputError for an arm that reads no narratives."""
    if settings.arm == "llm":
        from epicrisis.llm.arm import telling_of_run

        return telling_of_run
    if settings.arm in READERS:
        from epicrisis.encoders.narratives import telling_of_run as telling_of_encoder

        return telling_of_encoder
    raise refuse("arm", f"`{settings.arm}` reads no narratives", f"choose one of {', '.join(READERS)}")
