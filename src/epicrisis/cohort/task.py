"""What is to be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["binary", "multiclass", "multilabel", "none"]


@dataclass(frozen=True)
class Task:
    """A prediction task.

    name: the label folder's or file's name. classes: for binary ("false", "true"); for the others the class
    names, integers in numeric order and words in alphabetical order; empty where there is nothing to predict.
    """

    name: str
    kind: TaskKind
    classes: tuple[str, ...]
