"""Whatever a sweep file describes is drawn within its bounds and on its steps."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.tracking.sweeps.distributions import Choices, Span, parse_distribution, text_of

optuna.logging.set_verbosity(optuna.logging.WARNING)


def draw(own: Choices | Span, seed: int) -> Any:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    value = own.suggest(trial, "key")
    assert own.suggest(trial, "key") == value, "asked again, a trial keeps its value"
    return value


def parsed(given: dict[str, Any]) -> Choices | Span:
    own = parse_distribution("key", given)
    assert isinstance(own, Choices | Span), own
    return own


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"values": [8, 16]}, Choices((8, 16))),
        ({"value": "auroc"}, Choices(("auroc",))),
        ({"distribution": "constant", "value": 3}, Choices((3,))),
        ({"distribution": "categorical", "values": ["a", None]}, Choices(("a", None))),
        ({"min": 2, "max": 9}, Span(2, 9, step=1)),
        ({"min": 2, "max": 9.0}, Span(2, 9.0)),
        ({"distribution": "int_uniform", "min": 2, "max": 9}, Span(2, 9, step=1)),
        ({"distribution": "uniform", "min": 0, "max": 1}, Span(0, 1)),
        ({"distribution": "q_uniform", "min": 0.0, "max": 0.33, "q": 0.1}, Span(0.0, 0.3, step=0.1)),
        ({"distribution": "q_uniform", "min": 3, "max": 20}, Span(3, 20, step=1)),
        ({"distribution": "log_uniform_values", "min": 1.0e-5, "max": 1.0e-3}, Span(1e-5, 1e-3, log=True)),
        ({"distribution": "log_uniform", "min": -2, "max": 0}, Span(math.exp(-2), 1.0, log=True)),
        ({"distribution": "q_log_uniform_values", "min": 5, "max": 70, "q": 8}, Span(8, 64, log=True, step=8)),
    ],
)
def test_every_distribution_is_read(given: dict[str, Any], expected: Choices | Span) -> None:
    assert parsed(given) == expected


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"distribution": "normal", "mu": 0, "sigma": 1}, "normal is one of W&B's that the search without a server"),
        ({"distribution": "inv_log_uniform_values", "min": 1, "max": 2}, "cannot draw"),
        ({"distribution": "unifrom", "min": 0, "max": 1}, "there is no distribution 'unifrom'"),
        ({}, "holds nothing, which is no distribution"),
        ({"min": 3}, "holds min, which is no distribution"),
        ({"min": "1e-5", "max": 0.1}, "is to be a number: min '1e-5'"),
        ({"min": 3, "max": 3}, "min 3 is not less than max 3"),
        ({"min": 0.0, "max": float("nan")}, "is not less than"),
        ({"distribution": "int_uniform", "min": 0.5, "max": 3}, "int_uniform from 0.5 to 3"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "min 0 has no logarithm"),
        ({"distribution": "uniform", "min": 0, "max": 1, "q": 0.1}, "uniform does not know q"),
        ({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.0}, "is no step"),
        ({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 5}, "not two multiples of q 5"),
        ({"distribution": "q_uniform", "max": 1.0, "q": 0.1}, "q_uniform needs min"),
        ({"values": 3}, "values is no list"),
        ({"values": [16, 16.0]}, "names a value twice"),
    ],
)
def test_what_is_no_distribution_is_refused_by_name(given: dict[str, Any], what: str) -> None:
    (problem,) = parse_distribution("parameters.key", given)  # type: ignore[misc]
    assert problem.where == "parameters.key"
    assert what in problem.what


def test_true_is_not_one_and_lists_are_values() -> None:
    own = Choices((True, 1, [1, 2], "1", None))
    assert [own.holds(value) for value in (True, 1.0, (1, 2), "1", None, False, "true")] == [True] * 5 + [False] * 2
    assert {text_of(draw(own, seed)) for seed in range(60)} == {"True", "1", "[1, 2]", "null"}


def test_a_grid_lists_every_step() -> None:
    assert Span(0.0, 0.3, step=0.1).grid == (0.0, 0.1, 0.2, 0.3)
    assert Span(2, 4, step=1).grid == (2, 3, 4)
    assert Span(0.0, 0.3).grid is None


numbers = st.floats(1e-6, 1e6) | st.integers(1, 10**6)


@settings(max_examples=60, deadline=None)
@given(ends=st.tuples(numbers, numbers), log=st.booleans(), seed=st.integers(0, 99))
def test_what_is_drawn_lies_between_the_ends(ends: tuple[float, float], log: bool, seed: int) -> None:
    low, high = sorted(ends)
    if low == high:
        return
    name = "log_uniform_values" if log else "uniform"
    own = parsed({"distribution": name, "min": low, "max": high})
    value = draw(own, seed)
    assert low <= value <= high
    assert own.holds(value)


@settings(max_examples=60, deadline=None)
@given(
    low=st.decimals(0, 20, places=2),
    width=st.decimals(1, 80, places=2),
    q=st.sampled_from([0.05, 0.1, 0.25, 1, 2, 8]),
    log=st.booleans(),
    seed=st.integers(0, 99),
)
def test_steps_are_multiples_within_the_ends(low: Decimal, width: Decimal, q: float, log: bool, seed: int) -> None:
    first, last = float(low) + (0.01 if log else 0), float(low + width)
    name = "q_log_uniform_values" if log else "q_uniform"
    own = parse_distribution("key", {"distribution": name, "min": first, "max": last, "q": q})
    if isinstance(own, list):  # fewer than two multiples lie there
        assert last - first < 2 * q
        return
    value = draw(own, seed)
    assert first <= value <= last
    assert Decimal(str(value)) % Decimal(str(q)) == 0
    assert isinstance(value, int) == isinstance(q, int)
    assert own.holds(value)
    assert value in own.grid  # type: ignore[operator]
