"""What each tracker is told, and that none of them can end a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from epicrisis.settings import InputError, Settings, settings_from
from epicrisis.tracking.run_directory import RunDirectory, open_run
from epicrisis.tracking.trackers import refuse_uninstalled, track, tracked_run
from epicrisis.tracking.trackers.every import Trackers
from epicrisis.tracking.trackers.mlflow_store import metric_name, store

RESULTS = pl.DataFrame({"arm": ["llm", "llm"], "metric": ["auroc", "brier"], "value": [0.75, None]})


class Told:
    """A tracker that keeps what it is told, and fails where it is asked to."""

    def __init__(self, name: str = "told", fails_at: str = "") -> None:
        self.name = name
        self.fails_at = fails_at
        self.heard: list[tuple[Any, ...]] = []

    def _hear(self, what: str, *said: Any) -> None:
        if what == self.fails_at:
            raise OSError(28, "No space left on device\nat https://me:secret@host/")
        self.heard.append((what, *said))

    def settings(self, resolved: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        self._hear("settings")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._hear("log", dict(numbers), step)

    def results(self, table: pl.DataFrame) -> None:
        self._hear("results", table.height)

    def plots(self, files: Mapping[str, Path]) -> None:
        self._hear("plots", list(files))

    def finish(self, ok: bool) -> None:
        self._hear("finish", ok)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return open_run(tmp_path / "run", {})


def settings_with(**sections: Any) -> Settings:
    return settings_from({"arm": "logistic_regression", **sections})


def drawn(run: RunDirectory) -> None:
    """Results and plots, as a run leaves them."""
    from matplotlib.figure import Figure

    run.write_results(RESULTS)
    (run.plots / "class_0").mkdir()
    for name in ("roc", "class_0/roc"):
        Figure(figsize=(1, 1)).savefig(run.plots / f"{name}.png")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Told]:
    """Trackers in place of the real ones."""
    told = {name: Told(name) for name in ("mlflow", "tensorboard")}
    makers = {name: lambda run, settings, name=name: told[name] for name in told}
    monkeypatch.setattr(tracked_run, "_MAKERS", makers)
    return told


ON = {"mlflow": {"enabled": True}, "tensorboard": {"enabled": True}}


def test_every_tracker_is_told_numbers_alone(run: RunDirectory, made: dict[str, Told]) -> None:
    with track(run, settings_with(**ON), active=True) as tracked:
        tracked.log(step=3, **{"train/loss": 1.5, "note": "words", "on": True, "classes": ["a"], "sizes": {"n": 1}})
        tracked.log(event="judged")
        tracked.log(**{"tuning/auroc": 0.5})
        drawn(run)
    expected = [
        ("settings",),
        ("log", {"train/loss": 1.5}, 3),
        ("log", {"tuning/auroc": 0.5}, 3),
        ("results", 2),
        ("plots", ["class_0/roc", "roc"]),
        ("finish", True),
    ]
    assert made["mlflow"].heard == made["tensorboard"].heard == expected
    assert len(run.history()) == 3


def test_a_patients_field_reaches_none(run: RunDirectory, made: dict[str, Told]) -> None:
    with pytest.raises(ValueError, match="subject_id"), track(run, settings_with(**ON), active=True) as tracked:
        tracked.log(subject_id=7)
    assert made["mlflow"].heard == [("settings",), ("finish", False)]


@pytest.mark.parametrize(
    ("fails_at", "missed"),
    [
        ("settings", "the settings"),
        ("log", "the history from step 2 on"),
        ("results", "the table of results"),
        ("plots", "the plots"),
        ("finish", "its end"),
    ],
)
def test_one_that_fails_is_dropped_and_told(
    run: RunDirectory, made: dict[str, Told], capfd: pytest.CaptureFixture[str], fails_at: str, missed: str
) -> None:
    made["mlflow"].fails_at = fails_at
    with track(run, settings_with(**ON), active=True) as tracked:
        tracked.log(step=2, loss=1.0)
        tracked.log(step=4, loss=0.5)
        drawn(run)
    assert [what for what, *_ in made["tensorboard"].heard] == ["settings", "log", "log", "results", "plots", "finish"]
    lost = [line for line in run.history() if line.get("event") == "tracker_lost"]
    assert [(line["tracker"], line["missed"]) for line in lost] == [("mlflow", missed)]
    assert lost[0]["reason"] == "OSError: [Errno 28] No space left on device"
    said = capfd.readouterr().err
    assert said.count(f"tracker mlflow missed {missed} and all that came after") == 1
    assert "secret" not in said


def test_one_that_cannot_start_is_told_too(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: RunDirectory, settings: Settings) -> Told:
        raise ConnectionError("no route to https://me:secret@host/")

    monkeypatch.setitem(tracked_run._MAKERS, "tensorboard", broken)
    with track(run, settings_with(tensorboard={"enabled": True}), active=True) as tracked:
        tracked.log(step=1, loss=1.0)
    assert run.history()[0]["missed"] == "its start"
    assert run.history()[0]["reason"] == "ConnectionError: no route to https://***@host/"
    assert run.history()[1]["loss"] == 1.0


def test_a_dropped_tracker_is_closed_and_left_alone() -> None:
    trackers, told = Trackers(), Told(fails_at="log")
    trackers.start("told", lambda: told)
    trackers.log({"loss": 1.0}, None)
    trackers.results(RESULTS)
    trackers.finish(True)
    assert told.heard == [("finish", False)]
    assert trackers.lost[0].missed == "the history from step 0 on"


def test_a_failed_run_is_closed_as_one(run: RunDirectory, made: dict[str, Told]) -> None:
    def interrupted() -> None:
        with track(run, settings_with(**ON), active=True):
            drawn(run)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert made["mlflow"].heard == [("settings",), ("finish", False)]


def test_only_an_active_process_tracks(run: RunDirectory, made: dict[str, Told]) -> None:
    with track(run, settings_with(**ON), active=False) as tracked:
        assert tracked is run
    assert made["mlflow"].heard == []


def test_a_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_run, "find_spec", lambda name: None)
    refuse_uninstalled(settings_with())
    with pytest.raises(InputError) as error:
        refuse_uninstalled(settings_with(**ON, wandb={"project": "ours"}))
    assert [problem.where for problem in error.value.problems] == [
        "wandb.enabled",
        "mlflow.enabled",
        "tensorboard.enabled",
    ]
    assert "mlflow-skinny, sqlalchemy, alembic is not installed" in str(error.value)
    assert 'pip install "epicrisis[trackers]"' in str(error.value)


def test_an_agent_turns_wandb_on_unless_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tracked_run.enabled_trackers
    assert asked(settings_with()) == []
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    assert asked(settings_with()) == ["wandb"]
    assert asked(settings_with(wandb={"enabled": False, "project": "ours"})) == []


def tell(run: RunDirectory, **sections: Any) -> None:
    """A run whose metrics were better in the middle, seen by real trackers."""
    with track(run, settings_with(**sections), active=True) as tracked:
        for step, loss in ((1, 3.0), (2, 1.0), (3, float("nan")), (4, 2.0)):
            tracked.log(step=step, **{"eval/loss": loss, "eval/auroc": 1 / loss})
        tracked.log(**{"tuning/brier@365": 0.25, "tuning/auroc:a/b": 0.5})
        drawn(run)


def test_mlflow_keeps_it_in_a_folder(run: RunDirectory, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    kept = {"enabled": True, "tracking_uri": str(tmp_path / "kept"), "experiment": "ours"}
    tell(run, mlflow=kept)
    tell(open_run(tmp_path / "second", {}), mlflow={**kept, "run_name": "again"})
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'kept' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ours")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert [(one.info.run_name, one.info.status) for one in runs] == [("run", "FINISHED"), ("again", "FINISHED")]
    first = runs[0]
    assert first.data.metrics["tuning/brier_365"] == 0.25
    assert first.data.metrics["tuning/auroc:a_b"] == 0.5
    assert [metric.step for metric in client.get_metric_history(first.info.run_id, "eval/loss")] == [1, 2, 3, 4]
    assert first.data.params["arm"] == "logistic_regression"
    assert first.data.params["training.seed"] == "0"
    assert set(first.data.tags) == {"mlflow.runName"}
    files = {file.path for file in client.list_artifacts(first.info.run_id)}
    assert files == {"config.yaml", "environment.json", "results.csv", "plots"}
    assert client.list_artifacts(first.info.run_id, "plots/class_0")[0].path == "plots/class_0/roc.png"


def test_where_mlflow_keeps_it(run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    database = f"sqlite:///{run.path / 'mlflow' / 'mlflow.db'}"
    assert store(None, run) == (database, (run.path / "mlflow" / "artifacts").as_uri())
    given = f"sqlite:///{tmp_path / 'there' / 'x.db'}"
    assert store(given, run) == (given, (tmp_path / "there" / "artifacts").as_uri())
    for server in ("https://host/mlflow", "postgresql+psycopg2://host/db", "databricks"):
        assert store(server, run) == (server, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://host")
    assert store(None, run) == ("https://host", None)
    assert store(str(tmp_path), run)[0] == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_names_that_mlflow_admits() -> None:
    assert metric_name("tuning/auroc:Type 2 (DM)/é+") == "tuning/auroc:Type 2 _DM__é_"


def test_tensorboard_events(run: RunDirectory) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(run, tensorboard={"enabled": True})
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("eval/loss")][::3] == [(1, 3.0), (4, 2.0)]
    assert events.Scalars("tuning/brier@365")[0].step == 4
    assert set(events.Tags()["images"]) == {"plots/roc", "plots/class_0/roc"}
    texts = {name: events.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in events.Tags()["tensors"]}
    assert "arm: logistic_regression" in texts["config/text_summary"]
    assert "| llm | auroc | 0.75 |\n| llm | brier |  |" in texts["results/text_summary"]


class FakeWandb:
    """The parts of wandb that are used, which keep what they are given."""

    class errors:
        pass

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.defined: dict[str, Any] = {}
        self.summary: dict[str, float] = {}
        self.logged: list[dict[str, Any]] = []
        self.config = self
        self.exit_code: int | None = None

    def Settings(self, **given: Any) -> dict[str, Any]:
        return given

    def init(self, **given: Any) -> FakeWandb:
        self.given = given
        return self

    def define_metric(self, name: str, **given: Any) -> None:
        self.defined[name] = given.get("summary")

    def update(self, config: Mapping[str, Any], allow_val_change: bool) -> None:
        self.updated = config

    def log(self, line: dict[str, Any]) -> None:
        self.logged.append(line)

    def Table(self, columns: list[str], data: list[list[Any]]) -> Any:
        return columns, data

    def Image(self, path: str) -> str:
        return Path(path).name

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(tracked_run, "find_spec", lambda name: name)
    return fake


def test_wandb_is_told_everything_and_keeps_the_best(run: RunDirectory, wandb: FakeWandb) -> None:
    tell(run, wandb={"project": "ours", "run_name": "first"})
    place = {key: wandb.given[key] for key in ("project", "name", "mode")}
    assert place == {"project": "ours", "name": "first", "mode": "offline"}
    assert wandb.defined == {"*": None}, "a summary of another kind than the last number cannot steer a sweep"
    assert wandb.summary == {"best_eval/loss": 1.0, "best_eval/auroc": 1.0}
    assert wandb.logged[0] == {"eval/loss": 3.0, "eval/auroc": 1 / 3, "step": 1}
    assert wandb.logged[4]["step"] == 4
    assert wandb.logged[5]["results"] == (["arm", "metric", "value"], [["llm", "auroc", 0.75], ["llm", "brier", None]])
    assert wandb.logged[6] == {"plots/class_0/roc": "roc.png", "plots/roc": "roc.png"}
    assert wandb.updated["environment"] == json.loads(run.environment.read_text())
    assert wandb.exit_code == 0
    quiet = wandb.given["settings"]
    assert (quiet["console"], quiet["save_code"], quiet["disable_git"], quiet["host"]) == ("off", False, True, "-")


def test_wandb_goes_online_with_a_key(run: RunDirectory, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_PROJECT_NAME", "of the keys")
    tell(run, wandb={"enabled": True})
    assert (wandb.given["mode"], wandb.given["project"]) == ("online", "of the keys")


def test_wandb_joins_an_agents_run_as_it_is(
    run: RunDirectory, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    tell(run, wandb={"project": "ours", "run_name": "mine"})
    assert {"project", "name", "id", "entity"}.isdisjoint(wandb.given)
    assert wandb.given["mode"] is None
