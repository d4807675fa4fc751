"""`epicrisis compare`: finished runs become one table, a plot of performance against size, and REPORT.md."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf
from rich.console import Console

from epicrisis.cohort.few_shot import Draw
from epicrisis.commands.judging import ORACLE, arm_path
from epicrisis.evaluation.comparison import (
    Entry,
    Figures,
    Group,
    column,
    comparison_table,
    direction,
    grouped,
    headline,
    label,
    plot_sizes,
    printed,
    report_text,
    shown_metrics,
    sized,
)
from epicrisis.evaluation.comparison import best_of as best_entries
from epicrisis.evaluation.judge import RESULTS_SCHEMA
from epicrisis.evaluation.plots import save
from epicrisis.settings import InputError, Problem, Settings, refuse
from epicrisis.settings.schema import ArmSettings, TrainingSettings
from epicrisis.tracking.progress import say
from epicrisis.tracking.run_directory import RunDirectory, replacing
from epicrisis.tracking.run_record import PARAMETERS, TRAINED, flat

TABLE, REPORT, PLOT = "comparison.csv", "REPORT.md", "performance_vs_size"


def parser() -> argparse.ArgumentParser:
    """The command's own arguments."""
    described = argparse.ArgumentParser(
        prog="epicrisis compare", description="Compare finished runs of train, and the arms of finished benchmarks."
    )
    described.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a finished run's directory")
    described.add_argument(
        "--output_dir", type=Path, default=Path("runs/compare"), help="where the table, plots and report go"
    )
    return described


def run(given: argparse.Namespace, overrides: list[str]) -> None:
    """Read the runs, write comparison.csv, plots and REPORT.md, and print the table.

    Runs on different rows, tasks or cutoffs are kept apart. Raises InputError that names every folder which holds no
    finished run; nothing is written then.
    """
    refuse_unknown(overrides)
    output: Path = given.output_dir
    if output.exists() and not output.is_dir():
        raise refuse("--output_dir", f"{output} is a file, not a folder", "name a folder for the comparison")
    groups = grouped(_named_apart(read_entries(given.runs)))
    plots = _plots(groups, output)
    with replacing(output / TABLE) as part:
        comparison_table(groups).write_csv(part)
    with replacing(output / REPORT) as part:
        part.write_text(report_text(groups, plots), encoding="utf-8")
    _print(groups)
    say(f"report: {output / REPORT}")


def refuse_unknown(arguments: list[str]) -> None:
    """Raise InputError for arguments that the command does not have."""
    if arguments:
        what = "is no argument of this command"
        raise InputError([Problem(argument, what, "see --help") for argument in arguments])


def read_entries(paths: list[Path]) -> list[list[Entry]]:
    """What each folder brings: a run itself, or a benchmark's arms; the same folder once.

    Raises InputError with one problem for each folder that holds no finished run, or one that has nothing to compare.
    """
    problems, found = [], []
    for path in dict.fromkeys(path.resolve() for path in paths):
        try:
            found.append(entries_of(RunDirectory(path)))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return found


def entries_of(run: RunDirectory) -> list[Entry]:
    """The models of one run directory. Raises InputError where it holds no finished run with metrics."""
    where = str(run.path)
    if not run.finished or not run.config.is_file():
        status = run.read_json(run.metadata.name).get("status")
        what = "holds no finished run" + (f" (its record says: {status})" if status else "")
        raise refuse(where, what, "name the directory of a run of `train` or `benchmark` that has a summary.json")
    summary = run.read_json(run.summary.name)
    config: Any = OmegaConf.to_container(OmegaConf.load(run.config))
    if "arms" in summary and summary.get("rows_fingerprint"):
        return _judged(run, config, summary)
    if not _after_pretraining(summary):
        raise refuse(where, "its summary holds no metric", "name a run of `train` or `benchmark`")
    return [_pretrained(run, config, summary)]


def _judged(run: RunDirectory, config: dict[str, Any], summary: dict[str, Any]) -> list[Entry]:
    """The arms of results.csv on the last of a benchmark's draws, or a single run's own."""
    group = Group(
        summary["dataset"], summary["task"], config["data"].get("cutoff_months"), str(summary["rows_fingerprint"])
    )
    results = pl.read_csv(run.results, schema_overrides=dict(RESULTS_SCHEMA))
    draw = Draw(summary.get("k"), summary.get("replicate"))
    last = pl.col("k").eq_missing(draw.k) & pl.col("replicate").eq_missing(draw.replicate)
    results = results.filter(last & pl.col("value").is_not_null())
    is_benchmark = bool(config.get("benchmark", {}).get("arms"))
    name, entries = run.path.name, []
    for (arm,), rows in results.partition_by("arm", as_dict=True, maintain_order=True).items():
        if arm == ORACLE and len(summary["arms"]) > 1:
            place, called = None, "oracle (true risks)"
        else:
            place = _place(run, str(arm), draw) if is_benchmark else run
            called = f"{name}/{arm}" if is_benchmark else name
        metrics = {
            f"{split}/{metric}": Figures(value, lower, upper)
            for split, metric, value, lower, upper in rows.select(
                "split", "metric", "value", "lower", "upper"
            ).iter_rows()
        }
        if not is_benchmark and place is not None:
            metrics |= {key: Figures(value) for key, value in _tuning(summary).items() if key not in metrics}
        k = None if place is None else draw.k
        entries.append(Entry(called, str(arm), group, metrics, summary["n"], k, **_about(place)))
    return entries


def _tuning(summary: dict[str, Any]) -> dict[str, float]:
    ended_with = summary.get("metrics", {})
    return {key: value for key, value in ended_with.items() if key.startswith("tuning/") and _is_number(value)}


def _after_pretraining(summary: dict[str, Any]) -> dict[str, float]:
    """What tuning says of a pretraining; of older runs, what was measured before it too."""
    names = [name.removesuffix("_before") for name in summary if name.endswith("_before")]
    older = {f"tuning/{name}": summary[name] for name in names if _is_number(summary.get(name))}
    return _tuning(summary) or older


def _pretrained(run: RunDirectory, config: dict[str, Any], summary: dict[str, Any]) -> Entry:
    """A pretraining: what tuning says after it. Losses per token compare under one tokenizer and one telling only."""
    metrics = {name: Figures(value) for name, value in _after_pretraining(summary).items()}
    decides = {key: config.get(key) for key in ("arm", "data", "narrative", "structured", "behrt", "exmed")}
    model = {key: config["model"][key] for key in ("model_name", "max_length")}
    rows = hashlib.blake2b(json.dumps([decides, model], sort_keys=True).encode(), digest_size=16).hexdigest()
    dataset = run.read_json(run.metadata.name).get("dataset") or "data"
    group = Group(dataset, f"pretraining of {config['arm']}", config["data"].get("cutoff_months"), rows)
    return Entry(run.path.name, str(config["arm"]), group, metrics, **_about(run))


def _about(place: RunDirectory | None) -> dict[str, Any]:
    """Size, time and settings of a run, as far as its record tells."""
    if place is None:
        return {"is_oracle": True}
    settings = place.read_json(place.hyperparameters.name)
    sizes = {"n_parameters": settings.pop(PARAMETERS, None), "n_trained": settings.pop(TRAINED, None)}
    timing = place.read_json(place.timing.name)
    seconds = timing.get("fit_seconds", place.read_json(place.metadata.name).get("duration_seconds"))
    return {**sizes, "fit_seconds": seconds, "settings": flat(settings)}


def _place(run: RunDirectory, arm: str, draw: Draw) -> RunDirectory:
    """The run directory of a benchmark's arm."""
    own = Settings(training=TrainingSettings(output_dir=run.path))
    return RunDirectory(draw.folder(arm_path(own, ArmSettings(name=arm))))


def _named_apart(runs: list[list[Entry]]) -> list[Entry]:
    """The entries of all runs; a name that comes twice gets a number."""
    entries = [entry for run in runs for entry in run]
    often = Counter(entry.name for entry in entries if not entry.is_oracle)
    seen: Counter[str] = Counter()
    named = []
    for entry in entries:
        seen[entry.name] += 1
        twice = often[entry.name] > 1
        named.append(replace(entry, name=f"{entry.name} #{seen[entry.name]}") if twice else entry)
    return named


def _plots(groups: dict[Group, list[Entry]], output: Path) -> dict[Group, str]:
    """File names of the plots, of groups with two or more entries of known size."""
    plots = {}
    for number, (group, entries) in enumerate(groups.items(), 1):
        metric = headline(entries)
        name = f"{PLOT}.png" if len(groups) == 1 else f"{PLOT}_{number}.png"
        (output / name).unlink(missing_ok=True)
        if metric is not None and len(sized(entries, metric)) > 1:
            save(plot_sizes(entries, metric, group.title), output / name)
            plots[group] = name
    return plots


def _print(groups: dict[Group, list[Entry]]) -> None:
    console = Console(highlight=False)
    if len(groups) > 1:
        console.print(f"{len(groups)} groups: their rows, tasks or cutoffs differ, so compare within a group only")
    for group, entries in groups.items():
        console.print(printed(group, entries))
        for name in shown_metrics(entries):
            best = best_entries(entries, name)
            if best and len(entries) > 1:
                way = "higher" if direction(name) else "lower"
                told = f"best {column(name)} ({way} is better): {', '.join(map(label, best))}"
                console.print(f"{told}, {best[0].metrics[name]}", markup=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
