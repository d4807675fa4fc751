"""How bad input is told: a list of problems, each with what is wrong, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the input.

    where: the key, file or column; what: what is wrong (counts, never patient content); fix: how to mend it.
    """

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n    fix: {self.fix}"


class InputError(Exception):
    """Bad input. Commands print it and exit with code 2; all problems found are in it, not just the first."""

    def __init__(self, problems: Problem | Sequence[Problem]):
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[list[Problem]]]:
        """So that it comes whole out of another process."""
        return type(self), (self.problems,)


def refuse(where: str, what: str, fix: str) -> InputError:
    """The error for a single problem, to be raised by the caller: `raise refuse(...)`."""
    return InputError(Problem(where, what, fix))
