"""The record of a run: what defines it, when it ran and how it ended, and its metrics step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from epicrisis import __version__
from epicrisis.tracking.curves import SIZES, draw_curves, metrics_history
from epicrisis.tracking.environment import git_state

if TYPE_CHECKING:
    from epicrisis.tracking.run_directory import RunDirectory

Status = Literal["running", "finished", "stopped", "failed", "interrupted", "prepared"]
"""`stopped` was asked to end and did; `interrupted` is an attempt that a later one found running and gone; `prepared`
has narratives and no model."""

PARAMETERS, TRAINED = SIZES

_GRADIENT = ("training", "survival")
_NARRATIVES = ("model", "narrative")
SECTIONS: dict[str, tuple[str, ...]] = {
    "llm": (*_NARRATIVES, "lora", *_GRADIENT),
    "encoder": (*_NARRATIVES, "encoder", "lora", *_GRADIENT),
    "frozen_encoder": (*_NARRATIVES, "encoder", "training"),
    "event_encoder": (*_NARRATIVES, "encoder", *_GRADIENT),
    "structured": ("structured", "lora", *_GRADIENT),
    "behrt": ("behrt", "clinvec", *_GRADIENT),
    "exmed_bert": ("exmed", "clinvec", *_GRADIENT),
    **dict.fromkeys(("logistic_regression", "random_forest", "xgboost", "lightgbm"), ("tabular",)),
}
"""The sections that decide what an arm learns."""

_NOT_OF_TRAINING = frozenset({"output_dir", "overwrite_output_dir", "resume", "logging_steps"})
_OF_VISIBILITY = ("cutoff_months", "control_index_dates")


def begin(run: RunDirectory, config: Mapping[str, Any]) -> None:
    """Write hyperparameters.json and metadata.json of a run that begins, or goes on."""
    earlier = run.read_json(run.metadata.name)
    run.write_json(run.hyperparameters.name, {**hyperparameters(config), **_sizes(run)})
    now = _now()
    attempts = [*_ended(run, earlier.get("attempts", [])), {"begun": now, "ended": None, "status": "running"}]
    run.write_json(
        run.metadata.name,
        {
            "experiment": run.path.resolve().name,
            **_names(config),
            "arm": None if _arms(config) else config.get("arm"),
            "stage": config.get("stage"),
            "arms": _arms(config),
            "status": "running",
            "begun": attempts[0]["begun"],
            "ended": None,
            "duration_seconds": None,
            "attempts": attempts,
            "seeds": {"training": config.get("training", {}).get("seed")},
            "version": __version__,
            "git": git_state(),
        },
    )


def close(run: RunDirectory, status: Status, summary: Mapping[str, Any] | None = None) -> None:
    """Write how a run ended, its metrics step by step and their curves. What has ended keeps its times.

    summary: of a finished run; names the dataset, the task and the judged rows as the report does.
    """
    metadata = run.read_json(run.metadata.name)
    if not metadata:
        return
    history = run.history()
    run.write_json("logs/metrics_history.json", metrics_history(history))
    draw_curves(history, run.plots, metadata["experiment"])
    run.write_json(run.hyperparameters.name, {**run.read_json(run.hyperparameters.name), **_sizes(run)})
    if metadata["attempts"][-1]["status"] == "running":
        metadata["attempts"][-1] |= {"ended": _now(), "status": status}
        metadata["ended"] = metadata["attempts"][-1]["ended"]
        metadata["duration_seconds"] = round(sum(map(_seconds, metadata["attempts"])), 3)
    if summary is not None or metadata["status"] == "running":
        metadata["status"] = status
    told = {key: summary[key] for key in ("dataset", "task", "rows_fingerprint") if summary and key in summary}
    run.write_json(run.metadata.name, metadata | told)


@contextmanager
def recording(run: RunDirectory, *, active: bool = True, ends: Status = "finished") -> Iterator[None]:
    """Close the record of a run when its work ends, however it ends.

    active: of several processes only one writes. ends: what it is when all went well.
    """
    try:
        yield
    except BaseException as error:
        if active:
            close(run, _status_after(error))
        raise
    if active:
        close(run, ends)


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a resolved config: the arm, the stage and the sections that decide what is learnt; of a benchmark its arms."""
    data = config.get("data", {})
    visible = {key: data[key] for key in _OF_VISIBILITY if key in data}
    if _arms(config):
        return {"arms": _arms(config), "data": visible, "training": _seed(config)}
    arm = config.get("arm")
    sections = {name: config[name] for name in SECTIONS.get(str(arm), ("training",)) if name in config}
    if "training" in sections:
        kept = sections["training"].items()
        sections["training"] = {key: value for key, value in kept if key not in _NOT_OF_TRAINING}
    else:
        sections["training"] = _seed(config)
    return {"arm": arm, "stage": config.get("stage"), "data": visible, **sections}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{a: {b: 1}}` as `{a.b: 1}`; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _names(config: Mapping[str, Any]) -> dict[str, str | None]:
    """What the data are called by their folders, until a report names them."""
    data = config.get("data", {})
    dataset = data.get("meds_dir") or data.get("data_dir") or data.get("patients_json")
    labels = data.get("labels_dir") or data.get("index_dates_filepath") or data.get("labels_filepath")
    return {"dataset": _last_part(dataset), "task": _last_part(labels)}


def _last_part(path: str | None) -> str | None:
    return None if path is None else str(path).rstrip("/").rpartition("/")[2].partition(".")[0]


def _arms(config: Mapping[str, Any]) -> list[str] | None:
    """The names of a benchmark's arms; None of a single run."""
    return [arm["name"] for arm in config.get("benchmark", {}).get("arms", ())] or None


def _seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of the section `training` every arm heeds."""
    return {key: value for key, value in config.get("training", {}).items() if key == "seed"}


def _sizes(run: RunDirectory) -> dict[str, int]:
    """How many parameters the trained module has, as it was logged; nothing where no module was trained."""
    logged = [line for line in run.history() if PARAMETERS in line]
    return {name: logged[-1][name] for name in (PARAMETERS, TRAINED)} if logged else {}


def _ended(run: RunDirectory, attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier attempts at the run itself; one that was killed ended, as far as is known, with its last log line."""
    attempts = [attempt for attempt in attempts if attempt["status"] != "prepared"]
    if not attempts or attempts[-1]["status"] != "running":
        return attempts
    *others, last = attempts
    history = run.history()
    seen = datetime.fromtimestamp(history[-1]["time"], UTC).isoformat(timespec="seconds") if history else last["begun"]
    return [*others, last | {"ended": max(seen, last["begun"]), "status": "interrupted"}]


def _status_after(error: BaseException) -> Status:
    # A run that is asked to end saves its state and leaves with exit code 0.
    asked = isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and not error.code)
    return "stopped" if asked else "failed"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _seconds(attempt: Mapping[str, Any]) -> float:
    begun, ended = (datetime.fromisoformat(attempt[key]) for key in ("begun", "ended"))
    return (ended - begun).total_seconds()
