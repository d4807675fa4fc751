"""Real records: the open MIMIC-IV demo, and the OMOP-derived GiBleed cohort, with the tabular arms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from epicrisis.commands import main
from epicrisis.commands.inputs import coverage_of, open_cohort, open_lookups
from epicrisis.settings import settings_from
from epicrisis.settings.load import read_yaml

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
MIMIC, GIBLEED = DATA / "mimic_iv_demo", DATA / "gibleed"
TASKS = ("in_hospital_mortality", "los_gt_7d", "readmission_30d")
needs_mimic = pytest.mark.skipif(not MIMIC.is_dir(), reason=f"the MIMIC-IV demo in MEDS form is not in {MIMIC}")
needs_gibleed = pytest.mark.skipif(not GIBLEED.is_dir(), reason=f"GiBleed in MEDS form is not in {GIBLEED}")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the configs name the data as seen from there


def tabular_arms(config: Path) -> str:
    """The config's arms that need no language model, as an override."""
    arms = read_yaml(config)["benchmark"]["arms"]
    kept = [arm for arm in arms if arm["overrides"]["arm"] in ("logistic_regression", "xgboost")]
    return "benchmark.arms=[" + ", ".join(f"{{name: {a['name']}, overrides: {a['overrides']}}}" for a in kept) + "]"


@pytest.fixture
def benchmark(tmp_path: Path) -> Callable[[str], tuple[pl.DataFrame, Path]]:
    """Runs a shipped benchmark config with its tabular arms; gives results.csv by arm and metric, and the run."""

    def run(config: str) -> tuple[pl.DataFrame, Path]:
        path = ROOT / "configs" / config
        keys = [f"training.output_dir={tmp_path}", "evaluation.bootstrap_resamples=200", tabular_arms(path)]
        assert main(["benchmark", "--config_filepath", str(path), *keys]) == 0
        return pl.read_csv(tmp_path / "results.csv"), tmp_path

    return run


def value(results: pl.DataFrame, arm: str, metric: str) -> float | None:
    return results.filter((pl.col("arm") == arm) & (pl.col("metric") == metric))["value"].item()


@needs_mimic
@pytest.mark.parametrize("task", TASKS)
def test_mimic_is_sound(task: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = ROOT / "configs" / "mimic_iv_demo" / f"{task}.yaml"
    keys = [f"training.output_dir={tmp_path}", tabular_arms(config)]
    assert main(["check", "--config_filepath", str(config), *keys]) == 0
    told = capsys.readouterr().out
    assert "config is sound: a benchmark of 2 arms" in told
    assert "counts + XGBoost is sound: arm xgboost, stage classify" in told
    assert list(tmp_path.iterdir()) == []


@needs_mimic
def test_mimic_reads_as_words() -> None:
    settings = settings_from({"data": {"meds_dir": str(MIMIC)}})
    cohort = open_cohort(settings)
    table = coverage_of(cohort, cohort.rows, open_lookups(settings, cohort))
    every = table.filter(pl.col("vocabulary") == "*")
    assert every["n_events"].sum() > 340_000
    assert (every["words"] >= 0.95).all(), every


@needs_mimic
def test_an_auroc_that_does_not_exist_is_no_number(benchmark: Callable) -> None:
    results, run = benchmark("mimic_iv_demo/in_hospital_mortality.yaml")
    assert results["n"].unique().to_list() == [18]
    assert results["n_positive"].unique().to_list() == [0]
    for arm in ("counts + LR", "counts + XGBoost"):
        assert value(results, arm, "auroc") is None
        assert value(results, arm, "auprc") is None
        brier = value(results, arm, "brier")
        assert brier is not None
        assert 0 <= brier <= 1
    line = next(line for line in (run / "results.csv").read_text().splitlines() if ",auroc," in line)
    assert ",auroc,,,,18,0" in line
    for name in ("report.html", "SUMMARY.txt"):
        text = (run / name).read_text()
        assert "undefined" in text, name
        assert "one class" in text.lower() or "no positive" in text.lower(), name
        assert "C fixed at 0.1" in text, f"{name} does not say that nothing was tuned on 15 rows"


@needs_mimic
@pytest.mark.parametrize(("task", "n", "n_positive"), [("los_gt_7d", 18, 7), ("readmission_30d", 19, 4)])
def test_mimics_other_tasks_give_numbers_with_wide_intervals(
    task: str, n: int, n_positive: int, benchmark: Callable
) -> None:
    results, _ = benchmark(f"mimic_iv_demo/{task}.yaml")
    auroc = results.filter(pl.col("metric") == "auroc")
    assert auroc["value"].is_between(0, 1).all()
    assert (auroc["upper"] - auroc["lower"] > 0.2).all()
    assert (results["n"].unique().to_list(), results["n_positive"].unique().to_list()) == ([n], [n_positive])


@needs_gibleed
def test_gibleeds_counts_reach_what_counts_reach_there(benchmark: Callable) -> None:
    results, _ = benchmark("gibleed/benchmark.yaml")
    assert (results["n"].unique().to_list(), results["n_positive"].unique().to_list()) == ([541], [87])
    for arm in ("counts + LR", "counts + XGBoost"):
        auroc = value(results, arm, "auroc")
        assert auroc is not None
        assert 0.6 < auroc < 0.75, "references.json has 0.664 and 0.683"


@needs_gibleed
def test_gibleed_is_sound(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = ROOT / "configs" / "gibleed" / "benchmark.yaml"
    keys = [f"training.output_dir={tmp_path}", tabular_arms(config)]
    assert main(["check", "--config_filepath", str(config), *keys]) == 0
    told = capsys.readouterr().out
    assert "held_out: 541 rows of 541 subjects, 87 positive" in told
    assert list(tmp_path.iterdir()) == []
