"""`epicrisis sweep`: a sweep file's search without a server, by the same command line that a W&B agent would run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna

from epicrisis.cohort import Cohort
from epicrisis.commands.inputs import open_cohort, open_lookups
from epicrisis.commands.preflight import refuse_unless_runnable
from epicrisis.narrative import Lookups
from epicrisis.settings import InputError, Problem, refuse
from epicrisis.tracking.progress import say
from epicrisis.tracking.sweeps.checks import Checked, check_sweep, metric_problems
from epicrisis.tracking.sweeps.command_line import devices
from epicrisis.tracking.sweeps.ranking import gain, write_best, write_report, write_table
from epicrisis.tracking.sweeps.search import STUDY, Plan, only_search, refuse_another, search
from epicrisis.tracking.sweeps.study import open_study, quiet_optuna
from epicrisis.tracking.sweeps.sweep_file import Sweep, read_sweep


def parser() -> argparse.ArgumentParser:
    """The command's own arguments; what is left over are overrides of every trial."""
    made = argparse.ArgumentParser(
        prog="epicrisis sweep", description="search a sweep file's space without a server", allow_abbrev=False
    )
    made.add_argument("sweep_filepath", type=Path, help="a sweep in W&B's syntax; see sweeps/ and docs/sweeps.md")
    made.add_argument("--count", type=int, help="trials wanted in all; by default run_cap, or all of a grid")
    made.add_argument("--jobs", type=int, default=1, help="trials at the same time (default 1)")
    made.add_argument("--output_dir", type=Path, help="where the sweep lies; by default runs/sweeps/<file's name>")
    made.add_argument("--sampler", choices=("tpe", "gp"), default="tpe", help="what method: bayes is searched by")
    made.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    return made


def run(given: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Run what is missing of the sweep's trials, one process each; leave a ranking, a report and the best config.

    Raises InputError for a sweep that cannot run, before its first trial.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "run epicrisis sweep by itself, with accelerate launch in the sweep's command"
        raise refuse("sweep", "was launched in several processes, each of which would search", fix)
    found = sound_sweep(given.sweep_filepath, overrides)
    sweep, checked = found.sweep, found.checked
    plan = _plan(given, sweep, checked, overrides)
    with only_search(plan.output_dir), quiet_optuna():
        refuse_another(sweep, plan)
        for text in checked.warnings:
            say(f"note: {text}")

        def each(study: optuna.Study) -> None:
            write_table(study, sweep, plan)
            write_best(study, sweep, plan)

        study = open_study(sweep, plan.output_dir / STUDY)
        try:
            search(sweep, plan, study, each)
        finally:  # of what there is, too, where it was stopped
            report = write_report(study, sweep, plan, list(checked.warnings))
        say(f"{gain(study, sweep, plan)}\nreport: {report}")


@dataclass(frozen=True)
class SoundSweep:
    """A sweep that can run on its cohort."""

    sweep: Sweep
    checked: Checked
    cohort: Cohort
    lookups: Lookups


def sound_sweep(path: Path, overrides: Sequence[str]) -> SoundSweep:
    """The sweep of a file, after everything about it was asked that can be before a trial runs; else InputError."""
    sweep = read_sweep(path)
    checked = check_sweep(sweep, overrides)
    if not Path(sweep.program).is_file():
        raise refuse("program", f"{sweep.program} is not there", "run it from the repository's root, or mend the path")
    settings = checked.settings
    cohort = open_cohort(settings)
    lookups = open_lookups(settings, cohort)
    problems = metric_problems(sweep, settings, checked.candidates, cohort.task.kind, cohort.task.classes)
    for where, own in {"the config": settings, **checked.candidates}.items():
        try:
            refuse_unless_runnable(own, cohort, lookups)
        except InputError as error:
            problems += [Problem(f"{where}: {problem.where}", problem.what, problem.fix) for problem in error.problems]
            if where == "the config":
                break  # and so of all trials
    if problems:
        raise InputError(problems)
    return SoundSweep(sweep, checked, cohort, lookups)


def wanted_trials(sweep: Sweep, count: int | None) -> int | None:
    """Trials in all, of which a grid has no more than combinations; None where nothing says how many."""
    asked = count if count is not None else sweep.run_cap
    if sweep.method != "grid":
        return asked
    return sweep.n_grid if asked is None else min(asked, sweep.n_grid)


def _plan(given: argparse.Namespace, sweep: Sweep, checked: Checked, overrides: Sequence[str]) -> Plan:
    for name in ("count", "jobs"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise refuse(f"--{name}", f"is {getattr(given, name)}", "give a number above 0")
    count = wanted_trials(sweep, given.count)
    if count is None:
        raise refuse("--count", f"is not given, and method {sweep.method} has no end", "give --count 12, or run_cap")
    return Plan(
        output_dir=given.output_dir or Path("runs/sweeps") / sweep.path.stem,
        count=count,
        jobs=given.jobs,
        sampler=given.sampler,
        seed=given.seed,
        overrides=tuple(overrides),
        default=checked.default,
        base=checked.base,
        devices=devices(given.jobs),
    )
