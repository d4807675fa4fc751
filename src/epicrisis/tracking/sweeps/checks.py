"""Can every trial of a sweep run, and is it ranked by something that it logs? Asked before the first one begins."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from epicrisis.settings import InputError, Problem, Settings, merge, settings_from
from epicrisis.settings.load import parse_overrides, read_yaml
from epicrisis.settings.watched import higher_is_better, logged_metrics
from epicrisis.tracking.sweeps.distributions import Choices, text_of
from epicrisis.tracking.sweeps.sweep_file import Sweep

_ROWS = "decides which rows are learnt from and judged, so that trials could not be compared"
_JUDGING = "changes nothing of what a trial learns"
NEVER_SWEPT = {
    "training.output_dir": "each trial has its own run directory",
    "training.resume": "the search says which trials go on",
    "training.overwrite_output_dir": "the search says which trials go on",
    "stage": "stages log different metrics",
    "data.meds_dir": _ROWS,
    "data.labels_dir": _ROWS,
    "data.index_dates_filepath": _ROWS,
    "data.control_index_dates": _ROWS,
    "data.cutoff_months": _ROWS,
    "data.patients_json": _ROWS,
    "data.data_dir": _ROWS,
    "data.vocab_filepath": _ROWS,
    "data.labels_filepath": _ROWS,
    "data.oracle_dir": _JUDGING,
    "evaluation": _JUDGING,
    "benchmark": "train runs no benchmark",
    "prepare": "what is made does not depend on it",
    **dict.fromkeys(("synthetic", "generation", "fuse"), "train does not read it"),
    **dict.fromkeys(("wandb", "mlflow", "tensorboard"), _JUDGING),
}
"""Keys, and whole sections, that cannot be searched, and why."""

_PLACED_BY_THE_SEARCH = ("training.output_dir", "training.resume", "training.overwrite_output_dir")
_OTHER_TEXT = ("narrative.", "model.model_name", "structured.tokenizer", "data.")


@dataclass(frozen=True)
class Checked:
    """A sound sweep. base: the config of a trial but for what is drawn, as a plain tree, and as settings.

    candidates: settings with each of the values that stand for the space, by `key=value`. default: the config's own
    values where they lie in the space, else None, and `outside` names the keys where they do not.
    """

    base: dict[str, Any]
    settings: Settings
    candidates: Mapping[str, Settings]
    default: Mapping[str, Any] | None
    outside: tuple[str, ...]
    warnings: tuple[str, ...]


def check_sweep(sweep: Sweep, overrides: Sequence[str]) -> Checked:
    """The sweep with the config that it names. overrides: of every trial, beside those of its command.

    Raises InputError with all problems: keys that are none, or not to be searched; values that no config could have;
    a metric that no run logs, or that is of held_out.
    """
    given = [*sweep.command_overrides, *overrides]
    problems = [*_not_searched(sweep), *_overridden(sweep, given), *_placed(overrides)]
    base = merge(read_yaml(sweep.config_filepath) if sweep.config_filepath else {}, {})
    try:
        base = merge(base, parse_overrides([*sweep.arguments({}), *given]))
        settings = settings_from(base)
    except InputError as error:
        file = sweep.config_filepath or sweep.path
        problems += [replace(problem, where=f"{file}: {problem.where}") for problem in error.problems]
        raise InputError(problems) from None
    candidates: dict[str, Settings] = {}
    for key in (key for key in sweep.space if _reason(key) is None):
        problems += _problems_of(sweep, key, base, candidates)
    problems += metric_problems(sweep, settings, candidates)
    if problems:
        raise InputError(problems)
    default, outside = _default(sweep, settings)
    return Checked(base, settings, candidates, default, outside, tuple(_warnings(sweep, settings)))


def metric_problems(
    sweep: Sweep,
    settings: Settings,
    candidates: Mapping[str, Settings],
    kind: str | None = None,
    classes: Sequence[str] = (),
) -> list[Problem]:
    """What is wrong with ranking by the sweep's metric. kind, classes: see `logged_metrics`."""
    metric = sweep.metric
    if metric.startswith("held_out/"):
        what = f"{metric} is of the rows that are kept for the final judgement: choosing by them is leakage"
        return [Problem("metric.name", what, "take eval/auroc, or tuning/auroc")]
    for where, own in {"the config": settings, **candidates}.items():
        known = logged_metrics(own, kind, classes)
        of_class = kind is None and ":" in metric and metric.partition(":")[0] in known  # classes are known by the data
        if metric not in known and not of_class:
            near = difflib.get_close_matches(metric, known, n=1, cutoff=0.5)
            fix = f"did you mean {near[0]}? " if near else ""
            what = f"{metric!r} is not logged by the arm {own.arm}, stage {own.stage}"
            what += "" if where == "the config" else f" ({where})"
            return [Problem("metric.name", what, f"{fix}it logs {', '.join(known)}")]
    if sweep.early_terminate is not None and not metric.startswith("eval/"):
        what = f"{metric} is known when a trial has ended, and nothing is left to stop"
        return [Problem("early_terminate", what, "rank by a metric of evaluations (eval/…), or leave it out")]
    return []


def _reason(key: str) -> str | None:
    """Why a key is not to be searched; None for one that is."""
    return next((why for name, why in NEVER_SWEPT.items() if key == name or key.startswith(f"{name}.")), None)


def _not_searched(sweep: Sweep) -> Iterator[Problem]:
    for key in sweep.space:
        reason = _reason(key)
        if reason is not None:
            yield Problem(f"parameters.{key}", f"is not to be searched: {reason}", "take it out of the sweep")
    for key in sweep.fixed:
        if key in _PLACED_BY_THE_SEARCH:
            yield Problem(f"parameters.{key}", f"is not to be set here: {NEVER_SWEPT[key]}", "take it out of the sweep")


def _overridden(sweep: Sweep, given: Sequence[str]) -> Iterator[Problem]:
    for override in given:
        key = override.removeprefix("--").partition("=")[0]
        if key in sweep.space:
            what = "is searched, and an override would take its place in every trial"
            yield Problem(key, what, "leave the override out, or take the parameter out of the sweep")


def _placed(overrides: Sequence[str]) -> Iterator[Problem]:
    for key in (override.removeprefix("--").partition("=")[0] for override in overrides):
        if key in _PLACED_BY_THE_SEARCH:
            yield Problem(key, f"is not to be overridden: {NEVER_SWEPT[key]}", "--output_dir is the sweep's folder")


def _problems_of(sweep: Sweep, key: str, base: dict[str, Any], candidates: dict[str, Settings]) -> list[Problem]:
    """What is wrong with a parameter's values, each laid over the base config as in a trial; adds the sound ones."""
    problems = []
    for value in sweep.space[key].trial_points:
        text = f"{key}={text_of(value)}"
        try:
            candidates[text] = settings_from(merge(base, parse_overrides([text])))
        except InputError as error:
            found = error.problems
            if any(problem.what == "is no key of a config" for problem in found):
                return [Problem(f"parameters.{key}", problem.what, problem.fix) for problem in found]
            problems += [
                Problem(f"parameters.{key} = {text_of(value)}", f"{problem.where}: {problem.what}", problem.fix)
                for problem in found
            ]
    return problems


def _default(sweep: Sweep, settings: Settings) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    """The config's own values of what is searched, and the keys where they lie outside of the space."""
    tree = settings.resolved()
    own = {key: _at(tree, key) for key in sweep.space}
    outside = tuple(key for key, value in own.items() if not sweep.space[key].holds(value))
    return (None if outside else own), outside


def _at(tree: Mapping[str, Any], key: str) -> Any:
    found: Any = tree
    for part in key.split("."):
        found = found[part]
    return found


def _warnings(sweep: Sweep, settings: Settings) -> Iterator[str]:
    """What works and is likely to be meant otherwise."""
    split, _, name = sweep.metric.partition("/")
    higher = higher_is_better(sweep.metric)
    if higher is not None and higher != (sweep.goal == "maximize"):
        yield f"metric.goal is {sweep.goal}, and of {sweep.metric} {'more' if higher else 'less'} is better"
    if split == "eval" and settings.training.keep_best and settings.training.metric_for_best != name:
        watched = settings.training.metric_for_best
        yield (
            f"trials are ranked by their best {sweep.metric}, and keep the weights with the best eval/{watched}: "
            f"training.metric_for_best={name} would keep those"
        )
    if name in ("loss", "perplexity") and "training.class_weights" in sweep.space:
        yield f"{sweep.metric} is weighted by training.class_weights, so that trials with other weights differ in scale"
    if settings.stage == "pretrain" and any(key.startswith(_OTHER_TEXT) for key in sweep.space):
        yield f"{sweep.metric} is taken on other text where narratives or tokens differ: compare such trials with care"
    for key, own in sweep.space.items():
        if isinstance(own, Choices) and None in own.values:
            yield f"a W&B agent passes null of {key} as the word None; the search without a server passes null"
