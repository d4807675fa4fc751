"""Every arm on the same rows: metrics with intervals, next to the oracle, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from epicrisis.cohort.task import TaskKind, classes_of_labels, follow_up, kind_of_labels, label_matrix
from epicrisis.evaluation.bootstrap import Draws, Estimate, bootstrap, lift_share, paired_difference
from epicrisis.evaluation.calibration import Temperature, apply_temperature
from epicrisis.evaluation.predictions import check_rows_match, checked
from epicrisis.evaluation.survival import C_INDEX, IBS, UNO, Censoring
from epicrisis.settings.problems import refuse
from epicrisis.tracking.progress import duration

LIFT_SHARE = "oracle_lift_share"
CALIBRATED = {"brier": "brier_calibrated", "ece": "ece_calibrated"}
RESULTS_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("dataset", "task", "arm", "split"), pl.String()),
        **dict.fromkeys(("k", "replicate"), pl.Int64()),
        "metric": pl.String(),
        **dict.fromkeys(("value", "lower", "upper"), pl.Float64()),
        **dict.fromkeys(("n", "n_positive"), pl.Int64()),
    }
)


@dataclass(frozen=True)
class Scope:
    """What was judged. k and replicate belong to few-shot runs; None means all training rows."""

    dataset: str
    task: str
    split: str = "held_out"
    k: int | None = None
    replicate: int | None = None


@dataclass(frozen=True)
class Judgement:
    """The outcome of judging: estimates by arm and metric, on n rows of which n_positive are positive.

    Where there are several classes or labels, n_positive is None, `auroc` and `auprc` are the plain means over classes,
    and `auroc:<class>` is of one class against the rest (see `class_metrics`), with the rows that have it as
    n_positive in the results. Of times to an event it counts the events observed. positives: rows that have a class, by
    class. draws: each arm's resamples, for further paired comparisons. temperatures: as given to `judge`.
    """

    scope: Scope
    n: int
    n_positive: int | None
    n_subjects: int
    estimates: dict[str, dict[str, Estimate]]
    draws: dict[str, Draws] = field(repr=False)
    temperatures: dict[str, Temperature]
    oracle: str | None
    kind: TaskKind = "binary"
    positives: Mapping[str, int] = field(default_factory=dict)

    @property
    def results(self) -> pl.DataFrame:
        """The contract's results table: one row per arm and metric, value empty where undefined."""
        scope: dict[str, Any] = {
            "dataset": self.scope.dataset,
            "task": self.scope.task,
            "split": self.scope.split,
        }
        scope |= {"k": self.scope.k, "replicate": self.scope.replicate}
        rows = [
            {
                **scope,
                "arm": arm,
                "metric": metric,
                "value": e.value,
                "lower": e.lower,
                "upper": e.upper,
                "n": self.n,
                "n_positive": self.positives.get(metric.partition(":")[2], self.n_positive),
            }
            for arm, metrics in self.estimates.items()
            for metric, e in metrics.items()
        ]
        return pl.DataFrame(rows, schema=RESULTS_SCHEMA)

    @property
    def undefined(self) -> pl.DataFrame:
        """arm, metric, reason: each number, or interval, that does not exist."""
        rows = [
            (arm, metric, e.reason)
            for arm, metrics in self.estimates.items()
            for metric, e in metrics.items()
            if e.reason is not None
        ]
        return pl.DataFrame(rows, schema={"arm": pl.String, "metric": pl.String, "reason": pl.String}, orient="row")

    @property
    def left_out(self) -> pl.DataFrame:
        """arm, metric, n_left_out, n_resamples: where a metric exists, but not in every resample."""
        rows = [
            (arm, metric, e.n_left_out, e.n_resamples)
            for arm, metrics in self.estimates.items()
            for metric, e in metrics.items()
            if e.n_left_out and e.value is not None
        ]
        schema = {"arm": pl.String, "metric": pl.String, "n_left_out": pl.Int64, "n_resamples": pl.Int64}
        return pl.DataFrame(rows, schema=schema, orient="row")

    @property
    def headline(self) -> str:
        """The metric that arms are compared by first, which is 0.5 by chance."""
        return C_INDEX if self.kind == "survival" else "auroc"

    def differences(self, baseline: str, metric: str | None = None) -> dict[str, Estimate]:
        """Each arm's metric (the headline) minus the baseline's, paired by resample; without the oracle."""
        metric = metric or self.headline
        others = [arm for arm in self.draws if arm not in (baseline, self.oracle)]
        return {arm: paired_difference(self.draws[arm], self.draws[baseline], metric) for arm in others}


@dataclass(frozen=True)
class Timing:
    """How long an arm took in one process: seconds of fitting, and of predicting `n_rows` rows of `n_subjects`.

    continued: parts of the work were there from an earlier attempt, so that it takes longer from the beginning.
    """

    fit_seconds: float
    predict_seconds: float
    n_rows: int
    n_subjects: int
    continued: bool = False

    @property
    def patients_per_second(self) -> float:
        """Subjects predicted in a second, reading their histories included."""
        return self.n_subjects / self.predict_seconds

    @property
    def cells(self) -> tuple[str, str]:
        """Under `TIMING_HEADINGS`: `2.1 s` or `3:05`, and patients/s; `≥` and `≤` where the work was continued."""
        least, most = ("≥ ", "≤ ") if self.continued else ("", "")
        spent = f"{self.fit_seconds:.1f} s" if self.fit_seconds < 60 else duration(self.fit_seconds)
        return f"{least}{spent}", f"{most}{_three_digits(self.patients_per_second)}"


TIMING_HEADINGS = ("fit", "patients/s")


def timing_cells(timings: Mapping[str, Timing], arm: str) -> tuple[str, str]:
    """An arm's cells under `TIMING_HEADINGS`; dashes where it was not timed."""
    return timings[arm].cells if arm in timings else ("–", "–")


def judge(
    predictions_by_arm: Mapping[str, pl.DataFrame],
    rows: pl.DataFrame,
    scope: Scope,
    *,
    oracle: str | None = "oracle",
    temperatures: Mapping[str, Temperature] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    train: pl.DataFrame | None = None,
) -> Judgement:
    """Score every arm on exactly the labelled rows of one split.

    predictions_by_arm: uncalibrated predictions tables, in the order to print. rows: the cohort's rows of the
    split, with the labels that the predictions are of. oracle: the arm that holds the true risks, if it is among
    them. temperatures: fitted on tuning; they add the metrics brier_calibrated and ece_calibrated (calibration is
    for these; of two classes it does not alter AUROC or AUPRC). train: of times to an event, the cohort's train rows,
    on whose labels the distribution of censoring is fitted. Raises InputError if there is no arm, or one whose rows or
    labels are not those of `rows`.
    """
    if not predictions_by_arm:
        raise refuse("evaluation", "there are no predictions to judge", "run predict for at least one arm first")
    tables = {arm: checked(table, f"predictions of {arm}") for arm, table in predictions_by_arm.items()}
    check_rows_match(tables, rows)
    temperatures = {arm: fitted for arm, fitted in (temperatures or {}).items() if arm in tables}
    censoring = None if train is None or kind_of_labels(rows) != "survival" else Censoring.fit(*follow_up(train))
    draws = {arm: bootstrap(table, n_resamples, seed, censoring) for arm, table in tables.items()}
    estimates = {arm: {metric: drawn.estimate(metric) for metric in drawn.point} for arm, drawn in draws.items()}
    for arm, fitted in temperatures.items():
        estimates[arm] |= _calibrated(tables[arm], fitted, n_resamples, seed)
    best = draws.get(oracle) if oracle else None
    if best is not None:
        for arm, drawn in draws.items():
            metric = C_INDEX if kind_of_labels(rows) == "survival" else "auroc"
            estimates[arm][LIFT_SHARE] = lift_share(drawn, best, metric)
    kind, positives = kind_of_labels(rows), _positives(rows)
    n_positive = positives["true"] if kind in ("binary", "survival") else None
    positives = {} if kind in ("binary", "survival") else positives
    return Judgement(
        scope,
        rows.height,
        n_positive,
        rows["subject_id"].n_unique(),
        estimates,
        draws,
        temperatures,
        oracle if best else None,
        kind,
        positives,
    )


def _positives(rows: pl.DataFrame) -> dict[str, int]:
    """How many rows have each class; of times to an event, how many events were observed."""
    if kind_of_labels(rows) == "survival":
        return {"true": int(follow_up(rows)[1].sum())}
    return {name: int(column.sum()) for name, column in label_matrix(rows, classes_of_labels(rows)).to_dict().items()}


def results_table(
    judgement: Judgement, all_metrics: bool = False, timings: Mapping[str, Timing] | None = None
) -> Table:
    """The closing table: arm, AUROC, interval, share of the oracle's lift over 0.5; on demand all metrics.

    Of times to an event the C-index in place of the AUROC. timings: how long arms took, where that is to be shown.
    """
    scope, headline = judgement.scope, judgement.headline
    others = _further_metrics(judgement) if all_metrics else ()
    title = f"{scope.dataset} · {scope.task} · {scope.split}: {judgement.n} rows, {counted(judgement)}"
    table = Table(title=title, title_justify="left")
    table.add_column("arm")
    first = "C-index" if headline == C_INDEX else "AUROC"
    last = TIMING_HEADINGS if timings else ()
    for heading in (first, "95% interval", "share of oracle's lift", *map(_short_heading, others), *last):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm, metrics in judgement.estimates.items():
        first_metric, share = metrics[headline], metrics.get(LIFT_SHARE)
        further = [number(metrics[metric].value) for metric in others]
        further += timing_cells(timings, arm) if timings else ()
        of_oracle = percent(share.value if share else None)
        table.add_row(arm, number(first_metric.value), interval_text(first_metric), of_oracle, *further)
    return table


def _further_metrics(judgement: Judgement) -> tuple[str, ...]:
    """Beside the headline; of times to an event those at the farthest horizon."""
    if judgement.kind != "survival":
        return ("auprc", "brier", "ece")
    farthest = list(next(iter(judgement.draws.values())).point)[-2:]
    return (UNO, IBS, *farthest)


def _short_heading(metric: str) -> str:
    return "C (Uno)" if metric == UNO else metric.upper()


def results_text(judgement: Judgement, width: int = 140, timings: Mapping[str, Timing] | None = None) -> str:
    """The closing table with all metrics, and why some are undefined, as plain text for SUMMARY.txt."""
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as captured:
        console.print(results_table(judgement, all_metrics=True, timings=timings))
    return "\n".join([captured.get().rstrip(), *_footnotes(judgement)])


def print_results(judgement: Judgement, console: Console | None = None) -> None:
    """Print the closing table with its footnotes."""
    console = console or Console()
    console.print(results_table(judgement))
    for line in _footnotes(judgement):
        console.print(line, markup=False, highlight=False)


def number(value: float | None) -> str:
    """Three decimals, or a word where there is no number."""
    return "undefined" if value is None else f"{value:.3f}"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def interval_text(estimate: Estimate) -> str:
    """`0.612 to 0.744`, or a dash where there is no interval."""
    return "–" if estimate.lower is None else f"{estimate.lower:.3f} to {estimate.upper:.3f}"


def percent(value: float | None) -> str:
    """Whole percent, or a dash where there is no number."""
    return "–" if value is None else f"{100 * value:.0f}%"


def counted(judgement: Judgement) -> str:
    """`12 positive`, `12 events observed`, or `3 classes, each against the rest`."""
    if judgement.kind == "survival":
        return f"{judgement.n_positive} events observed"
    if judgement.kind == "binary":
        return f"{judgement.n_positive} positive"
    what = "classes" if judgement.kind == "multiclass" else "labels"
    return f"{len(judgement.positives)} {what}, each against the rest"


def _calibrated(table: pl.DataFrame, fitted: Temperature, n_resamples: int, seed: int) -> dict[str, Estimate]:
    drawn = bootstrap(apply_temperature(table, fitted), n_resamples, seed)
    return {name: drawn.estimate(metric) for metric, name in CALIBRATED.items()}


def _footnotes(judgement: Judgement) -> list[str]:
    """One line per distinct reason why a number or interval is missing, with the metrics that it concerns."""
    if judgement.undefined.is_empty():
        return []
    grouped = judgement.undefined.group_by("reason", maintain_order=True).agg(
        pl.col("metric").unique(maintain_order=True)
    )
    return [f"undefined: {', '.join(metrics)}: {reason}" for reason, metrics in grouped.iter_rows()]
