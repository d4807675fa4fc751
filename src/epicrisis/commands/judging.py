"""From predictions to results.csv, plots and the report, for one arm or many on the same rows."""

from __future__ import annotations

import json
from collections.abc import Mapping

import polars as pl

from epicrisis.cohort import Cohort
from epicrisis.commands.inputs import coverage_of, task_name
from epicrisis.commands.oracle import OracleArm
from epicrisis.corpus.prepare import Prepared
from epicrisis.evaluation.calibration import Temperature, fit_temperature
from epicrisis.evaluation.canaries import canaries, history_scalars
from epicrisis.evaluation.judge import Judgement, Scope, judge, print_results
from epicrisis.evaluation.plots import plot_all
from epicrisis.evaluation.predictions import binary_predictions, with_split
from epicrisis.evaluation.report import ReportContent, split_counts, write_report
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings, refuse
from epicrisis.tracking.progress import say
from epicrisis.tracking.run_directory import RunDirectory

Predictions = dict[str, pl.DataFrame]
"""One arm's predictions tables by split (tuning, held_out)."""

ORACLE = "oracle"


def judge_and_report(
    run: RunDirectory,
    settings: Settings,
    cohort: Cohort,
    lookups: Lookups,
    arms: Mapping[str, Predictions],
    places: Mapping[str, RunDirectory],
) -> Judgement:
    """Judge every arm on all of held_out; write results.csv, plots and the report; print the table."""
    rows = cohort.select("held_out")
    arms = {**_oracle(settings, cohort), **arms}
    held_out = {arm: tables["held_out"] for arm, tables in arms.items()}
    dataset, task = task_name(settings, cohort)
    judgement = judge(
        held_out,
        rows,
        Scope(dataset, task),
        temperatures=_temperatures(settings, cohort, arms),
        n_resamples=settings.evaluation.bootstrap_resamples,
        seed=settings.training.seed,
    )
    plots = plot_all(held_out, run.plots, f"{dataset}, {task}, held_out")
    write_report(run, _content(run, settings, cohort, lookups, judgement, plots, _arm_notes(places)))
    print_results(judgement)
    say(f"report: {run.report}")
    return judgement


def refuse_unless_judgeable(settings: Settings, cohort: Cohort) -> None:
    """Raise InputError where no arm could be judged: no held_out row, or true risks of other rows."""
    if cohort.select("held_out").is_empty():
        raise refuse("data", "no held_out row to judge on", "give labels for held_out subjects too")
    _oracle(settings, cohort)


def _arm_notes(places: Mapping[str, RunDirectory]) -> dict[str, str]:
    """What fitting had to say, such as what was not tuned and why, from each arm's own directory."""
    files = {name: place.dir / "arm.json" for name, place in places.items()}
    notes = {name: json.loads(file.read_text())["notes"] for name, file in files.items() if file.is_file()}
    return {name: "; ".join(said) for name, said in notes.items() if said}


def _content(run, settings, cohort, lookups, judgement, plots, arm_notes) -> ReportContent:
    history = cohort.history(cohort.rows)
    scalars = history_scalars(history.events(), cohort.rows)
    return ReportContent(
        judgement,
        plots=plots,
        splits=split_counts(cohort.rows),
        coverage=coverage_of(cohort, cohort.rows, lookups),
        canaries=canaries(scalars, cohort.rows, n_resamples=settings.evaluation.bootstrap_resamples),
        cohort_notes=[*cohort.notes, *lookups.notes],
        narrative=narrative_figures(run, settings),
        arm_notes=arm_notes,
        baseline=settings.benchmark.reference,
        environment=json.loads(run.environment.read_text()),
        config=settings.resolved(),
    )


def narrative_figures(run: RunDirectory, settings: Settings) -> dict[str, object]:
    """Style and token figures of the narratives that this run, or its arms, were trained on."""
    figures: dict[str, object] = {}
    for tokens in sorted(run.dir.glob("**/tokens")):
        prepared = Prepared(tokens.parent)
        for row in prepared.statistics().iter_rows(named=True):
            split = row.pop("split")
            figures.setdefault(split, {key: round(value, 1) for key, value in row.items()})
    if figures:
        figures = {"style": settings.narrative.style, "dates": settings.narrative.dates, **figures}
    return figures


def _oracle(settings: Settings, cohort: Cohort) -> dict[str, Predictions]:
    if settings.data.oracle_dir is None:
        return {}
    arm = OracleArm(settings.data.oracle_dir)
    tables = {}
    for split in ("tuning", "held_out"):
        rows = cohort.select(split)
        tables[split] = binary_predictions(rows, arm.predict(rows, cohort.history(rows)))
    return {ORACLE: tables}


def _temperatures(settings: Settings, cohort: Cohort, arms: Mapping[str, Predictions]) -> dict[str, Temperature]:
    if settings.evaluation.calibration == "none":
        return {}
    tuning = cohort.select("tuning")
    return {
        arm: fit_temperature(with_split(tables["tuning"], tuning))
        for arm, tables in arms.items()
        if arm != ORACLE and tables["tuning"].height
    }
