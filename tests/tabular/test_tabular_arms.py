"""The tabular arms learn what is there, nothing where there is nothing, and say what they did not tune."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from epicrisis.cohort import build_cohort
from epicrisis.settings.problems import InputError
from epicrisis.tabular import ARMS, FittedArm, load_arm

DATA = Path(__file__).parents[2].parent / "shared" / "data"
NAMES = ("logistic_regression", "random_forest", "xgboost", "lightgbm")
CHOSEN = dict(zip(NAMES, ("C", "min_samples_leaf", "n_trees", "n_trees"), strict=True))
SUFFIXES = {".json", ".safetensors", ".ubj", ".txt"}
T0 = datetime(2020, 1, 1)


@dataclass(frozen=True)
class VisibleEvents:
    """A history over a table that is visible as it stands."""

    table: pl.DataFrame

    def shards(self) -> Iterator[tuple[pl.DataFrame, pl.LazyFrame]]:
        yield self.table.select("subject_id", "prediction_time").unique(), self.table.lazy()


@dataclass
class Log:
    """A run that remembers what it was told."""

    dir: Path = Path("unused")
    lines: list[dict[str, Any]] = field(default_factory=list)

    def log(self, **fields: Any) -> None:
        self.lines.append(fields)


def cohort(n: int = 800, seed: int = 0, n_tuning: int = 150) -> tuple[pl.DataFrame, VisibleEvents]:
    """Half of the subjects have the code RISK, which triples the odds; LAB is higher in those who fall ill."""
    generator = np.random.default_rng(seed)
    risk = generator.random(n) < 0.5
    labels = generator.random(n) < np.where(risk, 0.6, 0.15)
    splits = np.repeat(["train", "tuning", "held_out"], [n // 2, n_tuning, n - n // 2 - n_tuning])
    rows = pl.DataFrame({"subject_id": range(n), "prediction_time": [T0] * n, "split": splits, "label": labels})
    lab = pl.Series(generator.normal(labels * 1.0, 1.0), dtype=pl.Float32)
    event = rows.select("subject_id", "prediction_time", time=pl.lit(T0 - timedelta(days=3)))
    nothing = pl.lit(None, pl.Float32)
    tables = [
        event.with_columns(time=pl.lit(datetime(1970, 1, 1)), code=pl.lit("MEDS_BIRTH"), numeric_value=nothing),
        event.filter(pl.Series(risk)).with_columns(code=pl.lit("RISK"), numeric_value=nothing),
        event.with_columns(code=pl.lit("LAB"), numeric_value=lab),
        *(
            event.filter(pl.Series(generator.random(n) < 0.3)).with_columns(
                code=pl.lit(f"NOISE{i}"), numeric_value=nothing
            )
            for i in range(10)
        ),
    ]
    return rows, VisibleEvents(pl.concat(tables))


def held_out_auroc(fitted: FittedArm, rows: pl.DataFrame, history: VisibleEvents) -> float:
    held_out = rows.filter(pl.col("split") == "held_out")
    return float(roc_auc_score(held_out["label"].to_numpy(), fitted.predict(held_out, history)[:, 1]))


@pytest.mark.parametrize("name", NAMES)
def test_learns_what_is_there(name: str) -> None:
    rows, history = cohort()
    run = Log()
    fitted = ARMS[name]().fit(rows, history, run)
    assert held_out_auroc(fitted, rows, history) > 0.75
    assert fitted.notes == ()
    (line,) = run.lines
    assert (line["arm"], line["n_train"], line["n_codes"], line["n_values"]) == (name, 400, 13, 2)
    assert line["tuning_auroc"]
    assert line[CHOSEN[name]]


@pytest.mark.parametrize("name", NAMES)
def test_learns_nothing_from_shuffled_labels(name: str) -> None:
    rows, history = cohort(3000)
    shuffled = rows.with_columns(pl.col("label").shuffle(seed=1))
    assert held_out_auroc(ARMS[name]().fit(shuffled, history, Log()), shuffled, history) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_a_visible_code_changes_the_prediction_and_an_unknown_one_does_not(name: str) -> None:
    rows, history = cohort()
    fitted = ARMS[name]().fit(rows, history, Log())
    one = rows.join(history.table.filter(pl.col("code") == "RISK"), on="subject_id", how="anti").tail(1)
    event = history.table.filter(pl.col("subject_id") == one["subject_id"][0]).head(1)
    known = VisibleEvents(pl.concat([history.table, event.with_columns(code=pl.lit("RISK"))]))
    unknown = VisibleEvents(pl.concat([history.table, event.with_columns(code=pl.lit("NEVER SEEN"))]))
    before = fitted.predict(one, history)
    assert fitted.predict(one, known)[0, 1] > before[0, 1] + 0.05
    assert np.array_equal(fitted.predict(one, unknown), before)


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_per_row_and_class_in_the_order_of_rows(name: str) -> None:
    rows, history = cohort(400)
    fitted = ARMS[name]().fit(rows, history, Log())
    scores = fitted.predict(rows, history)
    assert scores.shape == (400, 2)
    assert scores.dtype == np.float64
    assert scores.sum(axis=1) == pytest.approx(np.ones(400))
    assert fitted.predict(rows[::-1], history) == pytest.approx(scores[::-1])
    stranger = rows.head(1).with_columns(subject_id=pl.lit(10**6, pl.Int64))
    assert 0 < fitted.predict(stranger, history)[0, 1] < 1


@pytest.mark.parametrize("name", NAMES)
def test_held_out_rows_have_no_say(name: str) -> None:
    rows, history = cohort(400)
    turned = rows.with_columns(label=pl.when(pl.col("split") == "held_out").then(~pl.col("label")).otherwise("label"))
    changed = history.table.with_columns(
        numeric_value=pl.when(pl.col("subject_id") >= 350).then(99.0).otherwise("numeric_value")
    )
    train = rows.filter(pl.col("split") == "train")
    first = ARMS[name]().fit(rows, history, Log()).predict(train, history)
    second = ARMS[name]().fit(turned, VisibleEvents(changed), Log()).predict(train, history)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_model_and_another_seed_another(name: str) -> None:
    rows, history = cohort(400)
    first, again = (ARMS[name](seed=3).fit(rows, history, Log()).predict(rows, history) for _ in range(2))
    assert np.array_equal(first, again)
    if name != "logistic_regression":
        assert not np.array_equal(first, ARMS[name](seed=4).fit(rows, history, Log()).predict(rows, history))


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("logistic_regression", "C fixed at 0.1"),
        ("random_forest", "leaves of one row or more"),
        ("xgboost", "100 trees, no early stopping"),
        ("lightgbm", "100 trees, no early stopping"),
    ],
)
def test_what_was_not_tuned_is_said(name: str, fixed: str) -> None:
    rows, history = cohort(400, n_tuning=49)
    fitted = ARMS[name]().fit(rows, history, Log())
    assert fitted.notes == (f"{fixed}: 49 tuning rows are fewer than 50",)
    rows, history = cohort(400)
    one_class = rows.with_columns(label=pl.col("label") & (pl.col("split") != "tuning"))
    assert ARMS[name]().fit(one_class, history, Log()).notes == (f"{fixed}: the tuning rows are of one class only",)


def test_what_cannot_be_learned_is_refused(tmp_path: Path) -> None:
    rows, history = cohort(400)
    with pytest.raises(InputError, match="200 train rows are of one class only"):
        ARMS["xgboost"]().fit(rows.with_columns(label=False), history, Log())
    with pytest.raises(InputError, match="true or false, or words, and these are Float64"):
        ARMS["xgboost"]().fit(rows.with_columns(label=pl.lit(1.5)), history, Log())
    with pytest.raises(InputError, match="none, or all, of the 200 train rows have short"):
        ARMS["xgboost"]().fit(rows.with_columns(label=pl.lit("short")), history, Log())
    with pytest.raises(InputError, match="holds no tabular arm"):
        load_arm(tmp_path)
    ARMS["xgboost"]().fit(rows, history, Log()).save(tmp_path)
    assert ARMS["xgboost"]().load(tmp_path).name == "xgboost"
    with pytest.raises(InputError, match="holds a fitted xgboost, not logistic_regression"):
        ARMS["logistic_regression"]().load(tmp_path)


def test_saved_arms_predict_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    rows, history = cohort(400)
    history.table.write_parquet(tmp_path / "events.parquet")
    rows.write_parquet(tmp_path / "rows.parquet")
    expected = {}
    for name in NAMES:
        fitted = ARMS[name]().fit(rows, history, Log())
        fitted.save(tmp_path / name)
        expected[name] = fitted.predict(rows, history)[:, 1]
        assert {path.suffix for path in (tmp_path / name).iterdir()} <= SUFFIXES
    program = (
        "import json, polars as pl\n"
        "from pathlib import Path\n"
        f"here = Path({str(tmp_path)!r})\n"
        "from epicrisis.tabular import load_arm\n"
        "class Saved:\n"
        "    def shards(self): yield None, pl.scan_parquet(here / 'events.parquet')\n"
        "rows = pl.read_parquet(here / 'rows.parquet')\n"
        f"print(json.dumps({{n: load_arm(here / n).predict(rows, Saved())[:, 1].tolist() for n in {NAMES!r}}}))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    for name, found in json.loads(run.stdout).items():
        assert np.array_equal(found, expected[name])


@pytest.mark.skipif(not (DATA / "gibleed").is_dir(), reason=f"the GI-bleed cohort is not at {DATA}")
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("logistic_regression", "logistic_regression_code_counts_plus_age"),
        ("xgboost", "xgboost_code_counts_last_value_plus_age"),
    ],
)
def test_reproduces_the_reference_on_the_gi_bleed_cohort(name: str, reference: str) -> None:
    known = json.loads((DATA / "gibleed" / "references.json").read_text())["tasks"]["gi_bleed"]
    built = build_cohort(DATA / "gibleed", labels_dir=DATA / "gibleed" / "labels" / "gi_bleed")
    fitted = ARMS[name]().fit(built.rows, built.history(built.rows), Log())
    held_out = built.select("held_out")
    scores = fitted.predict(held_out, built.history(held_out))[:, 1]
    assert held_out.height == known["n"]["held_out"]
    assert held_out["label"].sum() == known["positives"]["held_out"]
    found = roc_auc_score(held_out["label"].to_numpy(), scores)
    assert found == pytest.approx(known["held_out"][reference]["auroc"], abs=0.03)
    assert found == pytest.approx({"logistic_regression": 0.664, "xgboost": 0.683}[name], abs=0.03)


@pytest.mark.skipif(not (DATA / "mimic_iv_demo").is_dir(), reason=f"the MIMIC-IV demo is not at {DATA}")
def test_the_mimic_demo_is_fitted_with_a_fixed_setting_that_is_said() -> None:
    folder = DATA / "mimic_iv_demo"
    built = build_cohort(folder, labels_dir=folder / "labels" / "in_hospital_mortality")
    fitted = ARMS["logistic_regression"]().fit(built.rows, built.history(built.rows), Log())
    assert fitted.notes == ("C fixed at 0.1: 15 tuning rows are fewer than 50",)
    scores = fitted.predict(built.select("held_out"), built.history(built.select("held_out")))
    assert scores.shape == (18, 2)
    assert np.isfinite(scores).all()
