"""What a parameter of a sweep may be: W&B's distributions, drawn by Optuna."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Any

from optuna.trial import BaseTrial

from epicrisis.settings.problems import Problem

SPANS = (
    *("int_uniform", "uniform", "q_uniform", "log_uniform", "log_uniform_values"),
    *("q_log_uniform", "q_log_uniform_values"),
)
LISTS = ("categorical", "constant")
WANDB_ONLY = (
    *("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta", "categorical_w_probabilities"),
    *("inv_log_uniform", "inv_log_uniform_values"),
)
"""Distributions that W&B has and Optuna has not."""

KEYS = {
    **{name: {"distribution", "min", "max"} | ({"q"} if name.startswith("q_") else set()) for name in SPANS},
    "categorical": {"distribution", "values"},
    "constant": {"distribution", "value"},
}


@dataclass(frozen=True)
class Choices:
    """One of several values, as `values:` lists them; `value:` is one of one."""

    values: tuple[Any, ...]

    @property
    def trial_points(self) -> tuple[Any, ...]:
        """Values that stand for the whole: if these are valid, all are."""
        return self.values

    @property
    def grid(self) -> tuple[Any, ...]:
        """All values."""
        return self.values

    def holds(self, value: Any) -> bool:
        """Whether `value` is one of them; true is not 1, and 16.0 is 16."""
        return any(_same(value, own) for own in self.values)

    def raw(self, value: Any) -> Any:
        """What Optuna stores for one of the values."""
        own = next(own for own in self.values if _same(value, own))
        return own if own is None or isinstance(own, bool | int | float | str) else json.dumps(own)

    def suggest(self, trial: BaseTrial, name: str) -> Any:
        """Draw a value for this trial; the same trial is given the same again."""
        drawn = trial.suggest_categorical(name, [self.raw(value) for value in self.values])
        return next(value for value in self.values if _same(self.raw(value), drawn))

    def __str__(self) -> str:
        return " | ".join(text_of(value) for value in self.values)


@dataclass(frozen=True)
class Span:
    """Numbers from `low` to `high`, both included; with `step`, its multiples alone. Integers where the step is one."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def trial_points(self) -> tuple[float, ...]:
        """Both ends."""
        return (self.low, self.high)

    @property
    def grid(self) -> tuple[float, ...] | None:
        """All values, where they can be listed."""
        if self.step is None:
            return None
        first, last, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return tuple(self._number(first + step * place) for place in range(int((last - first) / step) + 1))

    def holds(self, value: Any) -> bool:
        """Whether it could be drawn."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return self.step is None or Decimal(str(value)) % Decimal(str(self.step)) == 0

    def raw(self, value: Any) -> float:
        """What Optuna stores for one of the values."""
        return int(value) if self._whole else float(value)

    def suggest(self, trial: BaseTrial, name: str) -> float:
        """Draw a value for this trial; the same trial is given the same again.

        With a logarithm and a step the number is drawn first and then rounded to a multiple, as W&B does it.
        """
        if self._whole:
            step = 1 if self.log else int(self.step or 1)
            return trial.suggest_int(name, int(self.low), int(self.high), step=step, log=self.log)
        if self.step is None:
            return trial.suggest_float(name, self.low, self.high, log=self.log)
        drawn = trial.suggest_float(name, self.low, self.high, step=None if self.log else self.step, log=self.log)
        return self.nearest(drawn)

    def nearest(self, number: float) -> float:
        """The multiple of the step that is nearest, within the ends."""
        step = Decimal(str(self.step))
        multiple = (Decimal(str(number)) / step).to_integral_value(ROUND_HALF_EVEN) * step
        return self._number(min(max(multiple, Decimal(str(self.low))), Decimal(str(self.high))))

    @property
    def _whole(self) -> bool:
        """Whether Optuna knows them as integers: with a logarithm it does so for steps of 1 alone."""
        return isinstance(self.step, int) and (not self.log or (self.step == 1 and self.low >= 1))

    def _number(self, exact: Decimal) -> float:
        return int(exact) if isinstance(self.step, int) else float(exact)

    def __str__(self) -> str:
        manner = f" in steps of {text_of(self.step)}" if self.step not in (None, 1) else ""
        return f"{self.low:.4g} to {self.high:.4g}{manner}{', by its logarithm' if self.log else ''}"


Distribution = Choices | Span


def text_of(value: Any) -> str:
    """A value as an override has it: as a W&B agent writes it, but null and lists as YAML."""
    if value is None:
        return "null"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def parse_distribution(where: str, given: Mapping[str, Any]) -> Distribution | list[Problem]:
    """What a parameter's own keys come to, or what is wrong with them. where: its name, for the problems."""
    name = given.get("distribution") or _implied(given)
    if name in WANDB_ONLY:
        what = f"the distribution {name} is one of W&B's that the search without a server cannot draw"
        return [Problem(where, what, f"use one of {', '.join((*LISTS, *SPANS))}")]
    if name is None:
        what = f"holds {', '.join(map(str, given)) or 'nothing'}, which is no distribution"
        return [Problem(where, what, "give values, value, or min and max (all int, or all float)")]
    if name not in KEYS:
        return [Problem(where, f"there is no distribution {name!r}", f"use one of {', '.join((*LISTS, *SPANS))}")]
    odd, missing = given.keys() - KEYS[name], KEYS[name] - given.keys() - {"distribution", "q"}
    if odd or missing:
        parts = [f"does not know {', '.join(sorted(map(str, odd)))}"] if odd else []
        parts += [f"needs {', '.join(sorted(missing))}"] if missing else []
        return [Problem(where, f"{name} {' and '.join(parts)}", f"its keys are {', '.join(sorted(KEYS[name]))}")]
    return _choices(where, given) if name in LISTS else _span(where, name, given)


def _implied(given: Mapping[str, Any]) -> str | None:
    """The distribution that W&B takes where none is named."""
    if "values" in given:
        return "categorical"
    if "value" in given:
        return "constant"
    if not {"min", "max"} <= given.keys():
        return None
    return "int_uniform" if all(type(given[end]) is int for end in ("min", "max")) else "uniform"


def _choices(where: str, given: Mapping[str, Any]) -> Choices | list[Problem]:
    if "value" in given:
        return Choices((given["value"],))
    values = given["values"]
    if not isinstance(values, list) or not values:
        return [Problem(where, "values is no list, or an empty one", "write values: [1, 2, 3]")]
    if any(_same(one, other) for place, one in enumerate(values) for other in values[:place]):
        return [Problem(where, "names a value twice", "keep it once: every value is as likely as any other")]
    return Choices(tuple(values))


def _span(where: str, name: str, given: Mapping[str, Any]) -> Span | list[Problem]:
    numbers = {key: given[key] for key in ("min", "max", "q") if key in given}
    words = [key for key, value in numbers.items() if isinstance(value, bool) or not isinstance(value, int | float)]
    if words:
        read = ", ".join(f"{key} {numbers[key]!r}" for key in words)
        return [Problem(where, f"is to be a number: {read}", "write 1.0e-5, since YAML reads 1e-5 as a word")]
    low, high = numbers["min"], numbers["max"]
    if not all(map(math.isfinite, numbers.values())) or not low < high:
        return [Problem(where, f"min {low} is not less than max {high}", "give the smaller number as min")]
    if name == "int_uniform" and not (isinstance(low, int) and isinstance(high, int)):
        return [Problem(where, f"int_uniform from {low} to {high}", "give whole numbers, or uniform")]
    if name in ("log_uniform", "q_log_uniform"):  # their ends are exponents
        low, high = math.exp(low), math.exp(high)
    log = "log_uniform" in name
    if log and low <= 0:
        return [Problem(where, f"min {low} has no logarithm", "give a min above 0, or take uniform")]
    if name == "int_uniform":
        return Span(low, high, step=1)
    return _stepped(where, low, high, numbers.get("q", 1), log) if name.startswith("q_") else Span(low, high, log)


def _stepped(where: str, low: float, high: float, q: float, log: bool) -> Span | list[Problem]:
    """The multiples of `q` that lie between: W&B rounds what it drew, which may carry it past an end."""
    if q <= 0:
        return [Problem(where, f"q {q} is no step", "give a q above 0")]
    step = Decimal(str(q))
    first = (Decimal(str(low)) / step).to_integral_value(ROUND_CEILING) * step
    last = (Decimal(str(high)) / step).to_integral_value(ROUND_FLOOR) * step
    if log and first <= 0:
        first = step
    if first >= last:
        what = f"there are not two multiples of q {q} between min and max"
        return [Problem(where, what, "give a smaller q, or values")]
    number = int if isinstance(q, int) else float
    return Span(number(first), number(last), log, q)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str | bytes):
        pairs = zip(one, other, strict=False)
        return not isinstance(other, str) and len(one) == len(other) and all(_same(a, b) for a, b in pairs)
    return type(one) is type(other) and one == other if isinstance(one, str) or isinstance(other, str) else one == other
