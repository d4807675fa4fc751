"""What a run shows in the end: arms' predictions judged on the same rows, in a table, plots and a report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from epicrisis.cohort import Cohort, rows_fingerprint
from epicrisis.cohort.few_shot import REPLICATES, Draw, draws, shortfalls
from epicrisis.cohort.task import kind_of_labels
from epicrisis.commands.inputs import coverage_of, task_name
from epicrisis.commands.oracle import OracleArm
from epicrisis.commands.told_narratives import LENGTHS, facts_of, lengths_of, measured_arms, plotted
from epicrisis.evaluation.calibration import Temperature, fit_temperature
from epicrisis.evaluation.canaries import Canary, canaries, history_scalars
from epicrisis.evaluation.few_shot import METRICS, print_curves
from epicrisis.evaluation.judge import Judgement, Scope, Timing, judge, print_results
from epicrisis.evaluation.plots import plot_all, plot_few_shot, save
from epicrisis.evaluation.predictions import one_against_rest, read_predictions, task_predictions, with_split
from epicrisis.evaluation.report import ReportContent, split_counts, write_report
from epicrisis.evaluation.survival_plots import plot_survival
from epicrisis.narrative import Lookups
from epicrisis.narrative.coverage import hide_few
from epicrisis.settings import Settings, refuse
from epicrisis.settings.schema import ArmSettings
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
    """Judge every arm on all of held_out; write results.csv, plots and the report; print the table.

    arms: of a benchmark on few shots, the predictions of its last draw (see `draws_of`); those of the others are
    read where they lie. places: the arms' run directories; of a single run, that itself.
    """
    own, arms = arms, {**_oracle(settings, cohort), **arms}
    held_out = {arm: tables["held_out"] for arm, tables in arms.items()}
    dataset, task = task_name(settings, cohort)
    is_benchmark = run.dir not in {place.dir for place in places.values()}
    *others, last = draws_of(settings) if is_benchmark else [Draw()]
    judgement = _judged(settings, cohort, arms, last)
    fewer = [_judged(settings, cohort, _predictions_on(settings, draw), draw).results for draw in others]
    few_shot = pl.concat(fewer) if fewer else None
    title = f"{dataset}, {task}, held_out"
    plots = _curves(held_out, run.plots, title)
    if few_shot is not None:
        plots = {**_few_shot_curves(pl.concat([few_shot, judgement.results]), run.plots, title), **plots}
    notes = _shortfalls(cohort, [*others, last])
    content = _content(run, settings, cohort, lookups, judgement, plots, places, few_shot, notes)
    if not is_benchmark:
        metrics = _final_metrics(cohort, judgement, own)
        run.log(event="judged", **metrics)
        content = replace(content, metrics=metrics)
    write_report(run, content)
    print_results(judgement)
    if few_shot is not None:
        print_curves(pl.concat([few_shot, judgement.results]), "auroc")
    say(f"report: {run.report}")
    return judgement


def arm_path(settings: Settings, arm: ArmSettings) -> Path:
    """Where an arm of a benchmark is kept."""
    folder = re.sub(r"[^A-Za-z0-9]+", "-", arm.name).strip("-").lower()
    return settings.training.output_dir / "arms" / folder


def draws_of(settings: Settings) -> list[Draw]:
    """What every arm of a benchmark is run on, from few shots to many; without few shots, all rows once."""
    few_shot = settings.benchmark.few_shot
    return draws(few_shot.k, few_shot.replicates or REPLICATES) if few_shot.k else [Draw()]


def arm_directories(settings: Settings) -> dict[str, RunDirectory]:
    """Each arm's run directory, on the last of the draws; empty where the config lists no arms."""
    *_, last = draws_of(settings)
    return {arm.name: RunDirectory(last.folder(arm_path(settings, arm))) for arm in settings.benchmark.arms}


def _predictions_on(settings: Settings, draw: Draw) -> dict[str, Predictions]:
    """What every arm predicted after it had learnt from these shots."""
    places = {arm.name: RunDirectory(draw.folder(arm_path(settings, arm))) for arm in settings.benchmark.arms}
    return {
        name: {split: read_predictions(place.predictions(split)) for split in ("tuning", "held_out")}
        for name, place in places.items()
    }


def _judged(settings: Settings, cohort: Cohort, arms: Mapping[str, Predictions], draw: Draw) -> Judgement:
    dataset, task = task_name(settings, cohort)
    return judge(
        {arm: tables["held_out"] for arm, tables in arms.items()},
        cohort.select("held_out"),
        Scope(dataset, task, k=draw.k, replicate=draw.replicate),
        temperatures=_temperatures(settings, cohort, arms),
        n_resamples=settings.evaluation.bootstrap_resamples,
        seed=settings.training.seed,
        train=cohort.select("train"),
    )


def _final_metrics(cohort: Cohort, judgement: Judgement, single: Mapping[str, Predictions]) -> dict[str, float]:
    """Every number that a single run ended with, under `tuning/<metric>` and `held_out/<metric>`.

    Tuning is judged without intervals, and not by what was calibrated on it; without rows there it is left out.
    """
    [(arm, tables)] = single.items()
    judged = {"held_out": judgement.estimates[arm]}
    rows = cohort.select("tuning")
    if not rows.is_empty():
        scope = replace(judgement.scope, split="tuning")
        train = cohort.select("train")
        tuning = judge({arm: tables["tuning"]}, rows, scope, oracle=None, n_resamples=0, train=train)
        judged = {"tuning": tuning.estimates[arm], **judged}
    return {
        f"{split}/{metric}": estimate.value
        for split, estimates in judged.items()
        for metric, estimate in estimates.items()
        if estimate.value is not None
    }


def _few_shot_curves(results: pl.DataFrame, folder: Path, title: str) -> dict[str, Path]:
    return {
        f"few shots, {metric}": save(plot_few_shot(results, metric, title), folder / f"few_shot_{metric}.png")
        for metric in METRICS
    }


def _shortfalls(cohort: Cohort, made: Sequence[Draw]) -> list[str]:
    """What there is too little of, for each k said only where it was enough for the k before."""
    said: dict[str, str] = {}
    for k in sorted({draw.k for draw in made if draw.k is not None}):
        for note in shortfalls(cohort.rows, k):
            said.setdefault(note.replace(f"than {k} ", "than k "), note)
    return list(said.values())


def _curves(held_out: Mapping[str, pl.DataFrame], folder: Path, title: str) -> dict[str, Path]:
    """Curves of each arm; where a task is not binary, for each class against the rest."""
    if all("horizon_days" in table.columns for table in held_out.values()):
        return plot_survival(held_out, folder, title)
    if all("class" not in table.columns for table in held_out.values()):
        return plot_all(held_out, folder, title)
    by_arm = {arm: one_against_rest(table) for arm, table in held_out.items()}
    plots: dict[str, Path] = {}
    for number, name in enumerate(next(iter(by_arm.values()))):
        tables = {arm: classes[name] for arm, classes in by_arm.items()}
        made = plot_all(tables, folder / f"class_{number}", f"{title}, {name}")
        plots |= {f"{kind}, {name}": path for kind, path in made.items()}
    return plots


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


def _timings(places: Mapping[str, RunDirectory]) -> dict[str, Timing]:
    """How long each arm took when it ran, which may have been long ago."""
    files = {name: place.timing for name, place in places.items()}
    return {name: Timing(**json.loads(file.read_text())) for name, file in files.items() if file.is_file()}


def _content(
    run: RunDirectory,
    settings: Settings,
    cohort: Cohort,
    lookups: Lookups,
    judgement: Judgement,
    plots: Mapping[str, Path],
    places: Mapping[str, RunDirectory],
    few_shot: pl.DataFrame | None,
    notes: Sequence[str],
) -> ReportContent:
    history = cohort.history(cohort.rows)
    scalars = history_scalars(history.events(), cohort.rows)
    told = measured_arms(cohort.rows, places)
    if told:
        plots = {**plots, LENGTHS: plotted(run, told, ", ".join(task_name(settings, cohort)))}
    return ReportContent(
        judgement,
        plots=plots,
        splits=split_counts(cohort.rows),
        coverage=hide_few(coverage_of(cohort, cohort.rows, lookups)),
        canaries=_canaries(settings, scalars, cohort.rows),
        cohort_notes=[*cohort.notes, *notes, *lookups.notes],
        few_shot=few_shot,
        narrative=facts_of(told),
        lengths=lengths_of(told),
        arm_notes=_arm_notes(places),
        baseline=settings.benchmark.reference,
        rows_fingerprint=rows_fingerprint(cohort.select("held_out")),
        timings=_timings(places),
        environment=json.loads(run.environment.read_text()),
        config=settings.resolved(),
    )


def _canaries(settings: Settings, scalars: pl.DataFrame, rows: pl.DataFrame) -> list[Canary]:
    """Of times to an event, whether it comes by the farthest horizon, among rows of which that is known."""
    n_resamples = settings.evaluation.bootstrap_resamples
    if kind_of_labels(rows) != "survival":
        return canaries(scalars, rows, n_resamples=n_resamples)
    horizon, followed = settings.survival.horizons_days[-1], pl.col("label").struct
    comes = followed.field("observed") & (followed.field("days") <= horizon)
    known = rows.filter(comes | (followed.field("days") > horizon)).with_columns(label=comes)
    found = canaries(scalars, known, n_resamples=n_resamples)
    return [replace(canary, reads=f"{canary.reads}; for the event by {horizon:g} days") for canary in found]


def _oracle(settings: Settings, cohort: Cohort) -> dict[str, Predictions]:
    if settings.data.oracle_dir is None:
        return {}
    arm = OracleArm(settings.data.oracle_dir, settings.survival.horizons_days, cohort.task.kind == "survival")
    tables = {}
    for split in ("tuning", "held_out"):
        rows = cohort.select(split)
        tables[split] = task_predictions(rows, arm.classes, arm.predict(rows, cohort.history(rows)))
    return {ORACLE: tables}


def _temperatures(settings: Settings, cohort: Cohort, arms: Mapping[str, Predictions]) -> dict[str, Temperature]:
    if settings.evaluation.calibration == "none" or cohort.task.kind == "survival":
        return {}
    tuning = cohort.select("tuning")
    return {
        arm: fit_temperature(with_split(tables["tuning"], tuning))
        for arm, tables in arms.items()
        if arm != ORACLE and tables["tuning"].height
    }
