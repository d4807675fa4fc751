"""`epicrisis train`: the one training entry for every arm and stage."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import polars as pl
from accelerate import PartialState

from epicrisis.cohort import Cohort
from epicrisis.commands.arms import make_arm, pretrainer_of
from epicrisis.commands.corpus_report import report_corpus
from epicrisis.commands.inputs import open_cohort, open_lookups
from epicrisis.commands.judging import Predictions, judge_and_report
from epicrisis.commands.preflight import refuse_unless_runnable
from epicrisis.commands.processes import processes
from epicrisis.corpus.lengths import lengths_text
from epicrisis.corpus.prepare import Prepared
from epicrisis.evaluation.judge import Timing
from epicrisis.evaluation.predictions import task_predictions, with_split, write_predictions
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings, load_settings
from epicrisis.settings.tracking_checks import under_agent
from epicrisis.settings.watched import HIGHER_IS_BETTER
from epicrisis.tracking.progress import Stopwatch, say
from epicrisis.tracking.run_directory import RunDirectory, check_openable, open_run
from epicrisis.tracking.run_record import recording
from epicrisis.tracking.trackers import refuse_uninstalled, track

SPLITS_JUDGED = ("tuning", "held_out")

WORK_KEPT = ("checkpoints/*", "stamps/prepare*", "judged/*", "embeddings/*")
"""Where in a run directory an earlier attempt leaves work that is not done again."""


def run(config_filepath: Path | None, overrides: Sequence[str]) -> None:
    """Pretrain or classify, as the config says."""
    settings = of_agents_run(load_settings(config_filepath, overrides))
    refuse_uninstalled(settings)
    state = processes()
    refuse_unopenable(settings)
    cohort, lookups = open_inputs(settings, state)
    refuse_unless_runnable(settings, cohort, lookups)
    run_directory = open_together(settings, state)
    main = state.is_main_process
    with track(run_directory, settings, active=main) as tracked, recording(run_directory, active=main):
        if settings.stage == "pretrain":
            pretrain_stage(settings, cohort, lookups, tracked)
            return
        predictions = fit_and_predict(settings, cohort, lookups, tracked)
        if state.is_main_process:
            name = str(settings.arm)
            judge_and_report(tracked, settings, cohort, lookups, {name: predictions}, {name: run_directory})


def of_agents_run(settings: Settings) -> Settings:
    """The settings as they are; where an agent of a W&B sweep started this run, in a folder named by the run's id.

    So trials of one config do not meet in one run directory, and every process of a trial finds the same.
    """
    if not under_agent():
        return settings
    place = settings.training.output_dir / os.environ["WANDB_RUN_ID"]
    return settings.model_copy(update={"training": settings.training.model_copy(update={"output_dir": place})})


def refuse_unopenable(settings: Settings) -> None:
    """Raise InputError where the run directory cannot be used, before the data are read."""
    training = settings.training
    check_openable(RunDirectory(training.output_dir), training.overwrite_output_dir, training.resume)


def open_inputs(settings: Settings, state: PartialState, *, training: bool = True) -> tuple[Cohort, Lookups]:
    """The checked cohort and lookups.

    The main process goes first, since it converts foreign data for all; where it finds something wrong, the
    others find the same instead of waiting for it.
    """
    try:
        cohort = open_cohort(settings, training=training) if state.is_main_process else None
    finally:
        state.wait_for_everyone()
    cohort = cohort or open_cohort(settings, training=training)
    return cohort, open_lookups(settings, cohort)


def open_together(settings: Settings, state: PartialState) -> RunDirectory:
    """Open the run directory once; every process refuses an unusable one, so that none waits for another."""
    training = settings.training
    refuse_unopenable(settings)
    state.wait_for_everyone()
    if state.is_main_process:
        open_run(training.output_dir, settings.resolved(), training.overwrite_output_dir, training.resume)
    state.wait_for_everyone()
    return RunDirectory(training.output_dir)


def pretrain_stage(settings: Settings, cohort: Cohort, lookups: Lookups, run_directory: RunDirectory) -> None:
    """Pretraining on each train subject's latest visible history; leaves what classification begins with."""
    rows = latest_rows(cohort.rows.filter(pl.col("split").is_in(["train", "tuning"])))
    metrics = pretrainer_of(settings)(settings, lookups, rows, cohort.history(rows), run_directory)
    if not processes().is_main_process:
        return
    run_directory.log(event="judged", **_final(metrics))
    if settings.arm == "llm":
        finish_adapter(settings, cohort, lookups, run_directory, rows, metrics)
    else:
        finish_model(settings, cohort, run_directory, metrics)


def finish_adapter(
    settings: Settings,
    cohort: Cohort,
    lookups: Lookups,
    run_directory: RunDirectory,
    rows: pl.DataFrame,
    metrics: dict[str, float],
) -> None:
    """The summary and the report of continued pretraining on narratives. rows: those that were told."""
    text = (
        f"continued pretraining of {settings.model.model_name}: tuning perplexity "
        f"{metrics['perplexity_before']:.3f} before, {metrics['perplexity']:.3f} after"
    )
    metrics = {**metrics, "useful_token_share": _useful_token_share(run_directory)}
    adapter = run_directory.adapter("clinical")
    told = json.loads((adapter / "narrative.json").read_text())
    figures = report_corpus(run_directory, settings, cohort, lookups, told, rows=rows, lead=f"{text}.", trained=metrics)
    said = (
        f"{lengths_text(Prepared(run_directory.dir).lengths())}\n"
        f"{metrics['rows']:,} rows, {metrics['rows_full']:.1%} full; "
        f"of the places that training computed, {metrics['useful_token_share']:.1%} held a narrative's token"
    )
    summary = {"stage": "pretrain", **metrics, "metrics": _final(metrics), **figures, "cohort_notes": cohort.notes}
    run_directory.finish(summary, f"{text}\n{said}")
    say(f"{text}; adapter in {adapter}, report: {run_directory.report}")


def finish_model(settings: Settings, cohort: Cohort, run_directory: RunDirectory, metrics: dict[str, float]) -> None:
    """The summary of a model that was pretrained from scratch."""
    before, after = metrics["loss_before"], metrics["loss"]
    text = f"pretraining of {settings.arm}: tuning loss {before:.4f} before, {after:.4f} after"
    summary = {"stage": "pretrain", **metrics, "metrics": _final(metrics), "cohort_notes": cohort.notes}
    run_directory.finish(summary, text)
    say(f"{text}; model in {run_directory.dir / 'model'}")


def _useful_token_share(run: RunDirectory) -> float:
    """Of the places that training computed, those with a token: the mean over the intervals that were logged."""
    name = "train/useful_token_share"
    return fmean(line[name] for line in run.history() if name in line)


def _final(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a pretraining ended with on tuning, by the names under which runs are compared: `tuning/loss`."""
    return {f"tuning/{name}": value for name, value in metrics.items() if name in HIGHER_IS_BETTER}


def latest_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per subject, the last: its visible history holds those of the earlier ones."""
    return rows.sort("subject_id", "prediction_time").unique("subject_id", keep="last", maintain_order=True)


def fit_and_predict(settings: Settings, cohort: Cohort, lookups: Lookups, run_directory: RunDirectory) -> Predictions:
    """Fit one arm on train and tuning, keep it, predict tuning and held_out, and note how long that took."""
    arm, watch, continued = make_arm(settings, lookups), Stopwatch(), _begun_before(run_directory)
    learnt_on = cohort.rows.filter(pl.col("split").is_in(["train", "tuning"]))
    with watch.part("fit"):
        fitted = arm.fit(learnt_on, cohort.history(learnt_on), run_directory)
    judged = cohort.rows.filter(pl.col("split").is_in(SPLITS_JUDGED))
    with watch.part("predict"):
        probabilities = fitted.predict(judged, cohort.history(judged))
    told = with_split(task_predictions(judged, fitted.classes, probabilities), judged)
    predictions = {}
    for split in SPLITS_JUDGED:
        predictions[split] = told.filter(split=split).drop("split")
        if processes().is_main_process:
            write_predictions(predictions[split], run_directory.predictions(split))
    if processes().is_main_process:
        fitted.save(run_directory.dir)
        spent, n_subjects = watch.seconds(), judged["subject_id"].n_unique()
        timing = Timing(spent["fit"], spent["predict"], judged.height, n_subjects, continued)
        run_directory.write_json(run_directory.timing.name, asdict(timing))
    processes().wait_for_everyone()
    return predictions


def _begun_before(run_directory: RunDirectory) -> bool:
    """Whether an earlier attempt left work in the folder that this one need not do again."""
    return any(True for pattern in WORK_KEPT for _ in run_directory.dir.glob(pattern))
