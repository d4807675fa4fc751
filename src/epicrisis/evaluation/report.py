"""report.html, summary.json and SUMMARY.txt: what a run showed, without any patient in it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from omegaconf import OmegaConf

from epicrisis.cohort.task import FOLLOWED
from epicrisis.evaluation.bootstrap import Estimate
from epicrisis.evaluation.canaries import Canary, canary_table
from epicrisis.evaluation.class_metrics import AVERAGED, AVERAGINGS, of_class
from epicrisis.evaluation.few_shot import METRICS as CURVES_OF
from epicrisis.evaluation.few_shot import curve_table, curves, curves_text
from epicrisis.evaluation.judge import (
    CALIBRATED,
    LIFT_SHARE,
    TIMING_HEADINGS,
    Judgement,
    Timing,
    counted,
    interval_text,
    number,
    percent,
    results_text,
    timing_cells,
)
from epicrisis.tracking.run_directory import PATIENT_FIELDS, RunDirectory, plain, replacing

TEMPLATE = "report_template.html"
OF_CLASS = {"auroc": "AUROC", "auprc": "AUPRC", "brier": "Brier", "ece": "ECE"}
HEADINGS = {
    **OF_CLASS,
    **{f"{metric}_{average}": f"{OF_CLASS[metric]} {average}" for metric in AVERAGED for average in AVERAGINGS},
    **{
        CALIBRATED["brier"]: "Brier calibrated",
        CALIBRATED["ece"]: "ECE calibrated",
        LIFT_SHARE: "share of oracle's lift",
    },
    **{"c_index": "C-index", "c_index_uno": "C-index (Uno)", "ibs": "integrated Brier"},
}

LENGTH_FORMATS = {
    **dict.fromkeys(("narratives", "tokens_max", "events", "documents", "windows", "rows"), ","),
    **dict.fromkeys(("tokens_mean", "tokens_median", "tokens_p90"), ",.0f"),
    "tokens_per_event": ".1f",
    **dict.fromkeys(("events_left_out", "narratives_cut", "rows_full"), ".1%"),
}


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """What every report tells. Tables are aggregates: one that carries a patient's columns is refused.

    plots: {name: PNG file}. splits: counts per split (`split_counts`). coverage: how codes became words, per
    split and vocabulary. cohort_notes: sentences on how the cohort was built. narrative: how histories were told, per
    arm where nested. lengths, packing: how long narratives are and how they lie in rows. environment, config: as
    in the run directory. warnings: what a reader must know first.
    """

    plots: Mapping[str, Path] = field(default_factory=dict)
    splits: pl.DataFrame | None = None
    coverage: pl.DataFrame | None = None
    cohort_notes: Sequence[str] = ()
    narrative: Mapping[str, Any] = field(default_factory=dict)
    lengths: pl.DataFrame | None = None
    packing: pl.DataFrame | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class ReportContent(PageContent):
    """All that the report of judged arms tells.

    judgement: from `judge`. canaries: from `canaries`. arm_notes: {arm: what its fitting had to say}. baseline:
    the arm that the others are compared with. few_shot: the results on fewer shots than those of the judgement.
    rows_fingerprint: of the judged rows and their labels (`rows_fingerprint` in cohort). timings: how long arms took.
    metrics: of a single run, what it ended with (`tuning/auroc`, `held_out/auroc`), for the summary.
    """

    judgement: Judgement
    canaries: Sequence[Canary] = ()
    arm_notes: Mapping[str, str] = field(default_factory=dict)
    baseline: str | None = None
    few_shot: pl.DataFrame | None = None
    rows_fingerprint: str | None = None
    timings: Mapping[str, Timing] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def results(self) -> pl.DataFrame:
        """The whole results table, from few shots to many."""
        own = self.judgement.results
        return own if self.few_shot is None else pl.concat([self.few_shot, own])


@dataclass(frozen=True)
class CorpusContent(PageContent):
    """All that the report of a run without predictions tells: title, what it did in a sentence, its figures."""

    title: str
    lead: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def split_counts(rows: pl.DataFrame) -> pl.DataFrame:
    """split, rows, subjects, positive: the cohort in figures, in the order train, tuning, held_out.

    Without `positive` where the labels are not yes or no, or there are none.
    """
    order = pl.col("split").replace_strict({"train": 0, "tuning": 1, "held_out": 2}, default=3)
    counts = {"rows": pl.len(), "subjects": pl.col("subject_id").n_unique()}
    if rows.schema["label"] == pl.Boolean and not rows["label"].is_null().all():
        counts["positive"] = pl.col("label").sum()
    if rows.schema["label"] == FOLLOWED:
        counts["events observed"] = pl.col("label").struct.field("observed").sum()
    return rows.group_by("split").agg(count.cast(pl.Int64).alias(name) for name, count in counts.items()).sort(order)


def write_report(run: RunDirectory, content: ReportContent) -> Path:
    """Write results.csv, report.html, SUMMARY.txt and, last, summary.json, which marks the run finished."""
    page = render(content)
    run.write_results(content.results)
    with replacing(run.report) as part:
        part.write_text(page, encoding="utf-8")
    run.finish(summary(content), summary_text(content))
    return run.report


def write_corpus_report(run: RunDirectory, content: CorpusContent) -> Path:
    """Write report.html of a run that predicted nothing."""
    page = _page(content, title=content.title, lead=content.lead, figures=content.figures, judged=None)
    with replacing(run.report) as part:
        part.write_text(page, encoding="utf-8")
    return run.report


def render(content: ReportContent) -> str:
    """The page as HTML. Raises ValueError if a table in it has columns of single patients."""
    scope = content.judgement.scope
    return _page(content, title=f"{scope.dataset} · {scope.task}", lead="", figures={}, judged=_judged(content))


def _judged(content: ReportContent) -> dict[str, Any]:
    """What the page tells of predictions."""
    judgement = content.judgement
    return {
        "scope": judgement.scope,
        "n": judgement.n,
        "counted": counted(judgement),
        "n_subjects": judgement.n_subjects,
        "n_resamples": max(
            (e.n_resamples for metrics in judgement.estimates.values() for e in metrics.values()), default=0
        ),
        "kind": judgement.kind,
        "rows_fingerprint": content.rows_fingerprint,
        "results": _results_grid(judgement, content.timings),
        "timed": bool(content.timings),
        "classes": _classes_grid(judgement),
        "few_shot": _few_shot_grids(content),
        "undefined": _grid(_with_headings(judgement.undefined)),
        "left_out": _grid(_with_headings(judgement.left_out)),
        "baseline": content.baseline,
        "differences": _differences_grid(content),
        "calibration": _grid(_calibration(judgement)),
        "canaries": _grid(canary_table(list(content.canaries))) if content.canaries else None,
        "arm_notes": content.arm_notes,
    }


def _page(content: PageContent, **own: Any) -> str:
    return _template().render(
        plots={name: base64.b64encode(path.read_bytes()).decode() for name, path in content.plots.items()},
        splits=_grid(content.splits),
        coverage=_grid(content.coverage),
        cohort_notes=content.cohort_notes,
        narrative={name: _told(value) for name, value in content.narrative.items()},
        lengths=_grid(content.lengths, LENGTH_FORMATS),
        packing=_grid(content.packing, LENGTH_FORMATS),
        warnings=content.warnings,
        environment=json.dumps(plain(content.environment), indent=2),
        config=OmegaConf.to_yaml(OmegaConf.create(plain(content.config))),
        **own,
    )


def summary(content: ReportContent) -> dict[str, Any]:
    """The same figures for machines; null where undefined, with the reason beside it."""
    judgement, scope = content.judgement, content.judgement.scope
    return {
        "dataset": scope.dataset,
        "task": scope.task,
        "split": scope.split,
        "n": judgement.n,
        "k": scope.k,
        "replicate": scope.replicate,
        "n_positive": judgement.n_positive,
        "positives": dict(judgement.positives),
        "n_subjects": judgement.n_subjects,
        "splits": content.splits.to_dicts() if content.splits is not None else [],
        "rows_fingerprint": content.rows_fingerprint,
        "metrics": dict(content.metrics),
        "timing": {arm: _timing(timing) for arm, timing in content.timings.items()},
        "few_shot": _few_shot_figures(content),
        "arms": {
            arm: {metric: _estimate(e) for metric, e in metrics.items()} for arm, metrics in judgement.estimates.items()
        },
        "baseline": content.baseline,
        f"{judgement.headline}_differences": {arm: _estimate(e) for arm, e in _differences(content).items()},
        "temperatures": _calibration(judgement).to_dicts(),
        "canaries": canary_table(list(content.canaries)).to_dicts(),
        "cohort_notes": list(content.cohort_notes),
        "narrative": plain(content.narrative),
        "lengths": content.lengths.to_dicts() if content.lengths is not None else [],
        "arm_notes": dict(content.arm_notes),
        "warnings": list(content.warnings),
    }


def summary_text(content: ReportContent) -> str:
    """The closing table with what a reader must know beside it, as plain text."""
    lines = [results_text(content.judgement, timings=content.timings)]
    if content.rows_fingerprint is not None:
        lines.append(f"rows: {content.rows_fingerprint}")
    if content.few_shot is not None:
        lines += [curves_text(content.results, metric) for metric in CURVES_OF]
    for canary in content.canaries:
        verdict = ", which tells cases from controls without reading" if canary.sings else ""
        found = f"{number(canary.auroc.value)} ({interval_text(canary.auroc)}){verdict}"
        lines.append(f"canary {canary.name} ({canary.reads}): AUROC {found}")
    lines += [
        f"calibration of {row['arm']}: {row['note']}"
        for row in _calibration(content.judgement).to_dicts()
        if row["note"]
    ]
    lines += [f"{arm}: {note}" for arm, note in content.arm_notes.items() if note]
    lines += [f"warning: {warning}" for warning in content.warnings]
    return "\n".join(lines)


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("epicrisis.evaluation", "")
    settings = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return settings.get_template(TEMPLATE)


def _grid(table: pl.DataFrame | None, formats: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """formats: {column: how its figures are written}; others as they are."""
    if table is None:
        return None
    carried = sorted(PATIENT_FIELDS & set(table.columns))
    if carried:
        raise ValueError(f"a report holds no patient-level data, but a table given to it has the columns {carried}")
    numeric = [kind.is_numeric() for kind in table.dtypes]
    columns = [[_written(value, (formats or {}).get(name)) for value in table[name]] for name in table.columns]
    return {"columns": table.columns, "rows": list(zip(*columns, strict=True)), "numeric": numeric}


def _written(value: Any, form: str | None) -> Any:
    return value if value is None or form is None else format(value, form)


def _timing(timing: Timing) -> dict[str, Any]:
    return asdict(timing) | {"patients_per_second": timing.patients_per_second}


def _results_grid(judgement: Judgement, timings: Mapping[str, Timing]) -> dict[str, Any]:
    """The metrics of each arm and, where arms were timed, how long they took."""
    grid = _survival_grid(judgement) if judgement.kind == "survival" else _metrics_grid(judgement)
    if not timings:
        return grid
    rows = [(*row, *timing_cells(timings, row[0])) for row in grid["rows"]]
    columns, numeric = [*grid["columns"], *TIMING_HEADINGS], [*grid["numeric"], *(True for _ in TIMING_HEADINGS)]
    return {"columns": columns, "rows": rows, "numeric": numeric}


def _metrics_grid(judgement: Judgement) -> dict[str, Any]:
    metrics = [name for name in HEADINGS if any(name in estimates for estimates in judgement.estimates.values())]
    rows = [
        (arm, *(_result_cell(metric, estimates.get(metric)) for metric in metrics))
        for arm, estimates in judgement.estimates.items()
    ]
    columns = ["arm", *(HEADINGS[metric] for metric in metrics)]
    return {"columns": columns, "rows": rows, "numeric": [False, *(True for _ in metrics)]}


def _survival_grid(judgement: Judgement) -> dict[str, Any]:
    """All metrics of times to an event, which depend on the horizons."""
    metrics = list(dict.fromkeys(metric for estimates in judgement.estimates.values() for metric in estimates))
    rows = [
        (arm, *(_result_cell(metric, estimates.get(metric)) for metric in metrics))
        for arm, estimates in judgement.estimates.items()
    ]
    return {"columns": ["arm", *map(heading, metrics)], "rows": rows, "numeric": [False, *(True for _ in metrics)]}


def _classes_grid(judgement: Judgement) -> dict[str, Any] | None:
    """Each class against the rest, arm by arm; None for a binary task."""
    rows = [
        (arm, name, n, *(_result_cell(metric, estimates.get(of_class(metric, name))) for metric in OF_CLASS))
        for arm, estimates in judgement.estimates.items()
        for name, n in judgement.positives.items()
    ]
    columns = ["arm", "class" if judgement.kind == "multiclass" else "label", "rows with it", *OF_CLASS.values()]
    return {"columns": columns, "rows": rows, "numeric": [False, False, *([True] * 5)]} if rows else None


def _few_shot_grids(content: ReportContent) -> dict[str, Any]:
    if content.few_shot is None:
        return {}
    grids = {OF_CLASS[metric]: _grid(curve_table(content.results, metric)) for metric in CURVES_OF}
    return {name: {**grid, "numeric": [False, *grid["numeric"][1:]]} for name, grid in grids.items() if grid}


def _few_shot_figures(content: ReportContent) -> dict[str, Any]:
    if content.few_shot is None:
        return {}
    return {metric: curves(content.results, metric).to_dicts() for metric in CURVES_OF}


def _with_headings(table: pl.DataFrame) -> pl.DataFrame:
    """The metrics as the page calls them: `AUROC micro`, `ECE of C50`."""
    return table.with_columns(pl.col("metric").map_elements(heading, return_dtype=pl.String))


def heading(metric: str) -> str:
    """What the page calls a metric."""
    name, _, of = metric.partition(":")
    name, _, days = name.partition("@")
    if days:
        return f"{HEADINGS.get(name, name)} at {days} days"
    return HEADINGS.get(name, name) + (f" of {of}" if of else "")


def _result_cell(metric: str, estimate: Estimate | None) -> str | None:
    if estimate is None:
        return None
    if metric == LIFT_SHARE:
        between = f" ({percent(estimate.lower)} to {percent(estimate.upper)})" if estimate.lower is not None else ""
        return percent(estimate.value) + between
    return number(estimate.value) + (f" ({interval_text(estimate)})" if estimate.lower is not None else "")


def _differences(content: ReportContent) -> dict[str, Estimate]:
    if content.baseline is None or content.baseline not in content.judgement.draws:
        return {}
    return content.judgement.differences(content.baseline)


def _differences_grid(content: ReportContent) -> dict[str, Any] | None:
    found = _differences(content)
    rows = [(arm, number(e.value), interval_text(e)) for arm, e in found.items()]
    columns = ["arm", f"difference in {heading(content.judgement.headline)}", "95% interval"]
    return {"columns": columns, "rows": rows, "numeric": [False, True, True]} if rows else None


def _calibration(judgement: Judgement) -> pl.DataFrame:
    rows = [(arm, t.value, t.fitted_on, t.n, t.n_positive, t.note) for arm, t in judgement.temperatures.items()]
    schema = {"arm": pl.String, "temperature": pl.Float64, "fitted_on": pl.String}
    schema |= {"n": pl.Int64, "n_positive": pl.Int64, "note": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _told(value: Any) -> Any:
    """Figures in figures, such as those per split, as one line of words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(name).replace('_', ' ')} {_told(item)}" for name, item in value.items())
    return value


def _estimate(estimate: Estimate) -> dict[str, Any]:
    numbers = {"value": estimate.value, "lower": estimate.lower, "upper": estimate.upper}
    return numbers | ({"reason": estimate.reason} if estimate.reason else {})
