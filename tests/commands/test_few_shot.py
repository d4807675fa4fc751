"""A benchmark on few shots: each arm on each draw once, rows of its own in the results, curves in the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest

from epicrisis.cohort import build_cohort
from epicrisis.cohort.few_shot import Draw, shots
from epicrisis.cohort.task import label_matrix
from epicrisis.commands import benchmark, main
from epicrisis.commands.inputs import open_cohort, open_lookups
from epicrisis.commands.judging import draws_of
from epicrisis.corpus.prepare import Prepared
from epicrisis.corpus.telling import fit_narrator
from epicrisis.narrative import get_style
from epicrisis.settings import InputError, load_settings, settings_from
from tests.commands.conftest import FIRST_SUBJECT, data_keys

RESULT_COLUMNS = "dataset,task,arm,split,k,replicate,metric,value,lower,upper,n,n_positive"
CONFIG = """
stage: classify
training: {{output_dir: {place}, seed: 3}}
tabular: {{min_subjects: 1}}
evaluation: {{bootstrap_resamples: 100}}
benchmark:
  reference: counts + LR
  few_shot: {{k: [{k}], replicates: 2}}
  arms:
    - {{name: counts + LR, overrides: {{arm: logistic_regression}}}}
    - {{name: LightGBM, overrides: {{arm: lightgbm}}}}
"""


def run(folder: Path, dataset: Path, k: str, *more: str) -> Path:
    """Run the benchmark; returns its directory."""
    config = folder / "few_shot.yaml"
    config.write_text(CONFIG.format(place=folder / "run", k=k))
    assert main(["benchmark", "--config_filepath", str(config), *data_keys(dataset), *more]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def done(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few_shot")
    oracle = f"data.oracle_dir={dataset / 'oracle' / 'cancer'}"
    return run(folder, dataset, "1, 4, all", oracle)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the arms that are fitted from here on."""
    places: list[Path] = []
    plain = benchmark.fit_and_predict

    def counting(settings, cohort, lookups, directory):
        places.append(directory.dir)
        return plain(settings, cohort, lookups, directory)

    monkeypatch.setattr(benchmark, "fit_and_predict", counting)
    return places


def test_results_have_a_row_for_each_draw(done: Path) -> None:
    assert (done / "results.csv").read_text().splitlines()[0] == RESULT_COLUMNS
    results = pl.read_csv(done / "results.csv")
    auroc = results.filter(metric="auroc").select("arm", "k", "replicate")
    drawn = [(1, 1), (1, 2), (4, 1), (4, 2), (None, None)]
    assert auroc.filter(arm="LightGBM").rows() == [("LightGBM", *draw) for draw in drawn]
    assert auroc.filter(arm="counts + LR").rows() == [("counts + LR", *draw) for draw in drawn]
    assert auroc.filter(arm="oracle").rows() == [("oracle", None, None)]
    assert results["n"].n_unique() == 1
    values = results.filter(pl.col("arm") != "oracle", metric="auroc")
    assert values.filter(k=4)["value"].n_unique() > 1


def test_each_run_saw_its_shots_and_all_of_held_out(done: Path, dataset: Path) -> None:
    rows = build_cohort(dataset, labels_dir=dataset / "labels" / "cancer").rows
    for replicate in (1, 2):
        place = done / "arms" / "counts-lr" / "k-4" / f"replicate-{replicate}"
        expected = shots(rows, 4, replicate, seed=3)
        assert label_matrix(expected.filter(split="train"), ("false", "true")).sum().row(0) == (4, 4)
        (line,) = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        assert line["n_train"] == 8
        for split in ("tuning", "held_out"):
            told = pl.read_parquet(place / "predictions" / f"{split}.parquet")
            keys = ["subject_id", "prediction_time"]
            assert told.select(keys).equals(expected.filter(split=split).select(keys))
        # what is fitted is fitted on the shots alone: no code that only other train rows have
        codes = set(json.loads((place / "features.json").read_text())["codes"])
        cohort = build_cohort(dataset, labels_dir=dataset / "labels" / "cancer")
        train = expected.filter(split="train")
        assert codes == set(cohort.history(train).code_counts()["code"])
    everything = json.loads((done / "arms" / "counts-lr" / "features.json").read_text())
    assert len(everything["codes"]) > len(codes)


def test_the_report_shows_curves_and_no_patient(done: Path) -> None:
    page = (done / "report.html").read_text()
    assert "Few shots" in page
    assert 'alt="few shots, auroc"' in page
    for name in ("few_shot_auroc.png", "few_shot_auprc.png"):
        assert (done / "plots" / name).read_bytes().startswith(b"\x89PNG")
    results = pl.read_csv(done / "results.csv").filter(metric="auroc", arm="LightGBM", k=4)
    low, high = sorted(results["value"])
    assert f"{results['value'].mean():.3f} ({low:.3f} to {high:.3f})" in page
    summary = json.loads((done / "summary.json").read_text())
    curve = {(point["arm"], point["k"]): point for point in summary["few_shot"]["auroc"]}
    assert curve["LightGBM", 4]["replicates"] == 2
    assert curve["LightGBM", None]["mean"] == summary["arms"]["LightGBM"]["auroc"]["value"]
    assert "AUROC by shots" in (done / "SUMMARY.txt").read_text()
    assert str(FIRST_SUBJECT)[:6] not in re.sub(r"base64,[^\"]+", "", page) + (done / "summary.json").read_text()


def test_what_is_done_is_not_run_again(done: Path, dataset: Path, fitted: list[Path], tmp_path: Path) -> None:
    before = pl.read_csv(done / "results.csv")
    oracle = f"data.oracle_dir={dataset / 'oracle' / 'cancer'}"
    run(done.parent, dataset, "1, 4, all", oracle)
    assert fitted == []
    assert pl.read_csv(done / "results.csv").equals(before)
    (done / "arms" / "lightgbm" / "k-4" / "replicate-2" / "predictions" / "tuning.parquet").unlink()
    run(done.parent, dataset, "1, 2, 4, all", oracle)
    at = [str(place.relative_to(done / "arms")) for place in fitted]
    assert sorted(at) == sorted(
        ["lightgbm/k-4/replicate-2", *(f"{arm}/k-2/replicate-{r}" for arm in ("counts-lr", "lightgbm") for r in (1, 2))]
    )
    # judged anew from what lies there
    config = done.parent / "few_shot.yaml"
    assert main(["evaluate", "--config_filepath", str(config), *data_keys(dataset), oracle]) == 0
    again = pl.read_csv(done / "results.csv")
    assert again.filter(k=2).height > 0
    assert again.filter(pl.col("k") != 2).height == before.filter(pl.col("k").is_not_null()).height


def test_without_all_rows_the_tables_are_of_the_most_shots(dataset: Path, fitted: list[Path], tmp_path: Path) -> None:
    place = run(tmp_path, dataset, "8, 2")
    assert {path.parent.name for path in fitted} == {"k-2", "k-8"}
    assert not (place / "arms" / "lightgbm" / "predictions").exists()
    results = pl.read_csv(place / "results.csv")
    assert results.select("k", "replicate").unique(maintain_order=True).rows() == [(2, 1), (2, 2), (8, 1), (8, 2)]
    summary = json.loads((place / "summary.json").read_text())
    assert (summary["k"], summary["replicate"]) == (8, 2)
    assert "Trained on 8 rows per class, replicate 2" in (place / "report.html").read_text()


@pytest.mark.parametrize(
    ("task", "arms"), [("length_of_stay", ("logistic_regression", "lightgbm")), ("diagnoses", ("random_forest",))]
)
def test_several_classes_and_labels(task: str, arms: tuple[str, ...], dataset: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    for path in (dataset / "labels" / task).rglob("*.parquet"):
        table = pl.read_parquet(path)
        if task == "diagnoses":
            table = _common(table, dataset / "labels" / task)
        (labels / path.parent.name).mkdir(parents=True, exist_ok=True)
        table.write_parquet(labels / path.parent.name / path.name)
    tree = [f"{{name: {arm}, overrides: {{arm: {arm}}}}}" for arm in arms]
    overrides = [f"benchmark.arms=[{', '.join(tree)}]", f"data.labels_dir={labels}", "benchmark.reference=null"]
    place = run(tmp_path, dataset, "2", *overrides)
    results = pl.read_csv(place / "results.csv")
    assert set(results["k"]) == {2}
    of_class = results.filter(pl.col("metric").str.starts_with("auroc:"))
    assert of_class["n_positive"].null_count() == 0
    assert results.filter(pl.col("metric").is_in(["auroc", "auroc_micro"]))["n_positive"].null_count() > 0
    page = (place / "report.html").read_text()
    for part in ("AUROC micro", "AUPRC weighted", "against the rest", "rows with it"):
        assert part in page, part


def _common(table: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """Of the labels only the two that most train rows have; a row without them stays, with null."""
    every = pl.concat([pl.read_parquet(path) for path in folder.rglob("*.parquet")])
    names = every["categorical_value"].drop_nulls().value_counts().sort("count", "categorical_value")
    kept = pl.col("categorical_value").is_in(names["categorical_value"].tail(2).implode())
    keys = ["subject_id", "prediction_time"]
    rows = table.select(keys).unique(maintain_order=True)
    return rows.join(table.filter(kept), on=keys, how="left", maintain_order="left").select(table.columns)


def test_a_language_models_narrator_and_narratives_are_of_the_shots(dataset: Path, base: Path, tmp_path: Path) -> None:
    model = f"{{model_name: {base}, max_length: 128, head: score}}"
    arm = "[{name: model, overrides: {arm: llm, narrative.values: deciles}}]"
    training = ["training.max_steps=1", "training.load_in_4bit=false", "training.batch_size=4"]
    overrides = [f"benchmark.arms={arm}", f"model={model}", "benchmark.reference=null", *training]
    place = run(tmp_path, dataset, "2", *overrides, "benchmark.few_shot.replicates=1") / "arms" / "model"
    prepared = Prepared(place / "k-2" / "replicate-1")
    expected = shots(build_cohort(dataset, labels_dir=dataset / "labels" / "cancer").rows, 2, 1, seed=3)
    keys = ["subject_id", "prediction_time"]
    for split in ("train", "tuning"):
        told = prepared.narratives(split).select(keys).collect().sort(keys)
        assert told.equals(expected.filter(split=split).select(keys).sort(keys))
    run_directory = place / "k-2" / "replicate-1"
    settings = load_settings(run_directory / "config.yaml")
    cohort = open_cohort(settings)
    lookups, style = open_lookups(settings, cohort), get_style("timeline")
    for name, rows in (("shots", expected.filter(split="train")), ("all", cohort.select("train"))):
        fit_narrator(cohort.history(rows), lookups, style, values="deciles").save(tmp_path / name)
    assert contents(run_directory / "narrator") == contents(tmp_path / "shots")
    assert contents(run_directory / "narrator") != contents(tmp_path / "all")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("few_shot", "key", "what"),
    [
        ({"k": [0]}, "k", "greater than or equal to 1"),
        ({"k": ["most"]}, "k", "'all'"),
        ({"k": [2, 2]}, "k", "names a number twice"),
        ({"k": [2], "replicates": 0}, "replicates", "greater than or equal to 1"),
        ({"replicates": 3}, "replicates", "nothing is drawn"),
        ({"ks": [1]}, "ks", "is no key of a config"),
    ],
)
def test_what_cannot_be_is_refused(few_shot: dict, key: str, what: str) -> None:
    with pytest.raises(InputError) as refused:
        settings_from({"arm": "xgboost", "benchmark": {"few_shot": few_shot}})
    (problem,) = refused.value.problems
    assert problem.where == f"benchmark.few_shot.{key}"
    assert what in problem.what


def test_five_replicates_where_not_said_otherwise() -> None:
    settings = settings_from({"arm": "xgboost", "benchmark": {"few_shot": {"k": [2, "all"]}}})
    assert draws_of(settings) == [*(Draw(2, replicate) for replicate in range(1, 6)), Draw()]
    assert draws_of(settings_from({"arm": "xgboost"})) == [Draw()]
