"""Metrics of times to an event equal lifelines' and scikit-survival's, resampled by patient, judged and shown."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index as lifelines_index
from sksurv.metrics import brier_score, concordance_index_ipcw, cumulative_dynamic_auc, integrated_brier_score
from sksurv.util import Surv

from epicrisis.evaluation.bootstrap import bootstrap, resample_counts
from epicrisis.evaluation.judge import Judgement, Scope, judge, results_text
from epicrisis.evaluation.predictions import (
    check_rows_match,
    kind_of_predictions,
    read_predictions,
    rows_hash,
    task_predictions,
    with_split,
    write_predictions,
)
from epicrisis.evaluation.report import ReportContent, render, split_counts, summary
from epicrisis.evaluation.survival import Censoring, SurvivalScorer, kaplan_meier
from epicrisis.evaluation.survival_plots import calibration_curve, plot_survival, thirds
from epicrisis.evaluation.survival_predictions import SURVIVAL_SCHEMA, SurvivalArrays, survival_arrays
from epicrisis.settings.problems import InputError

HORIZONS = np.array([30.0, 90.0, 200.0])
COLUMNS = ("risk", "30", "90", "200")


def followed(n: int, seed: int, risk: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Days in whole numbers, so that there are ties, and whether the event was observed."""
    generator = np.random.default_rng(seed)
    event = np.ceil(generator.exponential(150, n) * np.exp(-np.asarray(risk)))
    censoring = np.ceil(generator.uniform(0, 400, n))
    return np.minimum(event, censoring), event <= censoring


def cohort(n: int = 300) -> tuple[pl.DataFrame, np.ndarray]:
    """Rows, two of each subject, a third of them train; and predictions with ties that know something of the risk."""
    generator = np.random.default_rng(5)
    risk = generator.normal(0, 1, n)
    days, observed = followed(n, 1, risk)
    blurred = np.round(risk + generator.normal(0, 1, n), 1)
    by_then = -np.expm1(-np.round(np.exp(blurred), 1)[:, None] * HORIZONS / 150)
    rows = pl.DataFrame(
        {
            "subject_id": np.arange(n) // 2,
            "prediction_time": [datetime(2020, 1, 1 + i % 2) for i in range(n)],
            "split": np.repeat(["train", "tuning", "held_out"], n // 3),
            "label": pl.DataFrame({"days": days, "observed": observed}).to_struct("label"),
        }
    )
    return rows, np.column_stack([blurred, by_then])


ROWS, FOUND = cohort()
TRAIN, HELD_OUT = ROWS.filter(split="train"), ROWS.filter(split="held_out")
TABLE = task_predictions(HELD_OUT, COLUMNS, FOUND[-100:])
CENSORING = Censoring.fit(*followed(400, 0))


def scorer_of(days: np.ndarray, observed: np.ndarray, risk: np.ndarray, by_then: np.ndarray) -> SurvivalScorer:
    return SurvivalScorer(SurvivalArrays(np.arange(len(days)), days, observed, risk, HORIZONS, by_then), CENSORING)


@pytest.mark.parametrize("seed", range(3))
def test_every_metric_is_that_of_the_libraries(seed: int) -> None:
    generator = np.random.default_rng(seed)
    days, observed = followed(251, seed + 10)
    risk = generator.integers(0, 12, 251).astype(float)
    by_then = np.sort(generator.integers(0, 11, (251, 3)) / 10, axis=1)
    found = scorer_of(days, observed, risk, by_then).point()
    train_days, train_observed = followed(400, 0)
    train, test = Surv.from_arrays(train_observed, train_days), Surv.from_arrays(observed, days)
    assert found["c_index"] == pytest.approx(lifelines_index(days, -risk, observed))
    assert found["c_index_uno"] == pytest.approx(concordance_index_ipcw(train, test, risk, tau=200)[0])
    aurocs = cumulative_dynamic_auc(train, test, by_then, HORIZONS)[0]
    _, briers = brier_score(train, test, 1 - by_then, HORIZONS)
    for place, horizon in enumerate(("30", "90", "200")):
        assert found[f"auroc@{horizon}"] == pytest.approx(aurocs[place])
        assert found[f"brier@{horizon}"] == pytest.approx(briers[place])
    assert found["ibs"] == pytest.approx(integrated_brier_score(train, test, 1 - by_then, HORIZONS))


def test_a_constant_predictor_scores_one_half() -> None:
    days, observed = followed(200, 3)
    found = scorer_of(days, observed, np.ones(200), np.full((200, 3), 0.4)).point()
    for metric in ("c_index", "c_index_uno", "auroc@30", "auroc@90", "auroc@200"):
        assert found[metric] == pytest.approx(0.5, abs=1e-12)


def test_a_weight_is_a_row_that_often() -> None:
    weights = np.random.default_rng(0).integers(0, 4, 100)
    rows = survival_arrays(TABLE)
    scorer = SurvivalScorer(rows, CENSORING)
    often = np.repeat(np.arange(100), weights)
    repeated = scorer_of(rows.days[often], rows.observed[often], rows.risk[often], rows.probabilities[often]).point()
    assert {metric: value[0] for metric, value in scorer.scores(weights[None]).items()} == pytest.approx(repeated)


def test_without_censoring_the_brier_score_is_the_plain_one() -> None:
    days = np.array([10.0, 50, 100, 300])
    by_then = np.array([[0.1, 0.2, 0.3], [0.2, 0.6, 0.7], [0.1, 0.4, 0.8], [0.0, 0.1, 0.5]])
    everybody = Censoring.fit(np.array([400.0, 500]), np.array([True, True]))
    rows = SurvivalArrays(np.arange(4), days, np.ones(4, dtype=bool), by_then[:, 2], HORIZONS, by_then)
    found = SurvivalScorer(rows, everybody).point()
    assert found["brier@90"] == pytest.approx((0.8**2 + 0.4**2 + 0.4**2 + 0.1**2) / 4)
    assert found["auroc@90"] == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert found["c_index"] == pytest.approx(2 / 6)  # risks .3, .7, .8, .5: two of the six pairs are in order


def test_the_censoring_is_known_as_far_as_train_was_followed() -> None:
    """Of 4 rows: an event on day 1, censored on days 1 and 2, and followed to 4 or to the event there."""
    days, ends_in_event = np.array([1.0, 1, 2, 4]), np.array([True, False, False, True])
    found = Censoring.fit(days, ends_in_event).at(np.array([0.0, 1, 1.5, 2, 4, 5]))
    assert found == pytest.approx([1, 2 / 3, 2 / 3, 1 / 3, 1 / 3, np.nan], nan_ok=True)
    assert Censoring.fit(days, ends_in_event & (days < 4)).at(np.array([4.0, 5])).tolist() == [0, 0]


def test_the_survival_curve_is_that_of_lifelines() -> None:
    days, observed = followed(150, 7)
    fitted = KaplanMeierFitter().fit(days, observed)
    distinct, survival, _ = kaplan_meier(days, observed)
    assert survival == pytest.approx(fitted.survival_function_at_times(distinct).to_numpy())


def test_metrics_that_do_not_exist_have_a_reason() -> None:
    nobody = survival_arrays(TABLE.with_columns(observed=pl.lit(False)))
    reasons = SurvivalScorer(nobody, CENSORING).reasons()
    assert reasons["c_index"] == "no row has its event while another is still followed"
    assert reasons["auroc@90"] == "no row has its event by then, or none is followed beyond"
    short = SurvivalScorer(survival_arrays(TABLE), Censoring.fit(np.array([100.0]), np.array([False]))).reasons()
    assert set(short) == {"c_index_uno", "ibs", "auroc@200", "brier@200"}
    assert set(short.values()) == {"no train row is followed beyond 200 days"}
    one = SurvivalScorer(survival_arrays(TABLE.filter(horizon_days=90)), CENSORING).reasons()
    assert one == {"ibs": "one horizon only"}
    empty = bootstrap(TABLE[:0], 20, censoring=CENSORING)
    assert empty.reasons["c_index"] == "no rows"


def test_patients_are_resampled_with_all_their_rows() -> None:
    drawn = bootstrap(TABLE, 40, seed=2, censoring=CENSORING)
    rows = survival_arrays(TABLE)
    subjects, subject_of_row = np.unique(rows.subject_id, return_inverse=True)
    assert drawn.n_subjects == len(subjects) == 50
    counts = np.concatenate(list(resample_counts(50, 40, 2, 100)))
    expected = SurvivalScorer(rows, CENSORING).scores(counts[7:8, subject_of_row])
    for metric, values in drawn.resampled.items():
        assert values[7] == pytest.approx(expected[metric][0])
    estimate = drawn.estimate("c_index")
    assert estimate.lower is not None
    assert estimate.lower < estimate.value < estimate.upper  # type: ignore[operator]
    with pytest.raises(ValueError, match="censoring of the train rows"):
        bootstrap(TABLE, 40)


def test_a_line_for_each_row_and_horizon(tmp_path: Path) -> None:
    assert TABLE.schema == SURVIVAL_SCHEMA
    assert kind_of_predictions(TABLE) == "survival"
    first = HELD_OUT.row(0, named=True)
    assert TABLE[1].rows() == [
        (*(first["subject_id"], first["prediction_time"], *first["label"].values()), FOUND[200, 0], 90.0, FOUND[200, 2])
    ]
    path = write_predictions(TABLE, tmp_path / "p.parquet")
    assert read_predictions(path).equals(TABLE)
    assert set(with_split(TABLE, ROWS)["split"]) == {"held_out"}
    assert rows_hash(TABLE) == rows_hash(HELD_OUT)
    check_rows_match({"arm": TABLE.sample(fraction=1, shuffle=True, seed=0)}, HELD_OUT)


def test_other_rows_or_labels_are_told_by_count() -> None:
    with pytest.raises(InputError, match="99 rows for 100 labels: 1 labelled rows are missing"):
        check_rows_match({"arm": TABLE[3:]}, HELD_OUT)
    other = TABLE.with_columns(observed=~pl.col("observed"))
    with pytest.raises(InputError, match="100 carry another label"):
        check_rows_match({"arm": other}, HELD_OUT)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (TABLE.with_columns(probability=1 - pl.col("probability")), "lower than that of a nearer horizon"),
        (TABLE.with_columns(probability=pl.lit(1.5)), "300 rows hold a probability that is NaN or outside"),
        (TABLE.with_columns(risk=pl.lit(float("nan"))), "300 rows hold a risk that is no finite number"),
        (TABLE.with_columns(days=-pl.col("days")), "hold days that are negative or no number"),
        (TABLE[1:], "1 rows lack a horizon"),
        (pl.concat([TABLE, TABLE[:1]]), "2 rows repeat a subject and time and horizon"),
        (TABLE.with_columns(risk=pl.col("horizon_days")), "100 rows have different days, observed or risk"),
        (TABLE.with_columns(observed=None, days="days").cast(dict(SURVIVAL_SCHEMA)), "300 rows hold an empty value"),
        (TABLE.drop("days"), "exactly these columns"),
    ],
)
def test_a_table_that_cannot_be_is_refused(change: pl.DataFrame, what: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        write_predictions(change, tmp_path / "p.parquet")
    assert what in str(refused.value)


def test_predictions_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match="give each row's risk"):
        task_predictions(HELD_OUT, COLUMNS, FOUND[-100:, :2])
    with pytest.raises(InputError, match="give each row's risk"):
        task_predictions(HELD_OUT, ("false", "true"), FOUND[-100:, :2])


def judged() -> Judgement:
    best = task_predictions(HELD_OUT, COLUMNS, oracle_of(HELD_OUT))
    return judge({"oracle": best, "arm": TABLE}, HELD_OUT, Scope("demo", "death"), n_resamples=50, train=TRAIN)


def oracle_of(rows: pl.DataFrame) -> np.ndarray:
    """Predictions that follow the days themselves."""
    hazard = 1 / (1 + rows["label"].struct.field("days").to_numpy())
    return np.column_stack([hazard, -np.expm1(-hazard[:, None] * HORIZONS)])


def test_arms_are_judged_by_the_c_index() -> None:
    judgement = judged()
    results = judgement.results.filter(arm="arm")
    assert results["metric"].to_list() == [
        *("c_index", "c_index_uno", "ibs", "auroc@30", "brier@30", "auroc@90", "brier@90", "auroc@200", "brier@200"),
        "oracle_lift_share",
    ]
    assert set(results["n_positive"]) == {HELD_OUT["label"].struct.field("observed").sum()}
    assert set(results["n"]) == {100}
    c_index, best = (judgement.estimates[arm]["c_index"].value for arm in ("arm", "oracle"))
    assert best == pytest.approx(1, abs=1e-3)
    share = judgement.estimates["arm"]["oracle_lift_share"].value
    assert share == pytest.approx((c_index - 0.5) / (best - 0.5))  # type: ignore[operator]
    assert judgement.headline == "c_index"
    assert judgement.differences("arm") == {}
    text = results_text(judgement)
    assert all(part in text for part in ("events observed", "C-index", "C (Uno)", "IBS", "AUROC@200", "BRIER@200"))


def test_the_censoring_of_train_alone_counts() -> None:
    """Other train rows change what is weighted by it, and nothing else."""
    other = judge({"arm": TABLE}, HELD_OUT, Scope("demo", "death"), n_resamples=50, train=ROWS.filter(split="tuning"))
    now, then = other.estimates["arm"], judged().estimates["arm"]
    assert now["c_index"] == then["c_index"]
    assert now["brier@200"].value != then["brier@200"].value


def test_the_report_shows_them_and_no_patient(tmp_path: Path) -> None:
    tables = {"oracle": task_predictions(HELD_OUT, COLUMNS, oracle_of(HELD_OUT)), "arm": TABLE}
    plots = plot_survival(tables, tmp_path, "demo")
    assert set(plots) == {"calibration", "kaplan_meier"}
    content = ReportContent(judged(), plots=plots, splits=split_counts(ROWS), baseline="arm")
    page = render(content)
    for part in ("C-index (Uno)", "integrated Brier", "AUROC at 200 days", "events observed", "not being censored"):
        assert part in page
    assert "c_index_differences" in summary(content)


def test_calibration_and_thirds() -> None:
    rows = survival_arrays(TABLE)
    curve = calibration_curve(rows)
    assert curve["n"].sum() == 100
    assert curve["predicted"].is_sorted()
    first = np.argsort(rows.probabilities[:, -1], kind="stable")[: curve["n"][0]]
    fitted = KaplanMeierFitter().fit(rows.days[first], rows.observed[first])
    assert curve["observed"][0] == pytest.approx(1 - fitted.predict(200))
    assert [len(third) for third in thirds(np.arange(9.0))] == [3, 3, 3]
    assert [len(third) for third in thirds(np.ones(9))] == [9, 0, 0]
