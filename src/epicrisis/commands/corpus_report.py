"""What a run shows that predicts nothing: its narratives, their coverage, and the losses of a pretraining on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from epicrisis.cohort import Cohort
from epicrisis.commands.inputs import task_name
from epicrisis.commands.told_narratives import LENGTHS, measure, plotted
from epicrisis.corpus.lengths import epoch_seed, packing_table
from epicrisis.corpus.prepare import Prepared
from epicrisis.evaluation.report import CorpusContent, split_counts, write_corpus_report
from epicrisis.narrative import Lookups
from epicrisis.narrative.coverage import coverage, hide_few, unresolved, write_coverage, write_csv
from epicrisis.settings import Settings
from epicrisis.tracking.curves import draw_curves
from epicrisis.tracking.run_directory import RunDirectory


def report_corpus(
    run: RunDirectory,
    settings: Settings,
    cohort: Cohort,
    lookups: Lookups,
    told: Mapping[str, Any],
    *,
    rows: pl.DataFrame,
    lead: str,
    trained: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write what a run that predicts nothing shows of its narratives: report.html, lengths.csv, the coverage.

    told: what `Telling.inputs` says of how they came about. rows: those that were told. lead: what the run did.
    trained: figures of a pretraining on them, whose losses are drawn too. Returns figures for the run's summary.
    """
    prepared = Prepared(run.dir)
    lengths = prepared.lengths()
    measured = measure(lengths, told, settings.model.model_name)
    write_csv(measured.lengths, run.dir / "lengths.csv")
    packing = packing_table(
        lengths,
        settings.model.max_length,
        repeat_header=settings.narrative.repeat_header,
        seeds={"train": epoch_seed(settings.training.seed, 0)} if trained else None,
    )
    dataset, _ = task_name(settings, cohort)
    title = f"{dataset} · {'continued pretraining' if trained else 'narratives'}"
    content = CorpusContent(
        title=title,
        lead=lead,
        figures={name: value for name, value in (trained or {}).items() if name not in packing.columns},
        plots={**_curves(run, dataset, trained), LENGTHS: plotted(run, {dataset: measured}, dataset)},
        splits=split_counts(rows),
        coverage=_covered(prepared, lookups),
        cohort_notes=[*cohort.notes, *lookups.notes],
        narrative=measured.facts,
        lengths=measured.lengths,
        packing=packing,
        environment=json.loads(run.environment.read_text()),
        config=settings.resolved(),
    )
    write_corpus_report(run, content)
    return {"narrative": measured.facts, "lengths": measured.lengths.to_dicts(), "packing": packing.to_dicts()}


def _covered(prepared: Prepared, lookups: Lookups) -> pl.DataFrame:
    """Writes the coverage's own page and tables; returns what the report shows of it."""
    counts = prepared.coverage()
    table = coverage(counts, lookups)
    write_coverage(prepared.directory, table, unresolved(counts, lookups))
    return hide_few(table.drop([name for name in table.columns if name.startswith("subjects_")]))


def _curves(run: RunDirectory, title: str, trained: Mapping[str, Any] | None) -> dict[str, Path]:
    """Of each metric that a pretraining watched."""
    return draw_curves(run.history(), run.plots, title) if trained else {}
