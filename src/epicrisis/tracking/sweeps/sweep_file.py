"""A sweep file in W&B's syntax: what is searched, in which space, by which command."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from epicrisis.settings.problems import InputError, Problem, refuse
from epicrisis.tracking.sweeps.distributions import Choices, Distribution, parse_distribution, text_of

Method = Literal["bayes", "grid", "random"]
Goal = Literal["minimize", "maximize"]

KEYS = (
    *("program", "command", "method", "metric", "parameters", "early_terminate", "run_cap"),
    *("name", "description", "project", "entity"),
)
MACROS = ("env", "interpreter", "program", "args", "args_no_hyphens")
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
"""W&B's own."""

_NO_OVERRIDE = ("${", "--config_filepath")
_MACRO = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class Hyperband:
    """When a trial is given up: after min_iter evaluations, eta times as many, and so on, or by max_iter and s.

    As with W&B, an iteration is one evaluation that logs the metric, whatever its step.
    """

    min_iter: int | None = None
    max_iter: int | None = None
    s: int | None = None
    eta: int = 3

    @property
    def first(self) -> int:
        """Evaluations after which a trial may be given up."""
        if self.min_iter is not None:
            return self.min_iter
        assert self.max_iter is not None
        assert self.s is not None
        return max(1, int(self.max_iter / self.eta**self.s))


@dataclass(frozen=True)
class Sweep:
    """A sweep file. space: what is drawn; fixed: what is the same in every trial; both by dotted key."""

    path: Path
    program: str
    command: tuple[str, ...]
    method: Method
    metric: str
    goal: Goal
    space: Mapping[str, Distribution]
    fixed: Mapping[str, Any]
    early_terminate: Hyperband | None = None
    run_cap: int | None = None

    @property
    def config_filepath(self) -> Path | None:
        """The config that every trial begins with, as the command names it."""
        for place, word in enumerate(self.command):
            name, _, value = word.partition("=")
            if name == "--config_filepath":
                return Path(value or self.command[place + 1])
        return None

    @property
    def command_overrides(self) -> list[str]:
        """The overrides that the command itself carries after its program."""
        place = next((place for place, word in enumerate(self.command) if word in ("${program}", self.program)), -1)
        return [word for word in self.command[place + 1 :] if "=" in word and not word.startswith(_NO_OVERRIDE)]

    @property
    def n_grid(self) -> int:
        """Combinations of the space's values, each of which can be listed."""
        number = 1
        for own in self.space.values():
            number *= len(own.grid or ())
        return number

    def arguments(self, values: Mapping[str, Any]) -> list[str]:
        """Overrides of a trial with these values, as a W&B agent passes them."""
        return [f"--{key}={text_of(value)}" for key, value in {**self.fixed, **values}.items()]


def is_sweep_file(path: Path) -> bool:
    """Whether it is a sweep's and not a run's: it has `method` and `parameters`."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(tree, dict) and {"method", "parameters"} <= tree.keys()


def read_sweep(path: Path) -> Sweep:
    """The sweep of a file; InputError names all that is wrong with it.

    The file is read as `wandb sweep` reads it, by plain YAML, in which 1e-5 is a word and 1.0e-5 a number.
    """
    tree = _tree(path)
    problems = [*_unknown("", tree.keys(), KEYS)]
    space = dict(_parameters(tree.get("parameters"), "", problems))
    metric, goal = _metric(tree.get("metric"), problems)
    sweep = Sweep(
        path=path,
        program=_program(tree, problems),
        command=_command(tree.get("command"), problems),
        method=_method(tree.get("method"), space, problems),
        metric=metric,
        goal=goal,
        space={key: own for key, own in space.items() if not _is_fixed(own)},
        fixed={key: own.values[0] for key, own in space.items() if isinstance(own, Choices) and _is_fixed(own)},
        early_terminate=_early_terminate(tree.get("early_terminate"), problems),
        run_cap=_whole("run_cap", tree.get("run_cap"), problems),
    )
    if not problems and not sweep.space:
        problems.append(Problem("parameters", "every one has a single value", "give at least one values, or min, max"))
    if problems:
        raise InputError(problems)
    return sweep


def _tree(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise refuse(str(path), "there is no such sweep file", "see sweeps/")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise refuse(str(path), f"is not valid YAML ({' '.join(str(error).split())})", "mend the line") from None
    if not isinstance(tree, dict) or not {"method", "parameters"} <= tree.keys():
        raise refuse(str(path), "is no sweep file: it lacks method or parameters", "see docs/sweeps.md")
    return tree


def _is_fixed(own: Distribution) -> bool:
    return isinstance(own, Choices) and len(own.values) == 1


def _unknown(prefix: str, given: Any, known: Sequence[str]) -> Iterator[Problem]:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            fix = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
            yield Problem(f"{prefix}{key}", "is no key of a sweep file", fix)


def _parameters(given: Any, prefix: str, problems: list[Problem]) -> Iterator[tuple[str, Distribution]]:
    """(dotted key, distribution) of each; `parameters:` inside of one groups others under its name."""
    if not isinstance(given, dict) or not given:
        problems.append(Problem("parameters", "holds no parameter", "write section.key: {min: …, max: …}"))
        return
    for name, own in given.items():
        key = f"{prefix}{name}"
        where = f"parameters.{key}"
        if not isinstance(own, dict):
            problems.append(Problem(where, f"is {own!r}", "write {value: …} for one value, {values: […]} for several"))
        elif "parameters" in own:
            problems += _unknown(f"{where}.", own.keys(), ("parameters",))
            yield from _parameters(own["parameters"], f"{key}.", problems)
        else:
            found = parse_distribution(where, own)
            if isinstance(found, list):
                problems += found
            else:
                yield key, found


def _metric(given: Any, problems: list[Problem]) -> tuple[str, Goal]:
    given = given if isinstance(given, dict) else {}
    problems += _unknown("metric.", given.keys(), ("name", "goal"))
    name, goal = given.get("name"), given.get("goal", "minimize")  # W&B's default
    if not isinstance(name, str):
        problems.append(Problem("metric.name", "is not given", "name what trials log, e.g. eval/auroc"))
    if goal not in get_args(Goal):
        problems.append(Problem("metric.goal", f"{goal!r} is none", "write maximize or minimize"))
    return str(name), goal


def _program(tree: Mapping[str, Any], problems: list[Problem]) -> str:
    program = tree.get("program")
    if not isinstance(program, str):
        problems.append(Problem("program", "is not given", "write program: scripts/train.py"))
    return str(program)


def _command(given: Any, problems: list[Problem]) -> tuple[str, ...]:
    if given is None:
        return DEFAULT_COMMAND
    if not isinstance(given, list):
        problems.append(Problem("command", "is no list", "see docs/sweeps.md"))
        return DEFAULT_COMMAND
    words = tuple(map(str, given))
    for name in (name for word in words for name in _MACRO.findall(word)):
        if name not in MACROS and not name.startswith("envvar:"):
            known = ", ".join(f"${{{macro}}}" for macro in (*MACROS, "envvar:NAME"))
            problems.append(Problem("command", f"${{{name}}} is nothing that train understands", f"use {known}"))
    if not {"${args}", "${args_no_hyphens}"} & set(words):
        problems.append(
            Problem("command", "has no ${args}, so that no trial would get its values", "add ${args} at its end")
        )
    if "--config_filepath" in words[-1:]:
        problems.append(Problem("command", "--config_filepath has no file after it", "name the base config"))
    return words


def _method(given: Any, space: Mapping[str, Distribution], problems: list[Problem]) -> Method:
    if given not in get_args(Method):
        problems.append(Problem("method", f"{given!r} is none", f"one of {', '.join(get_args(Method))}"))
    if given == "grid":
        endless = [key for key, own in space.items() if own.grid is None]
        problems += [
            Problem(f"parameters.{key}", "a grid cannot list its values", "give values, int_uniform or q_uniform")
            for key in endless
        ]
    return given


def _early_terminate(given: Any, problems: list[Problem]) -> Hyperband | None:
    if given is None:
        return None
    where = "early_terminate"
    if not isinstance(given, dict) or given.get("type") != "hyperband":
        problems.append(Problem(f"{where}.type", "is not hyperband", "write {type: hyperband, min_iter: 1}"))
        return None
    problems += _unknown(f"{where}.", given.keys(), ("type", "min_iter", "max_iter", "s", "eta"))
    found = {key: _whole(f"{where}.{key}", given.get(key), problems) for key in ("min_iter", "max_iter", "s", "eta")}
    by_first, by_last = found["min_iter"] is not None, found["max_iter"] is not None
    if by_first == by_last or (by_last and found["s"] is None):
        what = "needs min_iter, or max_iter and s"
        problems.append(Problem(where, what, "write min_iter: 1 for the first evaluation"))
        return None
    if found["eta"] is not None and found["eta"] < 2:
        problems.append(Problem(f"{where}.eta", "is less than 2", "leave it out (3)"))
    return Hyperband(found["min_iter"], found["max_iter"], found["s"], found["eta"] or 3)


def _whole(where: str, given: Any, problems: list[Problem]) -> int | None:
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        problems.append(Problem(where, f"{given!r} is no whole number above 0", "give one, or leave it out"))
        return None
    return given
