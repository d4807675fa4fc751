"""The processes that a command was launched with."""

from __future__ import annotations

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """This process among those of its launch, which a barrier can gather.

    Without a GPU accelerate joins the processes only where it is told that they are CPU processes; asked
    plainly, each would take itself for the only one, and all would write the same run.
    """
    return PartialState(cpu=not torch.cuda.is_available())
