"""The long predictions table of several classes or labels: made, checked, compared, calibrated and judged."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from epicrisis.evaluation.bootstrap import bootstrap
from epicrisis.evaluation.calibration import apply_temperature, fit_temperature
from epicrisis.evaluation.canaries import canaries
from epicrisis.evaluation.judge import Scope, judge, results_text
from epicrisis.evaluation.predictions import (
    CLASS_SCHEMA,
    check_rows_match,
    class_arrays,
    kind_of_predictions,
    one_against_rest,
    read_predictions,
    task_predictions,
    with_split,
    write_predictions,
)
from epicrisis.settings.problems import InputError

T = [datetime(2020, 1, 1), datetime(2021, 1, 1), datetime(2020, 1, 1)]
WORDS = pl.DataFrame({"subject_id": [2, 1, 1], "prediction_time": T, "split": ["tuning"] * 3, "label": ["b", "a", "b"]})
SETS = WORDS.with_columns(label=pl.Series([["a", "b"], [], ["b"]], dtype=pl.List(pl.String)))
SHARES = np.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])


def cohort(kind: str, n: int = 600, sharpness: float = 1.0) -> tuple[pl.DataFrame, np.ndarray]:
    """Rows whose labels were drawn with known probabilities, and these with their logits times `sharpness`."""
    generator = np.random.default_rng(0)
    logits = generator.normal(-0.5, 1.5, (n, 3))
    names = np.array(["x", "y", "z"])
    if kind == "multiclass":
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        labels = pl.Series([str(generator.choice(names, p=share)) for share in shares])
        told = np.exp(logits * sharpness)
        told = told / told.sum(axis=1, keepdims=True)
    else:
        has = generator.random((n, 3)) < 1 / (1 + np.exp(-logits))
        labels = pl.Series([names[row].tolist() for row in has], dtype=pl.List(pl.String))
        told = 1 / (1 + np.exp(-logits * sharpness * np.array([1.0, 2.0, 0.5])))
    splits = np.repeat(["train", "tuning", "held_out"], n // 3)
    times = [datetime(2020, 1, 1) + timedelta(days=i % 7) for i in range(n)]
    rows = {"subject_id": np.arange(n) // 2, "prediction_time": times, "split": splits, "label": labels}
    return pl.DataFrame(rows), told


def of_split(table: pl.DataFrame, rows: pl.DataFrame, split: str) -> pl.DataFrame:
    return table.filter(with_split(table, rows)["split"] == split)


def test_a_line_for_each_row_and_class() -> None:
    table = task_predictions(WORDS, ("a", "b"), SHARES)
    assert table.schema == CLASS_SCHEMA
    assert table["class"].to_list() == ["a", "b"] * 3
    assert table["label"].to_list() == [False, True, True, False, False, True]
    assert table["probability"].to_list() == [0.2, 0.8, 0.6, 0.4, 0.5, 0.5]
    assert task_predictions(SETS, ("a", "b"), SHARES)["label"].to_list() == [True, True, False, False, False, True]
    assert kind_of_predictions(table) == "multiclass"
    assert kind_of_predictions(task_predictions(SETS, ("a", "b"), SHARES)) == "multilabel"


def test_arrays_are_sorted_by_row_and_classes_in_order() -> None:
    numbers = WORDS.with_columns(label=pl.Series(["10", "2", "10"]))
    table = task_predictions(numbers, ("2", "10"), SHARES).sample(fraction=1, shuffle=True, seed=1)
    classes, subjects, labels, probabilities = class_arrays(table)
    assert classes == ("2", "10")
    assert subjects.tolist() == [1, 1, 2]
    assert labels.tolist() == [[False, True], [True, False], [False, True]]
    assert probabilities.tolist() == [[0.5, 0.5], [0.6, 0.4], [0.2, 0.8]]


def test_one_against_the_rest_is_a_binary_table() -> None:
    found = one_against_rest(task_predictions(WORDS, ("a", "b"), SHARES))
    assert list(found) == ["a", "b"]
    assert found["b"]["boolean_value"].to_list() == [True, False, True]
    assert found["b"]["predicted_boolean_probability"].to_list() == [0.8, 0.4, 0.5]
    assert kind_of_predictions(found["b"]) == "binary"


def test_written_read_and_joined_with_the_split(tmp_path: Path) -> None:
    table = task_predictions(WORDS, ("a", "b"), SHARES)
    assert read_predictions(write_predictions(table, tmp_path / "held_out.parquet")).equals(table)
    assert with_split(table, WORDS)["split"].to_list() == ["tuning"] * 6


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda table: table.slice(1), "1 rows lack a class"),
        (lambda table: pl.concat([table, table[:1]]), "2 rows repeat a subject and time and class"),
        (lambda table: table.with_columns(probability=pl.lit(1.5)), "6 rows hold a probability that is NaN or outside"),
        (lambda table: table.drop("label"), "exactly these columns"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, change, what: str) -> None:
    change(task_predictions(WORDS, ("a", "b"), SHARES)).write_parquet(tmp_path / "table.parquet")
    with pytest.raises(InputError, match=what):
        read_predictions(tmp_path / "table.parquet")


def test_labels_that_are_no_class_of_the_model_are_refused_by_count() -> None:
    with pytest.raises(InputError, match="2 rows have a label that is none of the classes a, c"):
        task_predictions(WORDS, ("a", "c"), SHARES)
    with pytest.raises(InputError, match="2 rows have a label that is none of the classes a, c"):
        task_predictions(SETS, ("a", "c"), SHARES)
    with pytest.raises(InputError, match=r"probabilities of shape \(3, 2\)"):
        task_predictions(WORDS, ("a", "b", "c"), SHARES)


@pytest.mark.parametrize("rows", [WORDS, SETS], ids=["multiclass", "multilabel"])
def test_every_arm_must_have_the_same_rows_and_labels(rows: pl.DataFrame) -> None:
    table = task_predictions(rows, ("a", "b"), SHARES)
    last_b = (pl.col("subject_id") == 2) & (pl.col("class") == "b")
    check_rows_match({"arm": table.reverse()}, rows)
    with pytest.raises(InputError, match="2 rows for 3 labels: 1 labelled rows are missing, 0 rows have no label"):
        check_rows_match({"arm": table.filter(pl.col("subject_id") == 1)}, rows)
    with pytest.raises(InputError, match="0 rows have no label, 1 carry another label"):
        check_rows_match({"arm": table.with_columns(label=~last_b & pl.col("label"))}, rows)


def test_one_temperature_undoes_the_sharpness_of_several_classes() -> None:
    rows, told = cohort("multiclass", 9000, sharpness=3.0)
    table = task_predictions(rows, ("x", "y", "z"), told)
    fitted = fit_temperature(with_split(of_split(table, rows, "tuning"), rows))
    assert fitted.value == pytest.approx(3.0, rel=0.1)
    calibrated = apply_temperature(table, fitted)
    _, _, labels, before = class_arrays(table)
    _, _, _, after = class_arrays(calibrated)
    assert after.sum(axis=1) == pytest.approx(np.ones(len(after)))
    assert log_loss(labels.argmax(axis=1), after) < log_loss(labels.argmax(axis=1), before) - 0.1
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()


def test_each_label_has_its_own_temperature() -> None:
    rows, told = cohort("multilabel", 9000)
    table = task_predictions(rows, ("x", "y", "z"), told)
    fitted = fit_temperature(with_split(of_split(table, rows, "tuning"), rows))
    assert {name: one.value for name, one in fitted.of_labels.items()} == pytest.approx(
        {"x": 1.0, "y": 2.0, "z": 0.5}, rel=0.15
    )
    assert fitted.note.startswith("one for each of 3 labels")
    calibrated = apply_temperature(table, fitted)
    for name in ("x", "y", "z"):
        own = calibrated.filter(pl.col("class") == name)["probability"].to_numpy()
        told_own = table.filter(pl.col("class") == name)["probability"].to_numpy()
        assert (np.argsort(own) == np.argsort(told_own)).all()


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_judged_with_intervals_per_class_and_as_a_whole(kind: str) -> None:
    rows, told = cohort(kind)
    held_out = rows.filter(pl.col("split") == "held_out")
    table = task_predictions(rows, ("x", "y", "z"), told)
    tables = {"arm": of_split(table, rows, "held_out")}
    temperatures = {"arm": fit_temperature(with_split(of_split(table, rows, "tuning"), rows))}
    found = judge(tables, held_out, Scope("demo", "stay"), temperatures=temperatures, n_resamples=100)
    results = found.results.filter(arm="arm")
    _, _, labels, probabilities = class_arrays(tables["arm"])
    values = dict(zip(results["metric"], results["value"], strict=True))
    assert values["auroc"] == pytest.approx(roc_auc_score(labels, probabilities, average="macro"))
    assert values["auroc:y"] == pytest.approx(roc_auc_score(labels[:, 1], probabilities[:, 1]))
    assert {"auroc_micro", "auprc_weighted", "brier_calibrated", "ece_calibrated", "ece:z"} <= set(values)
    ranked = results.filter(pl.col("metric").str.starts_with("au"))
    assert (ranked["lower"] <= ranked["value"]).all()
    assert (ranked["value"] <= ranked["upper"]).all()
    counts = dict(zip(results["metric"], results["n_positive"], strict=True))
    assert counts["auroc:y"] == labels[:, 1].sum()
    assert {counts[name] for name in ("auroc", "brier", "auroc_micro", "auprc_weighted", "ece_calibrated")} == {None}
    assert "each against the rest" in results_text(found)


def test_resamples_are_of_subjects_and_repeat_with_the_seed() -> None:
    rows, told = cohort("multilabel")
    table = task_predictions(rows, ("x", "y", "z"), told)
    first, again, other = (bootstrap(table, 50, seed).resampled["auroc"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert bootstrap(table, 10).n_subjects == 300


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_canaries_sing_for_the_mean_over_classes(kind: str) -> None:
    rows, _ = cohort(kind, 900)
    first = pl.col("label").list.contains("x") if kind == "multilabel" else pl.col("label") == "x"
    scalars = rows.select(
        "subject_id",
        "prediction_time",
        record_length=first.cast(pl.Float64),
        last_date=pl.lit(1.0),
        calendar_date=pl.lit(2.0),
    )
    found = {one.name: one.auroc for one in canaries(scalars, rows, n_resamples=50)}
    assert found["record_length"].excludes_half
    assert found["last_date"].value == 0.5
