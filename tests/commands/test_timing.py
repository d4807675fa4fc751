"""Each arm's run says how long it took, the report shows it beside the metrics, and nothing is measured twice."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from epicrisis.cohort import build_cohort, rows_fingerprint
from epicrisis.commands import main
from epicrisis.commands.inputs import open_cohort, open_lookups
from epicrisis.commands.train import fit_and_predict
from epicrisis.evaluation.judge import Timing
from epicrisis.settings import settings_from
from epicrisis.tracking.run_directory import open_run
from tests.commands.conftest import TABULAR, data_keys

LONG_AGO = {"fit_seconds": 185.0, "predict_seconds": 0.5, "n_rows": 30, "n_subjects": 123, "continued": True}


@pytest.fixture(scope="module")
def done(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of two arms, run a second time after one of them was said to have taken long."""
    folder = tmp_path_factory.mktemp("timed") / "run"
    arms = "[{name: LR, overrides: {arm: logistic_regression}}, {name: Light, overrides: {arm: lightgbm}}]"
    more = [f"training.output_dir={folder}", f"benchmark.arms={arms}", f"data.oracle_dir={dataset / 'oracle/cancer'}"]
    command = ["benchmark", *TABULAR, *data_keys(dataset), "stage=classify", *more]
    assert main(command) == 0
    (folder / "arms" / "lr" / "timing.json").write_text(json.dumps(LONG_AGO))
    assert main(command) == 0
    return folder


def test_an_arm_keeps_what_fitting_and_predicting_took(done: Path, dataset: Path) -> None:
    judged = build_cohort(dataset, labels_dir=dataset / "labels" / "cancer").rows.filter(pl.col("split") != "train")
    told = json.loads((done / "arms" / "light" / "timing.json").read_text())
    assert min(told.pop("fit_seconds"), told.pop("predict_seconds")) > 0
    assert told == {"n_rows": judged.height, "n_subjects": judged["subject_id"].n_unique(), "continued": False}
    assert json.loads((done / "arms" / "lr" / "timing.json").read_text()) == LONG_AGO


def test_the_table_shows_it_and_the_results_do_not(done: Path) -> None:
    page, text = (done / "report.html").read_text(), (done / "SUMMARY.txt").read_text()
    for shown in (page, text):
        assert "patients/s" in shown
        assert "≥ 3:05" in shown
        assert "≤ 246" in shown
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    last = {arm: cells[-2:] for arm, *cells in rows}
    assert last["LR"] == ["≥ 3:05", "≤ 246"]
    assert last["oracle"] == ["–", "–"]
    results = (done / "results.csv").read_text()
    assert "patients" not in results
    assert "fit" not in results
    summary = json.loads((done / "summary.json").read_text())
    assert summary["timing"]["LR"] == {**LONG_AGO, "patients_per_second": 246.0}
    assert set(summary["timing"]) == {"LR", "Light"}


def test_the_judged_rows_are_named_once(done: Path, dataset: Path) -> None:
    cohort = build_cohort(dataset, labels_dir=dataset / "labels" / "cancer")
    expected = rows_fingerprint(cohort.select("held_out"))
    for name in ("report.html", "summary.json", "SUMMARY.txt"):
        assert (done / name).read_text().count(expected) == 1


@pytest.mark.parametrize(
    ("left", "continued"), [("checkpoints/step-0000002", True), ("judged/tokens", True), (".", False)]
)
def test_work_that_was_there_is_told(left: str, continued: bool, dataset: Path, tmp_path: Path) -> None:
    training = {"output_dir": str(tmp_path / "run")}
    data = {"meds_dir": str(dataset), "labels_dir": str(dataset / "labels" / "cancer")}
    settings = settings_from({"stage": "classify", "arm": "logistic_regression", "training": training, "data": data})
    cohort = open_cohort(settings)
    run = open_run(tmp_path / "run", settings.resolved())
    (run.dir / left).mkdir(parents=True, exist_ok=True)
    found = []
    for _ in range(2):
        fit_and_predict(settings, cohort, open_lookups(settings, cohort), run)
        found.append(json.loads(run.timing.read_text())["continued"])
        open_run(run.dir, settings.resolved(), overwrite=True)
        assert not run.timing.exists()
    assert found == [continued, False]


def test_times_and_rates_are_written_to_be_read() -> None:
    assert Timing(2.14, 0.5, 300, 200).cells == ("2.1 s", "400")
    assert Timing(59.9, 0.01, 99, 99).cells == ("59.9 s", "9,900")
    assert Timing(3725, 300, 99, 20, continued=True).cells == ("≥ 1:02:05", "≤ 0.0667")
