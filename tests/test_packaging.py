"""What installs the project says the same thing everywhere."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_conda_and_pip_install_the_same_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    assert pip == [*project["dependencies"], "--editable ."]
    assert "python=3.11" in conda
    assert project["requires-python"] == ">=3.11"


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert all("==" in dependency for dependency in project["dependencies"])
