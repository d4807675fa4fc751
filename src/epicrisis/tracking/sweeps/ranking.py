"""What a search leaves to read: a table of its trials, what mattered, and the config of the best one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import polars as pl
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState

from epicrisis.settings.load import read_yaml
from epicrisis.tracking.progress import duration
from epicrisis.tracking.run_directory import RunDirectory, replacing
from epicrisis.tracking.sweeps.distributions import text_of
from epicrisis.tracking.sweeps.search import Plan
from epicrisis.tracking.sweeps.study import begun, quiet_optuna, values_of
from epicrisis.tracking.sweeps.sweep_file import Sweep

ENOUGH_FOR_IMPORTANCE = 4
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "given up",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "cut off",
}
_SHOWN = 50
"""Trials in the report's table; ranking.csv has all."""


def ranking(study: optuna.Study, sweep: Sweep, plan: Plan) -> pl.DataFrame:
    """rank · trial · value · state · seconds · a column for each parameter · run · reason; the best first.

    Trials that were given up follow those that finished, by the value that they had reached; then those that failed.
    """
    rows = [_row(study, trial, sweep, plan) for trial in begun(study)]
    order = list(STATES.values())
    better = -1 if sweep.goal == "maximize" else 1
    rows.sort(key=lambda row: (order.index(row["state"]), better * (row["value"] or 0.0), row["trial"]))
    schema = {"rank": pl.Int64, "trial": pl.Int64, "value": pl.Float64, "state": pl.String, "seconds": pl.Float64}
    schema |= dict.fromkeys((*sweep.space, "run", "reason"), pl.String)
    return pl.DataFrame([{"rank": place, **row} for place, row in enumerate(rows, start=1)], schema=schema)


def write_table(study: optuna.Study, sweep: Sweep, plan: Plan) -> pl.DataFrame:
    """Write ranking.csv."""
    table = ranking(study, sweep, plan)
    with replacing(plan.output_dir / "ranking.csv") as part:
        table.write_csv(part)
    return table


def write_best(study: optuna.Study, sweep: Sweep, plan: Plan) -> Path | None:
    """Write best.yaml: all keys of the best trial's run, for a run of its own in `best`; None without a best."""
    best = _best(study)
    if best is None:
        return None
    config = read_yaml(RunDirectory(plan.folder(best.number)).config)
    place = {"output_dir": str(plan.output_dir / "best"), "resume": False, "overwrite_output_dir": False}
    with replacing(plan.output_dir / "best.yaml") as part:
        head = f"# Trial {best.number} of {sweep.path}: {sweep.metric} {best.value:.6g}.\n"
        body = OmegaConf.to_yaml(OmegaConf.create({**config, "training": {**config["training"], **place}}))
        part.write_text(head + body, encoding="utf-8")
    return plan.output_dir / "best.yaml"


def gain(study: optuna.Study, sweep: Sweep, plan: Plan) -> str:
    """One sentence: what the search found, and how much better that is than the config's own values."""
    best = _best(study)
    if best is None:
        return f"No trial has finished with a {sweep.metric}."
    found = f"best {sweep.metric} {best.value:.4f} (trial {best.number})"
    if plan.default is None:
        return f"{found}; the config's own values lie outside of the space, so that there is no trial of them"
    default = study.get_trials(deepcopy=False)[0]
    if default.value is None:
        return f"{found}; the trial of the config's own values (0) {_ending(default)}"
    gained = (best.value or 0.0) - default.value
    return f"default {default.value:.4f} (trial 0) → {found}: {gained:+.4f}"


def write_report(study: optuna.Study, sweep: Sweep, plan: Plan, warnings: list[str]) -> Path:
    """Write REPORT.md and its plots."""
    table = write_table(study, sweep, plan)
    best = write_best(study, sweep, plan)
    plots = plan.output_dir / "plots"
    sections = [
        f"# Sweep {sweep.path.stem}",
        f"{sweep.goal} `{sweep.metric}` by {sweep.method}, {table.height} trials: {_by_state(table)}.",
        f"**{gain(study, sweep, plan)}**",
        *(f"Note: {text}." for text in warnings),
        _how_to_go_on(best),
        "## Ranking",
        _markdown(table.head(_SHOWN)),
        "## What mattered",
        _importance(study, sweep.metric, plots),
        "## How parameters go together",
        _parallel(study, sweep.metric, plots),
        "## What was searched",
        _space(sweep),
    ]
    with replacing(plan.output_dir / "REPORT.md") as part:
        part.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")
    return plan.output_dir / "REPORT.md"


def _row(study: optuna.Study, trial: FrozenTrial, sweep: Sweep, plan: Plan) -> dict[str, Any]:
    value = trial.user_attrs.get("value") if trial.state == TrialState.PRUNED else trial.value
    values = _values(trial, sweep)
    return {
        "trial": trial.number,
        "value": value,
        "state": STATES[trial.state],
        "seconds": trial.user_attrs.get("seconds"),
        **{key: text_of(values[key]) if key in values else None for key in sweep.space},
        "run": str(plan.folder(trial.number)),
        "reason": trial.user_attrs.get("reason"),
    }


def _values(trial: FrozenTrial, sweep: Sweep) -> Mapping[str, Any]:
    """The trial's values as its run has them, by key."""
    fixed = optuna.trial.FixedTrial(dict(trial.params))
    if trial.params.keys() < sweep.space.keys():  # it was cut off before all were drawn
        return {}
    return values_of(fixed, sweep)


def _best(study: optuna.Study) -> FrozenTrial | None:
    done = any(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False))
    return study.best_trial if done else None


def _by_state(table: pl.DataFrame) -> str:
    counts = dict(table["state"].value_counts().iter_rows())
    return ", ".join(f"{counts[state]} {state}" for state in STATES.values() if state in counts)


def _ending(trial: FrozenTrial) -> str:
    return {TrialState.FAIL: "failed", TrialState.PRUNED: "was given up early"}.get(trial.state, "has not ended")


def _how_to_go_on(best: Path | None) -> str:
    return f"The best config, for a run of its own: `epicrisis train --config_filepath {best}`" if best else ""


def _markdown(table: pl.DataFrame) -> str:
    shown = [name for name in table.columns if name not in ("run", "reason")]
    lines = [f"| {' | '.join(shown)} |", f"|{' --- |' * len(shown)}"]
    for row in table.select(shown).iter_rows(named=True):
        lines.append(f"| {' | '.join(_cell(name, value) for name, value in row.items())} |")
    failed = table.filter(pl.col("reason").is_not_null())
    why = [f"* trial {row['trial']}: {row['reason']}" for row in failed.iter_rows(named=True)]
    return "\n".join([*lines, *(["", "Failed:", ""] if why else []), *why])


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "seconds":
        return duration(value)
    return f"{value:.4f}" if name == "value" else _rounded(str(value))


def _rounded(text: str) -> str:
    try:
        return text if text.lstrip("-").isdigit() else f"{float(text):.4g}"
    except ValueError:
        return text.replace("|", "\\|")


def _importance(study: optuna.Study, metric: str, plots: Path) -> str:
    """The plot of each parameter's share in the variance of values, or why there is none."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < ENOUGH_FOR_IMPORTANCE:
        return f"Not told: {len(done)} finished trials are fewer than {ENOUGH_FOR_IMPORTANCE}."
    if len({trial.value for trial in done}) == 1:
        return "Not told: all finished trials have the same value."
    return _plotted(plots / "importance.png", lambda: _matplotlib().plot_param_importances(study, target_name=metric))


def _parallel(study: optuna.Study, metric: str, plots: Path) -> str:
    """The plot with a line for each trial through its parameters' values."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < 2:
        return "Not drawn: fewer than two trials have finished."
    file = plots / "parallel_coordinates.png"
    return _plotted(file, lambda: _matplotlib().plot_parallel_coordinate(study, target_name=metric))


def _matplotlib() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from optuna.visualization import matplotlib as plots

    return plots


def _plotted(file: Path, draw: Callable[[], Any]) -> str:
    with quiet_optuna():
        axes = draw()
    figure = axes.figure
    figure.set_size_inches(9, 5)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        figure.savefig(part, dpi=110, bbox_inches="tight", format="png")
    from matplotlib import pyplot

    pyplot.close(figure)
    return f"![{file.stem.replace('_', ' ')}](plots/{file.name})"


def _space(sweep: Sweep) -> str:
    lines = [f"* `{key}`: {own}" for key, own in sweep.space.items()]
    return "\n".join([*lines, *(f"* `{key}`: {text_of(value)} in every trial" for key, value in sweep.fixed.items())])
