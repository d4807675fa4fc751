"""Checkpoints that are whole or not there: trained weights, optimizer, schedule, position, random states."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful

from epicrisis.settings import refuse
from epicrisis.tracking.progress import say
from epicrisis.training.deepspeed import is_zero, load_zero_state, zero_state
from epicrisis.training.random_state import random_state, set_random_state
from epicrisis.training.sharding import copy_into, full, is_sharded, whole_shape

_MARK = "complete.json"
LATEST, BEST = "latest", "best.safetensors"
"""Links in `checkpoints/` to the latest whole checkpoint and to the weights that did best."""
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


@dataclass(frozen=True)
class Position:
    """How far training went.

    step: optimiser steps done. best_value: the best of the metric that decides, seen at best_step; None before
    the first. evaluated_step: the last step whose evaluation is done. batch_size: sequences that a device holds.
    """

    step: int = 0
    best_value: float | None = None
    best_step: int = 0
    evaluated_step: int = 0
    batch_size: int = 0


def trained_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights that training moves, by name; of a sharded module every process must ask."""
    return {
        name: full(parameter).detach().cpu().contiguous().clone()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def load_trained_weights(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put trained weights back; InputError where others are trained now than when they were saved."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if parameters.keys() != weights.keys():
        odd = sorted(parameters.keys() ^ weights.keys())
        raise _other_run(f"{len(odd)} weights are trained in one and not in the other, e.g. {odd[0]}")
    resized = [name for name, parameter in parameters.items() if whole_shape(parameter) != weights[name].shape]
    if resized:
        raise _other_run(f"{len(resized)} weights are of another size, e.g. {resized[0]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            copy_into(parameter, weights[name])


def active_adapters(module: nn.Module) -> list[str]:
    """The adapters that take part in a forward."""
    layers = (layer for layer in module.modules() if isinstance(layer, BaseTunerLayer))
    return sorted({name for layer in layers for name in layer.active_adapters})


class Checkpoints:
    """The folder `checkpoints/` of a run: `step-0000100` and the like, and the weights that did best.

    Links name what is looked for: `latest`, `best.safetensors`, and `epoch-0002` for a checkpoint that is kept for
    good. Each points at something whole at any moment, and none of them is needed to resume.
    """

    def __init__(self, directory: Path, keep: int, accelerator: Accelerator, also: Stateful | None = None):
        """keep: so many of the latest. also: what training changes beside weights, the same in every process."""
        self._directory = directory
        self._keep = keep
        self._accelerator = accelerator
        self._also = also

    def save(
        self,
        module: nn.Module,
        optimizer: Any,
        schedule: Any,
        position: Position,
        counted: dict[str, float] | None = None,
        *,
        epoch: int | None = None,
    ) -> None:
        """Write one checkpoint, whole or not at all, and drop the oldest beyond the limit.

        counted: what this process has counted since it last logged, to go on counting from. epoch: the epoch that ends
        here, whose checkpoint is to be kept for good; None for one that later ones take the place of.
        """
        accelerator = self._accelerator
        target = self._directory / f"step-{position.step:07d}"
        partial = target.with_name(f".{target.name}.partial")
        weights, state = trained_weights(module), _optimizer_state(module, optimizer)
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        own = {"random": random_state(), "counted": counted or {}}
        torch.save(own, partial / f"process-{accelerator.process_index}.pt")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            save_file(weights, partial / "trained.safetensors")
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
            also = self._also.state_dict() if self._also is not None else {}
            torch.save(
                {"optimizer": state, "schedule": schedule.state_dict(), "scaler": scaler, "also": also},
                partial / "optimizer.pt",
            )
            _mark_complete(partial, position, accelerator.num_processes, active_adapters(module), epoch)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
            _flush(self._directory)
            self._name(position)
            self._drop_old(position)
        accelerator.wait_for_everyone()

    def latest(self) -> Position | None:
        """Where the latest whole checkpoint stands; None where there is none."""
        found = self._latest_whole()
        return found[1] if found else None

    def restore(self, module: nn.Module, optimizer: Any, schedule: Any) -> tuple[Position, dict[str, float]]:
        """Load the latest whole checkpoint; Position() where there is none. Torn ones are named and passed over.

        The module and the optimizer must be prepared for this run's processes already. Returns the position and
        what this process had counted. Raises InputError for a checkpoint of a run that trains something else.
        """
        self._name_torn()
        found = self._latest_whole()
        if found is None:
            return Position(), {}
        directory, position, mark = found
        if self._accelerator.is_main_process:
            self._name(position)
        if mark["adapters"] != active_adapters(module):
            raise _other_run(f"its adapters are {mark['adapters']}, and this run's {active_adapters(module)}")
        load_trained_weights(module, load_file(directory / "trained.safetensors"))
        state = torch.load(directory / "optimizer.pt", weights_only=True)
        _load_optimizer_state(module, optimizer, state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        if self._accelerator.scaler is not None and state["scaler"]:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        if self._also is not None:
            self._also.load_state_dict(state["also"])
        return position, self._restore_process(directory, mark["processes"])

    def save_best(self, module: nn.Module, step: int) -> None:
        """Keep the weights of this step as the best so far, beside the checkpoints."""
        weights = trained_weights(module)
        if self._accelerator.is_main_process:
            self._directory.mkdir(parents=True, exist_ok=True)
            with _written_whole(self._best(step)) as partial:
                save_file(weights, partial)
            _link(self._directory / BEST, self._best(step))
        self._accelerator.wait_for_everyone()

    def load_best(self, module: nn.Module, step: int) -> bool:
        """Put the best weights back; False where none were kept."""
        if not self._best(step).is_file():
            return False
        load_trained_weights(module, load_file(self._best(step)))
        return True

    def _best(self, step: int) -> Path:
        return self._directory / f"best-{step:07d}.safetensors"

    def _latest_whole(self) -> tuple[Path, Position, dict[str, Any]] | None:
        for directory in reversed(self._all()):
            mark = _read_mark(directory)
            if mark is not None:
                return directory, Position(**mark["position"]), mark
        return None

    def _name_torn(self) -> None:
        if not self._accelerator.is_main_process:
            return
        for directory in self._all():
            if _read_mark(directory) is None:
                say(f"checkpoint {directory.name} is torn and is passed over")
        for partial in sorted(self._directory.glob(".step-*.partial")):
            say(f"checkpoint {partial.name[1:-8]} was never finished and is passed over")

    def _name(self, position: Position) -> None:
        """Lay the links anew; those to what is no longer there go."""
        whole = {directory: mark for directory in self._all() if (mark := _read_mark(directory)) is not None}
        epochs = {mark["epoch"]: directory for directory, mark in whole.items() if mark.get("epoch") is not None}
        links = {f"epoch-{epoch:04d}": directory for epoch, directory in epochs.items()}
        links |= {LATEST: list(whole)[-1]} if whole else {}
        best = self._best(position.best_step)
        links |= {BEST: best} if best.is_file() else {}
        for name, target in links.items():
            _link(self._directory / name, target)
        for link in (*self._directory.glob("epoch-*"), self._directory / LATEST, self._directory / BEST):
            if link.is_symlink() and link.name not in links:
                link.unlink()

    def _restore_process(self, directory: Path, processes: int) -> dict[str, float]:
        accelerator = self._accelerator
        if processes != accelerator.num_processes:
            if accelerator.is_main_process:
                say(
                    f"checkpoint {directory.name} is one of {processes} processes, and now there are "
                    f"{accelerator.num_processes}: the data go on as before, dropout draws other random numbers"
                )
            torch.manual_seed(int.from_bytes(directory.name.encode(), "little") % 2**31 + accelerator.process_index)
            return {}
        own = torch.load(directory / f"process-{accelerator.process_index}.pt", weights_only=True)
        set_random_state(own["random"])
        return own["counted"]

    def _drop_old(self, position: Position) -> None:
        """Keep the latest whole checkpoints, those of epochs, and the best weights that they or this run know of."""
        marks = {directory: _read_mark(directory) for directory in self._all()}
        sound = {directory: mark for directory, mark in marks.items() if mark is not None}
        of_epochs = [directory for directory, mark in sound.items() if mark.get("epoch") is not None]
        whole = {*list(sound)[-self._keep :], *of_epochs}
        for directory in marks.keys() - whole:
            shutil.rmtree(directory, ignore_errors=True)
        known = {position.best_step, *(mark["position"]["best_step"] for d in whole if (mark := marks[d]))}
        for leftover in (*self._directory.glob(".step-*.partial"), *self._directory.glob(".best-*.partial")):
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        for best in set(self._directory.glob("best-*.safetensors")) - {self._best(step) for step in known}:
            best.unlink(missing_ok=True)

    def _all(self) -> list[Path]:
        return sorted(self._directory.glob("step-*")) if self._directory.is_dir() else []


def _optimizer_state(module: nn.Module, optimizer: Any) -> dict[str, Any]:
    if is_sharded(module):
        return get_optimizer_state_dict(module, _inner(optimizer), options=_WHOLE)
    if is_zero(_inner(optimizer)):
        return zero_state(module, _inner(optimizer))
    return optimizer.state_dict()


def _load_optimizer_state(module: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    if is_sharded(module):
        set_optimizer_state_dict(module, _inner(optimizer), state, options=_WHOLE)
    elif is_zero(_inner(optimizer)):
        load_zero_state(module, _inner(optimizer), state)
    else:
        _inner(optimizer).load_state_dict(state)


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside of accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def _mark_complete(directory: Path, position: Position, processes: int, adapters: list[str], epoch: int | None) -> None:
    for file in directory.iterdir():
        _flush(file)
    sizes = {file.name: file.stat().st_size for file in directory.iterdir()}
    mark = {"position": asdict(position), "processes": processes, "adapters": adapters, "sizes": sizes}
    mark |= {} if epoch is None else {"epoch": epoch}
    (directory / _MARK).write_text(json.dumps(mark))
    _flush(directory / _MARK)
    _flush(directory)


def _read_mark(directory: Path) -> dict[str, Any] | None:
    """What a whole checkpoint says of itself; None for one that is torn or of another version."""
    try:
        mark = json.loads((directory / _MARK).read_text())
        sizes = {name: (directory / name).stat().st_size for name in mark["sizes"]}
        Position(**mark["position"])
        complete = sizes == mark["sizes"] and {"processes", "adapters"} <= mark.keys()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return mark if complete else None


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A temporary name, which becomes `target` when all of it has reached the disk."""
    partial = target.with_name(f".{target.name}.partial")
    yield partial
    _flush(partial)
    os.replace(partial, target)
    _flush(target.parent)


def _link(link: Path, target: Path) -> None:
    """Point a link at its neighbour `target`, in one piece: it is never absent in between."""
    fresh = link.with_name(f".{link.name}.partial")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.name)
    os.replace(fresh, link)


def _flush(path: Path) -> None:
    """Have a file or a folder's entries written to disk before anything that relies on them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _other_run(what: str):
    return refuse(
        "training.resume",
        f"the checkpoint is of a run that trains something else: {what}",
        "go on with the settings of its config.yaml, or begin anew in another training.output_dir",
    )
