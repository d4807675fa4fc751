"""Each benchmark runs to its last line, small. What it measures is not judged here, what it compares is equal."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

SMALL: dict[str, tuple[dict[str, Any], list[str]]] = {
    "narrative": ({"SIZES": (3_000, 6_000), "PLAIN": 3_000, "LONG": 600}, []),
    "tokenise": ({"EVENTS": 3_000, "LESSON": 3_000}, []),
    "prepare": ({"SIZES": (3_000, 6_000), "PER_FILE": 1_500, "LESSON": 3_000}, []),
    "styles": ({"EVENTS": 3_000}, []),
    "code_tokens": ({"LESSON": 3_000}, ["3000"]),
    "tabular": ({}, ["300", "500"]),
    "structured_throughput": ({"VOCABULARY": 200, "RECORDS": 12, "REPEATS": 1}, []),
    "score_throughput": ({"PATIENTS": 6}, []),
    "generate_throughput": ({"PATIENTS": 3, "SAMPLES": 2, "TOKENS": 4}, []),
    "train_throughput": (
        {},
        ["--shape", "tiny", "--max-length", "128", "--steps", "2", "--rows", "packed, SDPA", "TRL padded"],
    ),
}
"""Constants that are smaller here, and arguments."""


def test_every_benchmark_is_run_here():
    programs = {path.stem for path in BENCHMARKS.glob("*.py") if "    finish(" in path.read_text(encoding="utf-8")}
    assert programs == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_benchmark_ends_with_its_figures(name, monkeypatch, capsys):
    if name == "train_throughput":
        pytest.importorskip("trl", reason="TRL is not installed")
    constants, arguments = SMALL[name]
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    benchmark = importlib.import_module(name)
    for constant, value in constants.items():
        monkeypatch.setattr(benchmark, constant, value)
    benchmark.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["name"].startswith(name)
    assert found["ratio"] > 0
    assert all(value >= 0 for value in found["figures"].values())
