"""The benchmark files that ship: each of their arms is a sound config, and `full.yaml` leaves none out."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from epicrisis.commands.arms import ARMS
from epicrisis.commands.benchmark import settings_of_arms
from epicrisis.settings import Settings
from epicrisis.settings.load import merge, read_yaml, settings_from
from epicrisis.settings.structured_section import Architecture

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def files_that_a_user_will_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epicrisis.settings.load.missing_file_problems", lambda settings: [])


def arms_of(path: Path) -> dict[str, Settings]:
    tree = read_yaml(path)
    return settings_of_arms(settings_from(merge(tree, {})), tree)


@pytest.mark.parametrize("name", ["demo", "full", "order", "few_shot"])
def test_every_arm_of_a_shipped_benchmark_is_a_sound_config(name: str) -> None:
    assert len(arms_of(CONFIGS / "benchmark" / f"{name}.yaml")) >= 3


def test_the_full_benchmark_leaves_no_arm_out() -> None:
    arms = arms_of(CONFIGS / "benchmark" / "full.yaml").values()
    assert {arm.arm for arm in arms} == set(ARMS) - {"oracle"}
    assert {arm.structured.architecture for arm in arms if arm.arm == "structured"} == set(get_args(Architecture))
    recipes = [read_yaml(path) for path in sorted((CONFIGS / "encoders").glob("*.yaml"))]
    recommended = {recipe["model"]["model_name"] for recipe in recipes if recipe["arm"] == "encoder"}
    assert recommended <= {arm.model.model_name for arm in arms if arm.arm == "encoder"}
