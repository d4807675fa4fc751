"""`epicrisis predict`: a finished run and a split, of its own data or of new MEDS data, become predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epicrisis.commands.arms import make_arm
from epicrisis.commands.inputs import open_cohort, open_lookups
from epicrisis.commands.preflight import refuse_unless_answerable
from epicrisis.commands.processes import processes
from epicrisis.evaluation.predictions import task_predictions, write_predictions
from epicrisis.settings import load_settings, refuse
from epicrisis.tracking.progress import say
from epicrisis.tracking.run_directory import RunDirectory


def run(config_filepath: Path | None, overrides: Sequence[str]) -> None:
    """Load the run of training.output_dir and write the predictions of evaluation.split."""
    settings = load_settings(config_filepath, overrides)
    directory = RunDirectory(settings.training.output_dir)
    if not directory.finished:
        raise refuse("training.output_dir", f"{directory.dir} holds no finished run", "train it first")
    cohort = open_cohort(settings, training=False)
    refuse_unless_answerable(settings, cohort)
    rows = cohort.select(settings.evaluation.split)
    if rows.is_empty():
        raise refuse("evaluation.split", f"no row in {settings.evaluation.split}", "choose another split")
    fitted = make_arm(settings, open_lookups(settings, cohort)).load(directory.dir)
    predictions = task_predictions(rows, fitted.classes, fitted.predict(rows, cohort.history(rows)))
    folder = settings.evaluation.predictions_dir or directory.dir / "predictions"
    if processes().is_main_process:
        target = write_predictions(predictions, folder / f"{settings.evaluation.split}.parquet")
        say(f"{rows.height} predictions in {target}")
