"""The search itself: an Optuna study in SQLite, whose every draw depends on the seed and the trial's number alone."""

from __future__ import annotations

import itertools
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from epicrisis.tracking.sweeps.sweep_file import Sweep

SamplerName = Literal["tpe", "gp"]

N_RANDOM = 5
"""Trials of `bayes` that are drawn at random before its model has enough to go by."""


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's own lines and its notices about experimental parts."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="optuna")
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)


def open_study(sweep: Sweep, file: Path) -> optuna.Study:
    """The study of a sweep in this SQLite file, as it was left there."""
    return optuna.create_study(
        storage=f"sqlite:///{file.resolve()}",
        study_name=sweep.path.stem,
        direction=sweep.goal,
        pruner=_pruner(sweep),
        load_if_exists=True,
    )


def ask(
    study: optuna.Study, sweep: Sweep, sampler: SamplerName, seed: int, default: Mapping[str, Any] | None
) -> tuple[optuna.Trial, dict[str, Any]]:
    """The next trial and its values: of a grid the next combination, else the default first and then what is drawn.

    default: the config's own values, where they lie in the space.
    """
    number = len(begun(study))
    study.sampler = _sampler(sweep, sampler, seed, number)
    wanted = _combination(sweep, default, number) if sweep.method == "grid" else default if number == 0 else None
    if wanted is not None:
        study.enqueue_trial({key: sweep.space[key].raw(value) for key, value in wanted.items()}, skip_if_exists=True)
    trial = study.ask()
    return trial, values_of(trial, sweep)


def ask_again(
    study: optuna.Study, sweep: Sweep, sampler: SamplerName, seed: int, left: FrozenTrial
) -> tuple[optuna.Trial, dict[str, Any]]:
    """A trial that a search which died had begun, with the values that it had then."""
    study.sampler = _sampler(sweep, sampler, seed, left.number)
    trial = optuna.Trial(study, left._trial_id)
    return trial, values_of(trial, sweep)


def values_of(trial: BaseTrial, sweep: Sweep) -> dict[str, Any]:
    """The trial's values by key, drawn where they are not yet."""
    return {key: own.suggest(trial, key) for key, own in sweep.space.items()}


def begun(study: optuna.Study) -> list[FrozenTrial]:
    """All trials that have begun, in order."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]


def _combination(sweep: Sweep, default: Mapping[str, Any] | None, number: int) -> Mapping[str, Any]:
    """The number-th of a grid, which begins with the default where that is one of its own."""
    lists = [own.grid or () for own in sweep.space.values()]
    combinations = (dict(zip(sweep.space, values, strict=True)) for values in itertools.product(*lists))
    if default is None:
        return next(itertools.islice(combinations, number, None))
    if number == 0:
        return default
    others = (one for one in combinations if not all(_equal(sweep, key, one[key], default[key]) for key in default))
    return next(itertools.islice(others, number - 1, None))


def _equal(sweep: Sweep, key: str, one: Any, other: Any) -> bool:
    own = sweep.space[key]
    return bool(own.raw(one) == own.raw(other))


def _sampler(sweep: Sweep, name: SamplerName, seed: int, number: int) -> optuna.samplers.BaseSampler:
    # A generator of the trial's own, so that a search that is resumed draws what it would have drawn.
    own = zlib.crc32(f"{seed}/{number}".encode())
    if sweep.method != "bayes":
        return optuna.samplers.RandomSampler(seed=own)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=own, n_startup_trials=N_RANDOM)
    return optuna.samplers.TPESampler(seed=own, n_startup_trials=N_RANDOM)


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    asked = sweep.early_terminate
    if asked is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.HyperbandPruner(asked.first, asked.max_iter or "auto", asked.eta)
