"""Bad input: one message that says what, where and how to mend it, exit code 2, and nothing written."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from epicrisis.commands import main
from tests.commands.conftest import FIRST_SUBJECT, TABULAR, data_keys

ROOT = Path(__file__).parents[2]
STRANGER = FIRST_SUBJECT + 987_654
DATE = re.compile(r"\b(19|20|21|22)\d\d-\d\d-\d\d\b")

Spoil = Callable[[Path], list[str]]
"""Spoils a copy of the dataset, and gives the overrides that go with it."""


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder and a hash of its bytes; every folder too."""
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def edit(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> list[str]:
    """Rewrite a Parquet file; no override is needed to go with it."""
    change(pl.read_parquet(path)).write_parquet(path)
    return []


def first_shard(data: Path) -> Path:
    return data / "data" / "train" / "0.parquet"


def train_labels(data: Path) -> Path:
    return data / "labels" / "cancer" / "train.parquet"


def corrupt(path: Path) -> list[str]:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return []


def corrupt_page(path: Path) -> list[str]:
    """The header is whole, so only reading the events themselves can find it."""
    whole = bytearray(path.read_bytes())
    whole[4 : len(whole) // 2] = bytes(len(whole) // 2 - 4)
    path.write_bytes(whole)
    return []


def unknown_subject(table: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([table, table.head(1).with_columns(subject_id=pl.lit(STRANGER, dtype=pl.Int64))])


def in_two_splits(table: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([table, table.filter(pl.col("split") == "train").head(3).with_columns(split=pl.lit("held_out"))])


def first_value(value: float) -> Callable[[pl.DataFrame], pl.DataFrame]:
    first = pl.int_range(pl.len()) == 0
    return lambda table: table.with_columns(
        pl.when(first).then(pl.lit(value, dtype=pl.Float32)).otherwise("numeric_value").alias("numeric_value")
    )


def lookup(data: Path, text: str) -> list[str]:
    (data / "medical_lookup.csv").write_text(text)
    return [f"data.medical_lookup_filepath={data / 'medical_lookup.csv'}"]


def all_same_label(data: Path) -> list[str]:
    return edit(train_labels(data), lambda table: table.with_columns(boolean_value=pl.lit(False)))


def no_held_out(data: Path) -> list[str]:
    (data / "labels" / "cancer" / "held_out.parquet").unlink()
    return []


def task(name: str) -> Spoil:
    return lambda data: [f"data.labels_dir={data / 'labels' / name}"]


CASES: dict[str, tuple[Spoil, str]] = {
    "missing folder": (lambda data: [f"data.meds_dir={data / 'nowhere'}"], "data.meds_dir: .*nowhere does not exist"),
    "folder without events": (lambda data: [f"data.meds_dir={data / 'labels'}"], "labels: no event files"),
    "missing event column": (
        lambda data: edit(first_shard(data), lambda t: t.drop("code")),
        r"train/0.parquet: column code is missing",
    ),
    "wrong event column": (
        lambda data: edit(first_shard(data), lambda t: t.with_columns(pl.col("time").cast(pl.String))),
        r"train/0.parquet: column time is String",
    ),
    "wrong label column": (
        lambda data: edit(train_labels(data), lambda t: t.rename({"boolean_value": "answer"})),
        r"cancer/train.parquet: column boolean_value or .* is missing",
    ),
    "unknown subject in labels": (
        lambda data: edit(train_labels(data), unknown_subject),
        "1 label rows name subjects without any event",
    ),
    "overlapping splits": (
        lambda data: edit(data / "metadata" / "subject_splits.parquet", in_two_splits),
        r"subject_splits.parquet: 3 subjects are in more than one split",
    ),
    "subject without a split": (
        lambda data: edit(data / "metadata" / "subject_splits.parquet", lambda t: t.tail(-1)),
        "1 rows name subjects that are in no split",
    ),
    "empty cohort": (
        lambda data: [edit(path, pl.DataFrame.clear) for path in (data / "labels" / "cancer").iterdir()] and [],
        "the label files hold no rows",
    ),
    "labels that never differ": (all_same_label, "train rows have the same label"),
    "no held_out rows": (no_held_out, "data: no held_out row to judge on"),
    "label after the last event": (
        lambda data: edit(train_labels(data), lambda t: t.with_columns(prediction_time=pl.lit(datetime(2150, 1, 1)))),
        "rows have a prediction_time after the subject's last event",
    ),
    "conflicting labels": (
        lambda data: edit(
            train_labels(data), lambda t: pl.concat([t, t.head(2).with_columns(~pl.col("boolean_value"))])
        ),
        r"2 \(subject, time\) pairs have rows with conflicting labels",
    ),
    "NaN values": (
        lambda data: edit(first_shard(data), first_value(float("nan"))),
        "train/0.parquet: 1 numeric values that are NaN or infinite",
    ),
    "infinite values": (
        lambda data: edit(first_shard(data), first_value(float("inf"))),
        "train/0.parquet: 1 numeric values that are NaN or infinite",
    ),
    "duplicate lookup codes": (
        lambda data: lookup(data, "code,term\nI10,Hypertension\nI10,Headache\n"),
        "medical_lookup.csv: .*1 code",
    ),
    "lookup without its column": (lambda data: lookup(data, "code,kind,year\nI10,x,1\n"), "medical_lookup.csv: .*term"),
    "truncated shard": (lambda data: corrupt(first_shard(data)), "train/0.parquet: cannot be read as Parquet"),
    "shard with a broken page": (
        lambda data: corrupt_page(first_shard(data)),
        "train/0.parquet: cannot be read as Parquet",
    ),
    "corrupt labels": (lambda data: corrupt(train_labels(data)), "cancer/train.parquet: cannot be read as Parquet"),
    "corrupt codes": (
        lambda data: corrupt(data / "metadata" / "codes.parquet"),
        "codes.parquet: cannot be read as Parquet",
    ),
    "true risks of another cohort": (
        lambda data: [f"data.oracle_dir={data / 'oracle' / 'prolonged_stay'}"],
        "data.oracle_dir: .* rows have no true risk there",
    ),
    "unknown key": (lambda data: ["training.sed=1"], "training.sed: is no key of a config"),
    "wrong type": (lambda data: ["training.seed=one"], "training.seed: input should be a valid integer"),
    "words that YAML reads as others": (
        lambda data: ["model.answers=[no, yes]"],
        "unquoted no or yes as False\n +fix: put quotes",
    ),
    "unknown style": (lambda data: ["narrative.style=sonnet"], "narrative.style: no style is called 'sonnet'"),
    "arm that pretrains not": (lambda data: ["stage=pretrain"], "stage: arm `logistic_regression` has no pretraining"),
    "decoder as encoder": (lambda data: ["arm=encoder"], "model.model_name: epicrisis/tiny-llama is a decoder"),
    "time-to-event task": (task("time_to_event"), "the labels of `time_to_event` are times to an event"),
    "classes that the task has not": (lambda data: ["model.num_classes=3"], "model.num_classes: 3, but the task"),
    "no task": (lambda data: ["data.labels_dir=null"], "data.labels_dir: is not given"),
    "cutoff without a date": (
        lambda data: ["data.labels_dir=null", "data.cutoff_months=3"],
        "data.cutoff_months: there is no label or index date to count back from",
    ),
}


def refused(capsys: pytest.CaptureFixture[str], command: str, arguments: list[str]) -> str:
    """Run a command that must refuse; the message it printed."""
    assert main([command, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"epicrisis {command}: bad input\n- ")
    assert printed.err.count("bad input") == 1
    assert printed.err.count("\n- ") == printed.err.count("\n    fix: ")
    assert "Traceback" not in printed.err
    assert str(FIRST_SUBJECT)[:5] not in printed.err, "a message may count subjects, never name them"
    assert not DATE.search(printed.err), "nor tell their dates"
    return printed.err


@pytest.mark.parametrize("name", CASES)
def test_spoilt_input_is_refused_before_anything_is_written(
    name: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(dataset, data)
    spoil, expected = CASES[name]
    overrides = spoil(data)
    before = content(tmp_path)
    message = refused(
        capsys, "train", [*TABULAR, *data_keys(data), f"training.output_dir={run}", "training.seed=0", *overrides]
    )
    assert re.search(expected, message), message
    assert message.count("\n- ") == 1, message
    assert content(tmp_path) == before


@pytest.mark.parametrize("command", ["train", "benchmark", "prepare", "predict", "evaluate", "check"])
def test_every_command_refuses_alike(
    command: str, dataset: Path, tmp_path: Path, write: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*data_keys(dataset), f"training.output_dir={tmp_path / 'run'}", "benchmark.arms=[{name: a, overrides: {}}]"]
    missing = refused(capsys, command, [*TABULAR, *keys, f"data.meds_dir={tmp_path / 'nowhere'}"])
    assert "nowhere does not exist" in missing
    assert "no such config file" in refused(capsys, command, ["--config_filepath", str(tmp_path / "none.yaml")])
    broken = write("broken.yaml", "model: {max_length: 3\ndata: [")
    assert "is not valid YAML" in refused(capsys, command, ["--config_filepath", str(broken)])
    assert "did you mean `meds_dir`" in refused(capsys, command, [*keys, "data.med_dir=x"])
    assert "section.key=value" in refused(capsys, command, [*keys, "faster"])
    assert [path.name for path in tmp_path.iterdir()] == ["broken.yaml"]


def test_an_unusable_run_directory_is_refused_before_the_data_are_read(
    dataset: Path, tmp_path: Path, write: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write("file", "keep me")
    for place in (file, file / "run"):
        for command in ("train", "prepare", "benchmark"):
            arguments = [*TABULAR, *data_keys(dataset), f"training.output_dir={place}"]
            arguments.append("benchmark.arms=[{name: a, overrides: {arm: xgboost}}]")
            assert "training.output_dir: " in refused(capsys, command, arguments)
    assert file.read_text() == "keep me"


def test_a_finished_run_is_neither_repeated_nor_touched(
    dataset: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(finished)
    arguments = [*TABULAR, *data_keys(dataset), f"training.output_dir={finished}"]
    message = refused(capsys, "train", arguments)
    assert "holds a finished run" in message
    assert "training.overwrite_output_dir=true" in message
    both = ["training.resume=true", "training.overwrite_output_dir=true"]
    assert "exclude each other" in refused(capsys, "train", [*arguments, *both])
    spoilt = [*arguments, "training.overwrite_output_dir=true", "data.labels_dir=null"]
    assert "is not given" in refused(capsys, "train", spoilt)
    assert content(finished) == before


def test_a_run_that_is_not_there_cannot_be_used(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TABULAR, *data_keys(dataset), f"training.output_dir={tmp_path / 'run'}"]
    assert "holds no finished run" in refused(capsys, "predict", arguments)
    assert "holds no run" in refused(capsys, "evaluate", arguments)
    assert list(tmp_path.iterdir()) == []


def test_another_arms_run_cannot_be_used(dataset: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(finished)
    arguments = ["arm=xgboost", *data_keys(dataset), f"training.output_dir={finished}"]
    assert "holds a fitted logistic_regression" in refused(capsys, "predict", arguments)
    assert content(finished) == before


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ("[]", "benchmark.arms: no arm is listed"),
        ("[{name: a, overrides: {arm: encoder}}]", "benchmark.arms (a): model.model_name: epicrisis/tiny-llama is"),
        ("[{name: a, overrides: {arm: xgboost, evaluation.split: train}}]", "changes `evaluation`"),
        ("[{name: a, overrides: {arm: xgboost, lora.rank: 3}}]", "lora.rank: is no key"),
        ("[{name: a, overrides: {model.clinical_adapter: runs/nowhere}}]", "runs/nowhere does not exist"),
        ("[{name: a, overrides: {narrative.style: sonnet}}]", "no style is called 'sonnet'"),
    ],
)
def test_no_arm_is_fitted_where_one_is_wrong(
    arms: str, expected: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = "[{name: good, overrides: {arm: xgboost}}, "
    listed = arms if arms == "[]" else good + arms[1:]
    keys = [*data_keys(dataset), f"training.output_dir={tmp_path / 'run'}", f"benchmark.arms={listed}"]
    assert expected in refused(capsys, "benchmark", keys)
    assert list(tmp_path.iterdir()) == []


def test_synthesize_writes_into_no_folder_that_holds_something(
    tmp_path: Path, write: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    write("mine.txt", "keep me")
    arguments = [f"synthetic.output_dir={tmp_path}", "synthetic.n_subjects=10"]
    assert "already holds something" in refused(capsys, "synthesize", arguments)
    assert "synthetic.output_dir: is not given" in refused(capsys, "synthesize", [])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_scripts_exit_with_2(tmp_path: Path) -> None:
    arguments = [f"training.output_dir={tmp_path / 'run'}", "training.sed=1"]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-2:] == ["- training.sed: is no key of a config", "    fix: did you mean `seed`?"]
    assert "Traceback" not in ended.stderr
