"""Judging writes the contract's table, and the report holds all that it should and no patient."""

import csv
import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from epicrisis.evaluation.calibration import fit_temperature
from epicrisis.evaluation.canaries import canaries
from epicrisis.evaluation.judge import Judgement, Scope, judge, print_results, results_text
from epicrisis.evaluation.plots import plot_all, plot_lengths, precision_steps
from epicrisis.evaluation.predictions import binary_predictions, with_split
from epicrisis.evaluation.report import (
    CorpusContent,
    ReportContent,
    render,
    split_counts,
    write_corpus_report,
    write_report,
)
from epicrisis.settings.problems import InputError
from epicrisis.tracking import open_run

FIRST_SUBJECT = 918_273_000
RESULT_COLUMNS = "dataset,task,arm,split,k,replicate,metric,value,lower,upper,n,n_positive"


def cohort(n: int = 400) -> tuple[pl.DataFrame, np.ndarray]:
    """Rows of which half are held out, and each row's true risk."""
    generator = np.random.default_rng(0)
    risk = generator.beta(1, 3, n)
    times = [datetime(2043, 7, 9) + timedelta(days=i) for i in range(n)]
    splits = np.repeat(["train", "tuning", "held_out"], [n // 4, n // 4, n // 2])
    labels = generator.random(n) < risk
    rows = {
        "subject_id": FIRST_SUBJECT + np.arange(n),
        "prediction_time": times,
        "split": splits,
        "label": labels,
    }
    return pl.DataFrame(rows), risk


ROWS, RISK = cohort()
HELD_OUT = ROWS.filter(pl.col("split") == "held_out")
TUNING = ROWS.filter(pl.col("split") == "tuning")


def predictions(rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    risk = RISK[(rows["subject_id"] - FIRST_SUBJECT).to_numpy()]
    blurred = np.clip(risk + np.random.default_rng(1).normal(0, 0.3, len(risk)), 0.001, 0.999)
    return {"oracle": binary_predictions(rows, risk), "arm <b>one</b>": binary_predictions(rows, blurred)}


def judged() -> Judgement:
    temperatures = {"arm <b>one</b>": fit_temperature(with_split(predictions(TUNING)["arm <b>one</b>"], ROWS))}
    scope = Scope("demo", "future_cancer")
    return judge(predictions(HELD_OUT), HELD_OUT, scope, temperatures=temperatures, n_resamples=200)


def no_positive() -> Judgement:
    rows = HELD_OUT.with_columns(label=False)
    return judge(predictions(rows), rows, Scope("demo", "death"), n_resamples=20)


def test_results_are_the_contracts_table(tmp_path: Path) -> None:
    results = judged().results
    assert ",".join(results.columns) == RESULT_COLUMNS
    assert results.filter(pl.col("arm") == "oracle")["metric"].to_list() == [
        *("auroc", "auprc", "brier", "ece"),
        "oracle_lift_share",
    ]
    arm = results.filter(pl.col("arm") != "oracle")
    assert set(arm["metric"]) >= {"brier_calibrated", "ece_calibrated", "oracle_lift_share"}
    assert set(results["n"]) == {200}
    assert set(results["n_positive"]) == {HELD_OUT["label"].sum()}
    assert (results["lower"] <= results["value"]).all()
    assert (results["value"] <= results["upper"]).all()
    share = results.filter(metric="oracle_lift_share")["value"]
    auroc = results.filter(metric="auroc")["value"]
    assert share[1] == pytest.approx((auroc[1] - 0.5) / (auroc[0] - 0.5))


def test_every_arm_must_have_predicted_every_row() -> None:
    table = predictions(HELD_OUT)["oracle"]
    with pytest.raises(InputError, match=r"predictions of short: 199 rows for 200 labels: 1 labelled rows are missing"):
        judge({"oracle": table, "short": table[1:]}, HELD_OUT, Scope("demo", "x"))
    with pytest.raises(InputError, match="no predictions to judge"):
        judge({}, HELD_OUT, Scope("demo", "x"))


def test_undefined_metrics_stay_empty_with_their_reason(tmp_path: Path) -> None:
    judgement = no_positive()
    path = open_run(tmp_path / "run", {}).write_results(judgement.results)
    lines = list(csv.DictReader(path.open()))
    auroc = next(line for line in lines if line["metric"] == "auroc")
    assert (auroc["value"], auroc["lower"], auroc["upper"], auroc["n_positive"]) == ("", "", "", "0")
    brier = next(line for line in lines if line["metric"] == "brier")
    assert float(brier["value"]) > 0
    reasons = set(judgement.undefined["reason"])
    assert reasons == {"one class only: 0 of 200 rows are positive"}
    text = results_text(judgement)
    assert "undefined: auroc, auprc, oracle_lift_share: one class only: 0 of 200 rows are positive" in text
    assert "nan" not in text.lower()


def test_the_closing_table_fits_a_narrow_screen() -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_results(judged(), console)
    shown = console.export_text()
    assert all(heading in shown for heading in ("arm", "AUROC", "95% interval", "share of oracle's lift", "100%"))
    assert "…" not in shown


def test_differences_are_against_the_baseline_without_the_oracle() -> None:
    table = predictions(HELD_OUT)
    arms = {"oracle": table["oracle"], "baseline": table["arm <b>one</b>"], "same": table["arm <b>one</b>"]}
    differences = judge(arms, HELD_OUT, Scope("demo", "x"), n_resamples=50).differences("baseline")
    assert list(differences) == ["same"]
    assert differences["same"].value == 0


def test_precision_steps_sum_to_the_average_precision() -> None:
    table = predictions(HELD_OUT)["arm <b>one</b>"]
    labels, scores = (
        table["boolean_value"].to_numpy(),
        table["predicted_boolean_probability"].to_numpy().round(1),
    )
    recall, precision = precision_steps(labels, scores)
    from sklearn.metrics import average_precision_score

    assert np.sum(np.diff(recall) * precision[1:]) == pytest.approx(average_precision_score(labels, scores))


LENGTHS = pl.DataFrame(
    {
        "split": ["held_out", "train"],
        "tokens_mean": [1409.4, 12.0],
        "tokens_per_event": [9.25, None],
        "events_left_out": [0.246, None],
    }
)


def content(folder: Path, judgement: Judgement) -> ReportContent:
    rows = ROWS
    scalars = rows.select("subject_id", "prediction_time").with_columns(
        record_length=pl.lit(5.0), last_date=pl.lit(1.0), calendar_date=pl.lit(2.0)
    )
    coverage = pl.DataFrame({"split": ["held_out"], "vocabulary": ["ICD10CM"], "from_lookup": [0.97], "events": [1200]})
    return ReportContent(
        judgement,
        plots=plot_all(predictions(HELD_OUT), folder / "plots", "demo · future_cancer · held_out"),
        splits=split_counts(rows),
        coverage=coverage,
        canaries=canaries(scalars, rows, n_resamples=20),
        cohort_notes=["3 controls got a matched index date"],
        narrative={"one": {"style": "timeline@2", "token_budget": 446}},
        lengths=LENGTHS,
        arm_notes={"arm <b>one</b>": "C fixed at 0.1: 15 tuning rows are fewer than 50"},
        baseline="arm <b>one</b>",
        environment={"python": "3.11"},
        config={"data": {"meds_dir": Path("some/folder")}, "training": {"seed": 3}},
        warnings=["the oracle is known because the cohort is synthetic"],
    )


def test_the_report_holds_everything_and_no_patient(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", {"training": {"seed": 3}})
    page = write_report(run, content(run.path, judged())).read_text(encoding="utf-8")
    for part in (
        *(
            "Results",
            "Plots",
            "Calibration",
            "Cohort",
            "Leakage canaries",
            "Narratives",
            "Environment",
            "Configuration",
        ),
        *("future_cancer", "timeline@2", "ICD10CM", "record_length", "3 controls got a matched index date"),
        *(
            "style timeline@2, token budget 446",
            ">1,409<",
            ">24.6%<",
            "some/folder",
            "C fixed at 0.1",
            "the oracle is known",
            "tuning",
            "&lt;b&gt;one",
        ),
    ):
        assert part in page, part
    assert page.count("data:image/png;base64,") == 3
    assert "<b>one" not in page
    assert "http" not in page
    written = re.sub(r"base64,[^\"]+", "", page) + run.summary.read_text() + run.summary_text.read_text()
    assert "918273" not in written
    assert "2043-07" not in written
    summary = json.loads(run.summary.read_text())
    assert summary["arms"]["oracle"]["oracle_lift_share"]["value"] == 1.0
    assert summary["temperatures"][0]["fitted_on"] == "tuning"
    assert summary["lengths"] == LENGTHS.to_dicts()
    assert run.finished
    assert "canary record_length" in run.summary_text.read_text()


def test_the_report_tells_what_is_undefined(tmp_path: Path) -> None:
    page = render(content(tmp_path, no_positive()))
    assert "Undefined" in page
    assert "one class only: 0 of 200 rows are positive" in page
    assert "nan" not in re.sub(r"base64,[^\"]+", "", page).lower().replace("canar", "")


def test_a_table_of_patients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no patient-level data"):
        render(ReportContent(judged(), coverage=HELD_OUT))


def test_plots_are_drawn_for_one_class_too(tmp_path: Path) -> None:
    rows = HELD_OUT.with_columns(label=False)
    for path in plot_all(predictions(rows), tmp_path, "demo").values():
        assert path.read_bytes().startswith(b"\x89PNG")


BINS = pl.DataFrame(
    [
        ("one", 446, "tokens", "train", 0.0, 100.0, 30),
        ("one", 446, "tokens", "train", 100.0, 150.0, 10),
        ("one", 446, "tokens", "tuning", 0.0, 150.0, 12),
        ("one", 446, "tokens_per_event", "train", 5.0, 9.0, 40),
        ("other", None, "tokens", "train", 0.0, 900.0, 40),
    ],
    schema=["told", "budget", "of", "split", "at_least", "below", "narratives"],
    orient="row",
)


def test_length_bins_are_drawn_as_densities_with_the_budget() -> None:
    figure = plot_lengths(BINS, "demo")
    tokens, per_event, unbounded, nothing = figure.axes
    train, tuning = tokens.patches
    assert train.get_data().values == pytest.approx([30 / 40 / 100, 10 / 40 / 50])
    assert tuning.get_data().values == pytest.approx([1 / 150])
    assert [text.get_text() for text in tokens.get_legend().get_texts()] == ["train, 40", "tuning, 12", "budget, 446"]
    assert len(per_event.patches) == 1
    assert [text.get_text() for text in unbounded.get_legend().get_texts()] == ["train, 40"]
    assert not nothing.patches
    assert tokens.get_title(loc="left") == "one"


def test_without_bins_the_plot_says_so() -> None:
    assert [axes.texts[0].get_text() for axes in plot_lengths(BINS.clear(), "demo").axes] == [
        "too few narratives to draw"
    ] * 2


def test_a_run_without_predictions_has_a_report_too(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", {})
    packing = pl.DataFrame({"split": ["train"], "rows": [1200], "rows_full": [0.985]})
    page = write_corpus_report(
        run,
        CorpusContent(
            title="demo · narratives",
            lead="2,000 narratives told",
            figures={"perplexity": 3.25},
            splits=split_counts(ROWS.with_columns(label=pl.lit(None, pl.Boolean))),
            lengths=LENGTHS,
            packing=packing,
            cohort_notes=["a note"],
        ),
    ).read_text(encoding="utf-8")
    assert "<title>epicrisis · demo · narratives</title>" in page
    for part in ("2,000 narratives told", "3.250", "a note", ">1,200<", ">98.5%<", "tokens per event"):
        assert part in page, part
    for part in ("Results", "Judged on", "Calibration", "Leakage canaries", "Plots", "positive", "None"):
        assert part not in page, part
    assert not run.finished


def test_a_table_of_narratives_of_patients_is_refused(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", {})
    with pytest.raises(ValueError, match="no patient-level data"):
        write_corpus_report(run, CorpusContent(title="t", lead="l", lengths=HELD_OUT))
    assert not run.report.exists()


def test_positives_are_counted_only_where_labels_are_yes_or_no() -> None:
    assert split_counts(ROWS).columns == ["split", "rows", "subjects", "positive"]
    assert split_counts(ROWS.with_columns(label=pl.lit("C50"))).columns == ["split", "rows", "subjects"]
