"""`epicrisis check` on a benchmark: every arm is asked, and what is wrong is told with the arm's name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from epicrisis.commands import main
from tests.commands.conftest import data_keys

DEMO = Path(__file__).parents[2] / "configs" / "benchmark" / "demo.yaml"


def check(dataset: Path, folder: Path, *more: str, task: str = "cancer") -> int:
    return main(["check", *more, *data_keys(dataset, task), f"training.output_dir={folder / 'run'}"])


def test_every_arm_of_the_shipped_benchmark_is_sound(
    dataset: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config_filepath", str(DEMO), f"model.model_name={base}", "data.oracle_dir=null"]
    assert check(dataset, tmp_path, *given) == 0
    told = capsys.readouterr().out
    names = re.findall(r"- name: (.+)", DEMO.read_text())
    assert re.findall(r"(.+) is sound: arm ", told) == names
    assert f"config is sound: a benchmark of {len(names)} arms" in told
    assert f"BEHRT is sound: arm behrt, stage classify, run directory {tmp_path / 'run' / 'arms' / 'behrt'}" in told
    costs = [
        line for line in told.splitlines() if re.search(r": (memory: about|time: about|\d+ train narratives)", line)
    ]
    assert [line.partition(":")[0] for line in costs] == ["base + downstream adapter"] * 3
    assert list(tmp_path.iterdir()) == []


def arms(**overrides: str) -> str:
    listed = (f"{{name: {name}, overrides: {{{given}}}}}" for name, given in overrides.items())
    return f"benchmark.arms=[{', '.join(listed)}]"


def test_a_benchmark_without_language_models_has_no_cost(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = arms(trees="arm: xgboost", lines="arm: logistic_regression")
    assert check(dataset, tmp_path, "stage=classify", listed) == 0
    told = capsys.readouterr().out
    assert "trees is sound: arm xgboost" in told
    assert not re.search("memory|tokens", told)


@pytest.mark.parametrize("command", ["check", "benchmark"])
@pytest.mark.parametrize(
    ("task", "listed", "expected"),
    [
        (
            "cancer",
            arms(
                good="arm: xgboost",
                typo="arm: xgboost, tabular.min_subject: 3",
                mixed="arm: structured, structured.size: huge, structured.architecture: lstm",
                pair="arm: structured, structured.architecture: mamba, structured.dropout: 0.1",
                data="arm: xgboost, data.cutoff_months: 3",
            ),
            {
                "typo": ["tabular.min_subject: is no key of a config"],
                "mixed": ["structured.size: input should be"],
                "pair": ["structured.size: mamba has no size `base`", "structured.dropout: Mamba has no dropout"],
                "data": ["overrides: changes `data`"],
            },
        ),
        (
            "length_of_stay",
            arms(
                good="arm: xgboost", two="arm: xgboost, model.num_classes: 2", odd="arm: behrt, narrative.style: sonnet"
            ),
            {"two": ["model.num_classes: 2, but the task"], "odd": ["no style is called 'sonnet'"]},
        ),
        ("cancer", arms(a_b="arm: xgboost", a__b="arm: lightgbm"), {"a__b": ["its folder `a-b` is that of `a_b` too"]}),
    ],
)
def test_each_problem_is_told_with_its_arm(
    command: str,
    task: str,
    listed: str,
    expected: dict[str, list[str]],
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["stage=classify", listed, *data_keys(dataset, task), f"training.output_dir={tmp_path / 'run'}"]
    assert main([command, *given]) == 2
    message = capsys.readouterr().err
    told = [line for line in message.splitlines() if line.startswith("- ")]
    wanted = [(name, what) for name, problems in expected.items() for what in problems]
    assert len(told) == len(wanted), message
    for line, (name, what) in zip(told, wanted, strict=True):
        assert line.startswith(f"- benchmark.arms ({name}): "), message
        assert what in line
    assert list(tmp_path.iterdir()) == []
