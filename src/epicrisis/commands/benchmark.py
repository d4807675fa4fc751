"""`epicrisis benchmark`: many arms on the same rows, one table, one report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from epicrisis.cohort import Cohort, rows_fingerprint
from epicrisis.cohort.few_shot import Draw, shots
from epicrisis.commands.judging import Predictions, arm_directories, arm_path, draws_of, judge_and_report
from epicrisis.commands.preflight import refuse_unless_runnable
from epicrisis.commands.processes import processes
from epicrisis.commands.train import SPLITS_JUDGED, fit_and_predict, open_inputs, open_together, refuse_unopenable
from epicrisis.evaluation.predictions import read_predictions
from epicrisis.narrative import Lookups
from epicrisis.settings import InputError, Problem, Settings, load_settings, merge, refuse, settings_from
from epicrisis.settings.load import parse_overrides, read_yaml
from epicrisis.settings.schema import ArmSettings
from epicrisis.tracking.progress import say
from epicrisis.tracking.run_directory import RunDirectory, open_run
from epicrisis.tracking.run_record import recording
from epicrisis.tracking.stamps import mark_done, stage_done
from epicrisis.tracking.trackers import refuse_uninstalled, track

_SHARED = ("data", "benchmark", "evaluation")
"""What no arm may change: all are judged on the same rows in the same way."""


def run(config_filepath: Path | None, overrides: Sequence[str]) -> None:
    """Fit every arm of `benchmark.arms`, on few shots too where asked, and judge them together.

    An arm that finished before with the same settings on the same rows is not run again. Trackers are told of the
    benchmark's own table and plots, not of the arms' steps.
    """
    settings = load_settings(config_filepath, overrides)
    tree = tree_of(config_filepath, overrides)
    if not settings.benchmark.arms:
        raise refuse("benchmark.arms", "no arm is listed", "list at least one, as configs/demo/benchmark.yaml does")
    arms = settings_of_arms(settings, tree)
    refuse_uninstalled(settings)
    state = processes()
    refuse_unopenable(_reopening(settings))
    cohort, lookups = open_inputs(settings, state)
    refuse_unless_all_runnable(arms, cohort, lookups)
    directory, main = open_together(_reopening(settings), state), state.is_main_process
    with track(directory, settings, active=main) as tracked, recording(directory, active=main):
        predictions: dict[str, Predictions] = {}
        for draw in draws_of(settings):
            seen = replace(cohort, rows=shots(cohort.rows, draw.k, draw.replicate, settings.training.seed))
            predictions = {
                name: _run_arm(_on(own, draw), seen, lookups, f"{name}, {draw}" if draw.k else name, state)
                for name, own in arms.items()
            }
        if main:
            judge_and_report(tracked, settings, cohort, lookups, predictions, arm_directories(settings))


def tree_of(config_filepath: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The keys that were given, without defaults."""
    return merge(read_yaml(config_filepath) if config_filepath else {}, parse_overrides(overrides))


def settings_of_arms(settings: Settings, tree: dict[str, Any]) -> dict[str, Settings]:
    """Each arm's own settings. tree: see `tree_of`. InputError with all problems of all arms, each with its arm."""
    problems: list[Problem] = []
    found: dict[str, Settings] = {}
    folders: dict[Path, str] = {}
    for arm in settings.benchmark.arms:
        with _collecting(problems, arm.name):
            found[arm.name] = arm_settings(settings, tree, arm)
        other = folders.setdefault(arm_path(settings, arm), arm.name)
        if other != arm.name:
            what = f"its folder `{arm_path(settings, arm).name}` is that of `{other}` too"
            problems.append(Problem(_place(arm.name), what, "give it a name that differs in letters or digits"))
    if problems:
        raise InputError(problems)
    return found


def refuse_unless_all_runnable(arms: Mapping[str, Settings], cohort: Cohort, lookups: Lookups) -> None:
    """Raise InputError with the problems of all arms that would fail on this cohort, each with its arm."""
    problems: list[Problem] = []
    for name, own in arms.items():
        with _collecting(problems, name):
            refuse_unless_runnable(own, cohort, lookups)
    if problems:
        raise InputError(problems)


@contextmanager
def _collecting(problems: list[Problem], arm: str) -> Iterator[None]:
    """Bad input in the block is added to `problems`, with the arm's name before where it is."""
    try:
        yield
    except InputError as error:
        problems += [replace(problem, where=f"{_place(arm)}: {problem.where}") for problem in error.problems]


def _place(arm: str) -> str:
    return f"benchmark.arms ({arm})"


def arm_settings(settings: Settings, tree: dict[str, Any], arm: ArmSettings) -> Settings:
    """The benchmark's settings with the arm's own on top, and a run directory of its own."""
    own: dict[str, Any] = {}
    for key, value in arm.overrides.items():
        own = merge(own, _nested(key, value))
    shared = [key for key in own if key in _SHARED]
    if shared:
        raise InputError([Problem("overrides", f"changes `{key}`", "set it once for all arms") for key in shared])
    place = {"training": {"output_dir": str(arm_path(settings, arm))}}
    base = {key: value for key, value in tree.items() if key != "benchmark"}
    return settings_from(merge(merge({"stage": "classify", **base}, own), place))


def _nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b: 1` as `a: {b: 1}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _on(settings: Settings, draw: Draw) -> Settings:
    """An arm's settings with the run directory of its run on these shots."""
    place = draw.folder(settings.training.output_dir)
    return settings.model_copy(update={"training": settings.training.model_copy(update={"output_dir": place})})


def _reopening(settings: Settings) -> Settings:
    """A benchmark may always go on in its folder: its arms know by themselves what is done."""
    training = settings.training.model_copy(update={"resume": not settings.training.overwrite_output_dir})
    return settings.model_copy(update={"training": training})


def _inputs_of(settings: Settings, cohort: Cohort, lookups: Lookups) -> dict[str, Any]:
    """All that decides an arm's predictions: settings, data, rows, words and the clinical adapter's content."""
    decisive = settings.resolved()
    for section in ("benchmark", "evaluation", "synthetic", "wandb", "mlflow", "tensorboard"):
        del decisive[section]
    for key in ("output_dir", "overwrite_output_dir", "resume", "logging_steps"):
        del decisive["training"][key]
    inputs: dict[str, Any] = {
        "settings": decisive,
        "data": cohort.dataset.fingerprint(),
        "rows": rows_fingerprint(cohort.rows),
        "lookups": lookups.fingerprint(),
    }
    if settings.model.clinical_adapter is not None:
        from epicrisis.llm.adapters import adapter_directory

        inputs["clinical_adapter"] = adapter_directory(settings.model.clinical_adapter)
    return inputs


def _run_arm(settings: Settings, cohort: Cohort, lookups: Lookups, name: str, state: PartialState) -> Predictions:
    """Fit one arm, or read the predictions of the same arm run before on the same rows."""
    path = settings.training.output_dir
    directory = RunDirectory(path)
    inputs = _inputs_of(settings, cohort, lookups)
    if not settings.training.overwrite_output_dir and stage_done(path, "arm", inputs):
        if state.is_main_process:
            say(f"{name}: already there, {path}")
        return {split: read_predictions(directory.predictions(split)) for split in SPLITS_JUDGED}
    if state.is_main_process:
        say(f"{name}: fitting")
        open_run(path, settings.resolved(), overwrite=not settings.training.resume, resume=settings.training.resume)
    state.wait_for_everyone()
    with recording(directory, active=state.is_main_process):
        predictions = fit_and_predict(settings, cohort, lookups, directory)
    if state.is_main_process:
        mark_done(path, "arm", inputs, [directory.predictions(split) for split in SPLITS_JUDGED])
    state.wait_for_everyone()
    return predictions
