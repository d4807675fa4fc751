"""`epicrisis compare`: single runs and a benchmark's arms in one table, and clear words where that cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest

from epicrisis.commands import main
from epicrisis.tracking.run_directory import open_run
from epicrisis.tracking.run_record import PARAMETERS, TRAINED
from tests.commands.conftest import FIRST_SUBJECT, TABULAR, data_keys


@pytest.fixture(scope="module")
def benchmark(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished benchmark of two arms, one of which says that it has ten parameters."""
    folder = tmp_path_factory.mktemp("compared") / "bench"
    arms = "[{name: Some Trees, overrides: {arm: lightgbm}}, {name: LR, overrides: {arm: logistic_regression}}]"
    more = [f"training.output_dir={folder}", f"benchmark.arms={arms}", f"data.oracle_dir={dataset / 'oracle/cancer'}"]
    assert main(["benchmark", *TABULAR, *data_keys(dataset), "stage=classify", *more]) == 0
    sizes = folder / "arms" / "some-trees" / "hyperparameters.json"
    sizes.write_text(json.dumps({**json.loads(sizes.read_text()), PARAMETERS: 10, TRAINED: 5}))
    return folder


def test_runs_and_arms_of_the_same_rows_share_a_table(
    finished: Path, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(finished), str(benchmark), str(finished), "--output_dir", str(tmp_path / "c")]) == 0
    table = pl.read_csv(tmp_path / "c" / "comparison.csv")
    assert table["run"].to_list() == ["run", "oracle (true risks)", "bench/Some Trees", "bench/LR"]
    assert table["group"].to_list() == [1, 1, 1, 1]
    results = pl.read_csv(benchmark / "results.csv").filter(arm="LR", metric="auroc")
    line = table.row(3, named=True)
    assert line["held_out/auroc"] == line["held_out/auroc"] == results["value"][0] == table["held_out/auroc"][0]
    assert line["held_out/auroc_upper"] == results["upper"][0]
    assert table["n_parameters"].to_list() == [None, None, 10, None]
    report = (tmp_path / "c" / "REPORT.md").read_text()
    assert "bench/LR" in report
    assert "`tabular." not in report
    said = capsys.readouterr().out
    assert re.search(r"best AUROC \(higher is better\): ", said)
    assert "groups" not in said
    for path in (tmp_path / "c").iterdir():
        assert str(FIRST_SUBJECT)[:6] not in path.read_bytes().decode("latin-1")


def test_runs_on_other_rows_are_kept_apart(
    finished: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = sorted(path.name for path in (dataset / "labels").iterdir() if path.name != "cancer")
    other = next(task for task in tasks if (dataset / "oracle" / task).is_dir())
    folder = tmp_path / "other"
    assert main(["train", *TABULAR, *data_keys(dataset, other), f"training.output_dir={folder}"]) == 0
    capsys.readouterr()
    assert main(["compare", str(finished), str(folder), "--output_dir", str(tmp_path / "c")]) == 0
    assert "2 groups" in capsys.readouterr().out
    assert pl.read_csv(tmp_path / "c" / "comparison.csv")["group"].to_list() == [1, 2]
    assert "compare within a group only" in (tmp_path / "c" / "REPORT.md").read_text()


def test_two_models_of_known_size_are_plotted(benchmark: Path, tmp_path: Path) -> None:
    assert main(["compare", str(benchmark), "--output_dir", str(tmp_path)]) == 0
    assert not (tmp_path / "performance_vs_size.png").exists()
    place = benchmark / "arms" / "lr" / "hyperparameters.json"
    before = place.read_text()
    place.write_text(json.dumps({**json.loads(before), PARAMETERS: 1000, TRAINED: 5}))
    assert main(["compare", str(benchmark), "--output_dir", str(tmp_path)]) == 0
    place.write_text(before)
    assert (tmp_path / "performance_vs_size.png").is_file()


def test_every_folder_without_a_finished_run_is_named_and_nothing_is_written(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = open_run(tmp_path / "begun", {}).path
    command = ["compare", str(tmp_path / "nowhere"), str(finished), str(begun), "--output_dir", str(tmp_path / "c")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'nowhere'}: holds no finished run" in said
    assert f"{begun}: holds no finished run (its record says: running)" in said
    assert not (tmp_path / "c").exists()


def test_unknown_arguments_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(finished), "--best=auroc"]) == 2
    assert "--best=auroc" in capsys.readouterr().err
