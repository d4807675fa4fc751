"""What trackers get of a real training: all of its figures, nothing of a patient, and no key of the person."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import polars as pl
import pytest

from epicrisis.commands import main
from epicrisis.commands.train import of_agents_run
from epicrisis.corpus.prepare import Prepared
from epicrisis.settings import settings_from
from epicrisis.settings.keys import NAMES
from epicrisis.settings.watched import logged_metrics
from tests.commands.conftest import FIRST_SUBJECT, TABULAR, data_keys
from tests.commands.tracker_files import forms_of, searchable

ROOT = Path(__file__).parents[2]
SECRETS = {name: f"{'hf_' if name.startswith('HF') else ''}Never{name.title().replace('_', '')}Shown" for name in NAMES}
TRACKERS = ("wandb", "mlflow", "tensorboard")
ALL_ON = ["wandb.project=ours", "wandb.mode=offline", "mlflow.enabled=true", "tensorboard.enabled=true"]


@dataclass(frozen=True)
class Done:
    """A finished run with every tracker on, the home it was run from, and what it printed."""

    run: Path
    home: Path
    printed: str

    @property
    def written(self) -> dict[Path, bytes]:
        return searchable(*(self.run / name for name in TRACKERS), self.home)


def in_a_home(home: Path, *command: object) -> str:
    """Run a command that finds its keys in env/.env and an empty home; what it printed."""
    (home / "env").mkdir(parents=True)
    (home / "env" / ".env").write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
    kept = {name: value for name, value in os.environ.items() if not re.match("WANDB|MLFLOW|HF_|HOME|XDG", name)}
    place = {"HOME": str(home), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "TMPDIR": str(home / "env")}
    place["MPLCONFIGDIR"] = matplotlib.get_configdir()  # where fonts are listed already
    done = subprocess.run(
        list(map(str, command)), cwd=home, env=kept | place, capture_output=True, text=True, timeout=300, check=False
    )
    (home / "env" / ".env").unlink()
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def done(dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A language model that classifies, trained for two steps."""
    folder = tmp_path_factory.mktemp("tracked")
    own = ["stage=classify", "arm=llm", f"model.model_name={base}", "model.max_length=192", "model.head=score"]
    own += [
        "training.max_steps=2",
        "training.logging_steps=1",
        "training.eval_steps=1",
        "training.load_in_4bit=false",
        "training.batch_size=8",
    ]
    kept = [f"training.output_dir={folder / 'run'}", "evaluation.bootstrap_resamples=100"]
    script = ROOT / "scripts" / "train.py"
    printed = in_a_home(folder / "home", sys.executable, script, *own, *kept, *data_keys(dataset), *ALL_ON)
    return Done(folder / "run", folder / "home", printed)


def phrases(run: Path) -> set[str]:
    """What the run's narratives say, phrase by phrase; words that a config may hold too are no phrases."""
    tables = [
        prepared.narratives(split).select("narrative").collect()
        for prepared in (Prepared(run), Prepared(run / "judged"))
        for split in prepared.splits()
    ]
    told = pl.concat(tables)["narrative"].to_list()
    parts = {part.strip(" .") for narrative in told for part in re.split(r"[\n;:]", narrative)}
    return {part for part in parts if len(part) >= 8 and " " in part}


def found(written: dict[Path, bytes], wanted: list[bytes]) -> set[bytes]:
    return {one for one in wanted for content in written.values() if one in content}


def test_no_tracker_was_lost(done: Done) -> None:
    history = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
    assert not [line for line in history if line.get("event") == "tracker_lost"]
    assert {name for name in TRACKERS if any((done.run / name).rglob("*"))} == set(TRACKERS)


def test_every_tracker_has_the_figures(done: Done) -> None:
    figures = json.loads((done.run / "summary.json").read_text())["metrics"]
    assert "tuning/auroc" in figures
    for tracker in TRACKERS:
        content = b"".join(searchable(done.run / tracker).values())
        for name in (*figures, "train/loss", "eval/loss", "model.max_length", "held_out"):
            inside = name.rpartition(".")[2] if tracker != "mlflow" else name
            assert inside.encode() in content, (tracker, name)
        assert b"psutil" not in content  # the packages of the environment, beyond those of environment.json
    assert sorted(path.name for path in (done.run / "mlflow").rglob("*.png")) == sorted(
        path.name for path in (done.run / "plots").rglob("*.png")
    )


def test_nothing_of_a_patient_is_in_any_file_of_a_tracker(done: Done, dataset: Path) -> None:
    told = phrases(done.run)
    assert len(told) > 100
    assert not found(done.written, [phrase.encode() for phrase in told])
    labels = pl.concat(pl.read_parquet(path) for path in sorted((dataset / "labels" / "cancer").glob("*.parquet")))
    assert labels["subject_id"].min() >= FIRST_SUBJECT
    assert not found(done.written, [form for subject in labels["subject_id"].unique() for form in forms_of(subject)])
    times = {form for time in labels["prediction_time"] for form in (str(time), time.isoformat())}
    assert not found(done.written, [time.encode() for time in times])
    columns = ["subject_id", "prediction_time", "boolean_value", "text_value"]
    assert not found(done.written, [column.encode() for column in columns])


TELLS_ON_PURPOSE = """
import sys
from pathlib import Path
from epicrisis.settings import settings_from
from epicrisis.tracking.run_directory import open_run
from epicrisis.tracking.trackers.tracked_run import _MAKERS
settings = settings_from({"wandb": {"project": "ours", "mode": "offline"}})
run = open_run(Path(sys.argv[1]), {})
for make in _MAKERS.values():
    tracker = make(run, settings)
    tracker.settings({"note": "x" * 40_000 + sys.argv[2], "more": sys.argv[3]}, {})
    tracker.finish(True)
"""


def test_what_is_told_on_purpose_is_found(done: Done, tmp_path: Path) -> None:
    phrase, subject = sorted(phrases(done.run))[0], FIRST_SUBJECT + 7
    in_a_home(tmp_path / "home", sys.executable, "-c", TELLS_ON_PURPOSE, tmp_path / "run", phrase, subject)
    for tracker in TRACKERS:
        written = searchable(tmp_path / "run" / tracker)
        assert found(written, [phrase.encode()]), tracker
        assert found(written, forms_of(subject)), tracker


def test_no_key_is_written_or_printed(done: Done) -> None:
    everything = {**searchable(done.run, done.home), Path("printed"): done.printed.encode()}
    secret = [SECRETS[name].encode() for name in NAMES if name != "WANDB_ENTITY"]
    assert not found(everything, secret)
    of_run = {path: content for path, content in everything.items() if "wandb" not in path.parts}
    assert not found(of_run, [SECRETS["WANDB_ENTITY"].encode()])


def test_wandb_collects_nothing_by_itself(done: Done) -> None:
    """Neither the command line, the packages, the user's home nor errors are in what would be sent."""
    sent = {file: content for file, content in searchable(done.run / "wandb").items() if file.suffix == ".wandb"}
    unwanted = [b"scripts/train.py", b"requirements.txt", b"wandb-metadata.json", str(done.home).encode()]
    assert len(sent) == 1
    assert not found(sent, unwanted)
    assert found(searchable(done.home), [b'"disable-analytics":true'])


def test_a_garbled_file_of_keys_ends_a_command(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / ".env").write_text("HF_UPLOAD_TOKEN\nhf_NotToBeSeen is here\n")
    script = ROOT / "scripts" / "check.py"
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "line 1 is no NAME=value" in done.stderr
    assert "NotToBeSeen" not in done.stdout + done.stderr


def test_trials_of_an_agent_have_their_own_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_from({"training": {"output_dir": "runs/sweep"}})
    assert of_agents_run(settings) is settings
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    assert of_agents_run(settings) is settings
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    assert of_agents_run(settings).training.output_dir == Path("runs/sweep/abc123")


def test_a_single_run_ends_with_its_figures(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert last.pop("event") == "judged"
    assert {name: value for name, value in last.items() if "/" in name} == summary["metrics"]
    for metric, estimate in summary["arms"]["logistic_regression"].items():
        assert summary["metrics"].get(f"held_out/{metric}") == estimate["value"]
    settings = settings_from({"stage": "classify", "arm": "logistic_regression"})
    assert {name for name in summary["metrics"] if name.startswith("tuning/")} == set(
        logged_metrics(settings, "binary")
    )


def test_tuning_is_judged_as_held_out_is(finished: Path) -> None:
    from sklearn.metrics import brier_score_loss, roc_auc_score

    metrics = json.loads((finished / "summary.json").read_text())["metrics"]
    for split in ("tuning", "held_out"):
        table = pl.read_parquet(finished / "predictions" / f"{split}.parquet")
        labels, probabilities = table["boolean_value"], table["predicted_boolean_probability"]
        assert metrics[f"{split}/auroc"] == pytest.approx(roc_auc_score(labels, probabilities))
        assert metrics[f"{split}/brier"] == pytest.approx(brier_score_loss(labels, probabilities))


def test_so_does_a_run_of_several_classes(dataset: Path, tmp_path: Path) -> None:
    keys = [*TABULAR, *data_keys(dataset, "length_of_stay"), f"training.output_dir={tmp_path}"]
    assert main(["train", *keys]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    judged = {name.partition("/")[2] for name in summary["metrics"] if name.startswith("tuning/")}
    assert {"auroc", "auroc_micro", "brier", "ece"} <= judged
    of_classes = {name.removeprefix("auroc:") for name in judged if name.startswith("auroc:")}
    assert of_classes
    assert of_classes <= set(summary["positives"])
    assert not [name for name in judged if "calibrated" in name]
    assert "held_out/brier_calibrated" in summary["metrics"]


def test_and_a_pretraining(dataset: Path, tmp_path: Path) -> None:
    own = ["arm=structured", "stage=pretrain", "structured.size=demo", "structured.context=64", "training.max_steps=2"]
    keys = [*own, f"data.meds_dir={dataset}", f"training.output_dir={tmp_path}", "tensorboard.enabled=true"]
    assert main(["train", *keys]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["metrics"]["tuning/loss"] == summary["loss"]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["tuning/loss"] == summary["loss"]
    assert b"tuning/loss" in b"".join(searchable(tmp_path / "tensorboard").values())


def test_a_benchmark_tells_its_table_and_plots(dataset: Path, tmp_path: Path) -> None:
    arms = "[{name: LR, overrides: {arm: logistic_regression}}, {name: Light, overrides: {arm: lightgbm}}]"
    keys = [*TABULAR, *data_keys(dataset), "stage=classify", f"training.output_dir={tmp_path}", "mlflow.enabled=true"]
    command = ["benchmark", *keys, f"benchmark.arms={arms}"]
    assert main(command) == 0
    [kept] = (tmp_path / "mlflow").rglob("results.csv")
    assert set(pl.read_csv(kept)["arm"]) == {"LR", "Light"}
    assert (kept.parent / "plots" / "roc.png").is_file()
    assert not (tmp_path / "arms" / "lr" / "mlflow").exists()
    stamps = {path: path.read_text() for path in (tmp_path / "arms").rglob("stamps/arm.json")}
    assert main([*command, "mlflow.run_name=again"]) == 0
    assert {path: path.read_text() for path in stamps} == stamps
