"""The tabular arms learn several classes and several labels, keep them, and say what was not tuned."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score
from tests.tabular.test_tabular_arms import NAMES, SUFFIXES, Log, VisibleEvents, cohort

from epicrisis.cohort.task import label_matrix
from epicrisis.settings.problems import InputError
from epicrisis.tabular import ARMS, load_arm

KINDS = ("multiclass", "multilabel")


def several(kind: str, n_tuning: int = 150) -> tuple[pl.DataFrame, VisibleEvents]:
    """Labels that hang on the code RISK and on the sign of LAB: `risk`, `lab`, or neither (`none`)."""
    rows, history = cohort(n_tuning=n_tuning)
    keys = ["subject_id"]
    risk = history.table.filter(code="RISK").select(keys).with_columns(risk=pl.lit(True))
    lab = history.table.filter(code="LAB").select("subject_id", lab=pl.col("numeric_value") > 0.5)
    signs = rows.join(risk, on=keys, how="left", maintain_order="left").join(lab, on=keys, maintain_order="left")
    has_risk, has_lab = signs["risk"].fill_null(False).to_numpy(), signs["lab"].to_numpy()
    if kind == "multiclass":
        return rows.with_columns(label=pl.Series(np.where(has_risk, "risk", np.where(has_lab, "lab", "none")))), history
    words = [[name for name, has in (("lab", a), ("risk", b)) if has] for a, b in zip(has_lab, has_risk, strict=True)]
    return rows.with_columns(label=pl.Series(words, dtype=pl.List(pl.String))), history


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_class_is_learnt_and_kept(name: str, kind: str, tmp_path: Path) -> None:
    rows, history = several(kind)
    run = Log()
    fitted = ARMS[name]().fit(rows, history, run)
    assert fitted.classes == (("lab", "none", "risk") if kind == "multiclass" else ("lab", "risk"))
    assert run.lines[0]["tuning_auroc"]
    held_out = rows.filter(pl.col("split") == "held_out")
    found = fitted.predict(held_out, history)
    assert found.shape == (held_out.height, len(fitted.classes))
    assert ((found >= 0) & (found <= 1)).all()
    if kind == "multiclass":
        assert found.sum(axis=1) == pytest.approx(np.ones(len(found)))
    labels = label_matrix(held_out, fitted.classes).to_numpy()
    assert min(roc_auc_score(labels[:, c], found[:, c]) for c in range(labels.shape[1])) > 0.9
    fitted.save(tmp_path)
    again = load_arm(tmp_path)
    assert again.classes == fitted.classes
    assert np.array_equal(again.predict(held_out, history), found)
    assert {path.suffix for path in tmp_path.iterdir()} <= SUFFIXES


@pytest.mark.parametrize("name", NAMES)
def test_two_words_are_two_classes(name: str) -> None:
    rows, history = several("multiclass")
    two = rows.with_columns(label=pl.when(pl.col("label") == "risk").then(pl.lit("yes")).otherwise(pl.lit("no")))
    flags = rows.with_columns(label=pl.col("label") == "risk")
    words, booleans = (ARMS[name]().fit(r, history, Log()).predict(r, history) for r in (two, flags))
    assert words.sum(axis=1) == pytest.approx(np.ones(len(words)))
    assert np.corrcoef(words[:, 1], booleans[:, 1])[0, 1] > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_a_class_without_tuning_rows_is_not_tuned_on_and_told(name: str) -> None:
    rows, history = several("multiclass")
    moved = rows.with_columns(
        label=pl.when((pl.col("split") == "tuning") & (pl.col("label") == "risk"))
        .then(pl.lit("lab"))
        .otherwise("label")
    )
    assert "no tuning row has risk" in ARMS[name]().fit(moved, history, Log()).notes[0]
    rows, history = several("multilabel")
    emptied = rows.with_columns(
        label=pl.when(pl.col("split") == "tuning")
        .then(pl.col("label").list.set_difference(pl.lit(["risk"])))
        .otherwise("label")
    )
    run = Log()
    assert "for risk: none, or all, of the tuning rows have it" in ARMS[name]().fit(emptied, history, run).notes[0]
    assert {key.split()[0] for key in run.lines[0]["tuning_auroc"]} == {"0"}  # lab was


def test_a_label_that_no_train_row_has_is_refused() -> None:
    rows, history = several("multilabel")
    unseen = rows.with_columns(label=pl.when(pl.col("split") == "tuning").then(pl.lit(["new"])).otherwise("label"))
    with pytest.raises(InputError, match="none, or all, of the 400 train rows have new"):
        ARMS["logistic_regression"]().fit(unseen, history, Log())
