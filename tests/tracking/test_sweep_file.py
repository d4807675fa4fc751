"""A sweep file is read as W&B reads it, and whatever it could not mean is refused with the key's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from epicrisis.settings import InputError
from epicrisis.tracking.sweeps.command_line import trial_command
from epicrisis.tracking.sweeps.distributions import Choices, Span
from epicrisis.tracking.sweeps.sweep_file import Hyperband, is_sweep_file, read_sweep

TREE: dict[str, Any] = {
    "program": "scripts/train.py",
    "command": ["${env}", "${interpreter}", "${program}", "--config_filepath", "configs/a.yaml", "${args}"],
    "method": "bayes",
    "metric": {"name": "eval/auroc", "goal": "maximize"},
    "parameters": {
        "training.learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "lora": {"parameters": {"r": {"values": [8, 16]}, "lora_dropout": {"value": 0.1}}},
    },
}


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "sweep.yaml"
    tree = {key: value for key, value in {**TREE, **changes}.items() if value is not ...}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def test_a_sweep_is_its_space_and_what_is_the_same_in_all_trials(tmp_path: Path) -> None:
    sweep = read_sweep(written(tmp_path, run_cap=12, early_terminate={"type": "hyperband", "min_iter": 2}))
    assert sweep.space == {"training.learning_rate": Span(1e-4, 1e-2, log=True), "lora.r": Choices((8, 16))}
    assert sweep.fixed == {"lora.lora_dropout": 0.1}
    assert (sweep.metric, sweep.goal, sweep.method, sweep.run_cap) == ("eval/auroc", "maximize", "bayes", 12)
    assert sweep.early_terminate == Hyperband(min_iter=2, eta=3)
    assert sweep.config_filepath == Path("configs/a.yaml")
    assert sweep.arguments({"lora.r": 8}) == ["--lora.lora_dropout=0.1", "--lora.r=8"]


def test_hyperband_by_its_last_iteration_begins_where_wandb_does() -> None:
    assert Hyperband(max_iter=27, s=2, eta=3).first == 3
    assert Hyperband(max_iter=4, s=3, eta=3).first == 1


def test_the_command_is_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filled in by W&B's own function, but for the interpreter, which is this one."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    monkeypatch.setenv("CONFIGS", "elsewhere")
    command = ["${env}", "${interpreter}", "${program}", "--config_filepath=${envvar:CONFIGS}/a.yaml", "${args}"]
    sweep = read_sweep(written(tmp_path, command=[*command, "${args_no_hyphens}"]))
    values = {"training.learning_rate": 0.00123, "lora.r": 8}
    args = {key: {"value": value} for key, value in {**sweep.fixed, **values}.items()}
    macros = {**create_sweep_command_args({"args": args}), "env": ["/usr/bin/env"], "program": ["scripts/train.py"]}
    macros["interpreter"] = [__import__("sys").executable]
    theirs: list[str] = []
    for word in create_sweep_command([*sweep.command]):
        theirs += macros[word[2:-1]] if word.startswith("${") else [word]
    assert trial_command(sweep, sweep.arguments(values)) == theirs
    assert theirs[3:5] == ["--config_filepath=elsewhere/a.yaml", "--lora.lora_dropout=0.1"]


def test_overrides_of_the_command_are_known(tmp_path: Path) -> None:
    words = ["accelerate", "launch", "--num_processes=2", "${program}", "--config_filepath", "a.yaml"]
    sweep = read_sweep(written(tmp_path, command=[*words, "training.max_steps=5", "--lora.use_dora=true", "${args}"]))
    assert sweep.command_overrides == ["training.max_steps=5", "--lora.use_dora=true"]


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"metod": "grid"}, "metod", "did you mean `method`?"),
        ({"controller": {"type": "local"}}, "controller", "known keys here: program"),
        ({"method": "custom"}, "method", "one of bayes, grid, random"),
        ({"method": "grid"}, "parameters.training.learning_rate", "a grid cannot list its values"),
        ({"metric": ...}, "metric.name", "is not given"),
        ({"metric": {"name": "eval/auroc", "goal": "max"}}, "metric.goal", "maximize or minimize"),
        ({"metric": {"name": "eval/auroc", "target": 0.9}}, "metric.target", "is no key"),
        ({"program": ...}, "program", "is not given"),
        ({"command": ["${program}"]}, "command", "no trial would get its values"),
        ({"command": ["${program}", "${args}", "${args_json}"]}, "command", "nothing that train understands"),
        ({"command": ["${program}", "${args}", "--config_filepath"]}, "command", "has no file after it"),
        ({"run_cap": 0}, "run_cap", "no whole number above 0"),
        ({"early_terminate": {"type": "median"}}, "early_terminate.type", "is not hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate", "needs min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, "early_terminate", "max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, "early_terminate.eta", "less than 2"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "strict": True}}, "early_terminate.strict", "no key"),
        ({"parameters": {}}, "parameters", "holds no parameter"),
        ({"parameters": {"training.seed": 3}}, "parameters.training.seed", "write {value: …}"),
        ({"parameters": {"training.seed": {"value": 3}}}, "parameters", "every one has a single value"),
        ({"parameters": {"lora": {"parameters": {"r": {"min": 1}}}}}, "parameters.lora.r", "is no distribution"),
        (
            {"parameters": {"lora": {"parameters": {"r": {"value": 1}}, "values": [1]}}},
            "parameters.lora.values",
            "no key",
        ),
    ],
)
def test_what_it_cannot_mean_is_refused(changes: dict[str, Any], where: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read_sweep(written(tmp_path, **changes))
    told = [problem for problem in raised.value.problems if problem.where == where]
    assert any(what in str(problem) for problem in told), raised.value


def test_a_sweep_file_is_told_from_a_config(tmp_path: Path) -> None:
    assert is_sweep_file(written(tmp_path))
    assert not is_sweep_file(written(tmp_path, method=...))
    assert not is_sweep_file(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="no such sweep file"):
        read_sweep(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("method: [")
    with pytest.raises(InputError, match="is not valid YAML"):
        read_sweep(tmp_path / "broken.yaml")
