"""`epicrisis evaluate`: a finished run's predictions become metrics with intervals, plots and a report again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epicrisis.commands.benchmark import arm_directories
from epicrisis.commands.inputs import open_cohort, open_lookups
from epicrisis.commands.judging import judge_and_report
from epicrisis.commands.train import SPLITS_JUDGED
from epicrisis.evaluation.predictions import read_predictions
from epicrisis.settings import load_settings, refuse
from epicrisis.tracking.run_directory import RunDirectory


def run(config_filepath: Path | None, overrides: Sequence[str]) -> None:
    """Judge the predictions that a train or benchmark run left in training.output_dir; nothing is fitted."""
    settings = load_settings(config_filepath, overrides)
    directory = RunDirectory(settings.training.output_dir)
    if not directory.environment.is_file():
        raise refuse("training.output_dir", f"{directory.dir} holds no run", "train or benchmark first")
    places = arm_directories(settings) or {str(settings.arm): directory}
    arms = {
        name: {split: read_predictions(place.predictions(split)) for split in SPLITS_JUDGED}
        for name, place in places.items()
    }
    cohort = open_cohort(settings)
    judge_and_report(directory, settings, cohort, open_lookups(settings, cohort), arms, places)
