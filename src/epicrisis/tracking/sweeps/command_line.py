"""The command line of a trial, filled in as a W&B agent fills it in."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from epicrisis.tracking.cores import available_cores
from epicrisis.tracking.sweeps.sweep_file import Sweep

WANDB_AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
"""By what a run knows that it belongs to a W&B agent, which trials of the search without a server do not."""

TRIAL = "EPICRISIS_TRIAL"
"""A trial's processes carry its folder under this name, so that those of a search that died can be found."""

_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def trial_command(sweep: Sweep, arguments: Sequence[str]) -> list[str]:
    """The sweep's command for a trial. arguments: overrides, each with two hyphens before it."""
    macros = {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": [sys.executable],
        "${program}": [sweep.program],
        "${args}": list(arguments),
        "${args_no_hyphens}": [argument.removeprefix("--") for argument in arguments],
    }
    words = [_ENVIRONMENT.sub(lambda found: os.environ.get(found[1], found[1]), word) for word in sweep.command]
    return [part for word in words for part in macros.get(word, [word])]


def trial_environment(folder: Path, device: str | None) -> Mapping[str, str]:
    """The environment of a trial, with this interpreter's programs first.

    device: the GPU that it has to itself, where trials share several.
    """
    kept = {name: value for name, value in os.environ.items() if name not in WANDB_AGENT}
    programs = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    own = {"PATH": programs, TRIAL: str(folder.resolve())}
    if device is not None:
        own["CUDA_VISIBLE_DEVICES"] = device
    return {**kept, **own}


def cores(slot: int, jobs: int) -> list[int]:
    """The cores of one of `jobs` trials at the same time; where there are fewer cores, all of them are shared."""
    every = available_cores()
    return every[slot::jobs] if jobs <= len(every) else every


def devices(jobs: int) -> list[str]:
    """The GPUs that trials at the same time get one each of; empty where there are not several, or trials."""
    if jobs < 2:
        return []
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        import torch

        found = [str(number) for number in range(torch.cuda.device_count())]
    else:
        found = [name for name in listed.split(",") if name.strip()]
    return found if len(found) > 1 else []
