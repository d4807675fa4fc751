"""Checkpoints that are whole or not there: trained weights, optimizer, schedule, position, random states."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from epicrisis.tracking.progress import say

_MARK = "complete.json"


@dataclass(frozen=True)
class Position:
    """How far training went: optimiser steps done, and the best tuning loss seen at which step."""

    step: int = 0
    best_loss: float = float("inf")
    best_step: int = 0


def trained_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights that training moves, by name."""
    return {
        name: parameter.detach().cpu().contiguous().clone()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def load_trained_weights(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put trained weights back; KeyError where the sets of names differ."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if parameters.keys() != weights.keys():
        odd = sorted(parameters.keys() ^ weights.keys())
        raise KeyError(f"checkpoint and model differ in what is trained, e.g. {odd[0]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


class Checkpoints:
    """The folder `checkpoints/` of a run."""

    def __init__(self, directory: Path, keep: int, accelerator: Accelerator):
        self._directory = directory
        self._keep = keep
        self._accelerator = accelerator

    def save(self, module: nn.Module, optimizer: Any, schedule: Any, position: Position) -> None:
        """Write one checkpoint, whole or not at all, and drop the oldest beyond the limit."""
        target = self._directory / f"step-{position.step:07d}"
        partial = target.with_name(f".{target.name}.partial")
        if self._accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._accelerator.wait_for_everyone()
        torch.save(_random_state(), partial / f"random-{self._accelerator.process_index}.pt")
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            save_file(trained_weights(module), partial / "trained.safetensors")
            state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, partial / "optimizer.pt")
            _mark_complete(partial, position)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
            for old in self._all()[: -self._keep]:
                shutil.rmtree(old, ignore_errors=True)
        self._accelerator.wait_for_everyone()

    def restore(self, module: nn.Module, optimizer: Any, schedule: Any) -> Position:
        """Load the latest whole checkpoint; Position() where there is none. Torn ones are passed over."""
        for directory in reversed(self._all()):
            position = _whole(directory)
            if position is None:
                say(f"checkpoint {directory.name} is torn and is passed over")
                continue
            load_trained_weights(module, load_file(directory / "trained.safetensors"))
            state = torch.load(directory / "optimizer.pt", weights_only=True)
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            _restore_random_state(directory / f"random-{self._accelerator.process_index}.pt")
            return position
        return Position()

    def save_best(self, module: nn.Module) -> None:
        """Keep the weights of the lowest tuning loss so far beside the checkpoints."""
        if self._accelerator.is_main_process:
            self._directory.mkdir(parents=True, exist_ok=True)
            partial = self._directory / ".best.partial"
            save_file(trained_weights(module), partial)
            os.replace(partial, self._directory / "best.safetensors")
        self._accelerator.wait_for_everyone()

    def load_best(self, module: nn.Module) -> bool:
        """Put the best weights back; False where none were kept."""
        file = self._directory / "best.safetensors"
        if not file.is_file():
            return False
        load_trained_weights(module, load_file(file))
        return True

    def _all(self) -> list[Path]:
        return sorted(self._directory.glob("step-*")) if self._directory.is_dir() else []


def _mark_complete(directory: Path, position: Position) -> None:
    sizes = {file.name: file.stat().st_size for file in directory.iterdir()}
    (directory / _MARK).write_text(json.dumps({"position": asdict(position), "sizes": sizes}))


def _whole(directory: Path) -> Position | None:
    try:
        mark = json.loads((directory / _MARK).read_text())
        sizes = {name: (directory / name).stat().st_size for name in mark["sizes"]}
    except (OSError, ValueError, KeyError):
        return None
    return Position(**mark["position"]) if sizes == mark["sizes"] else None


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(file: Path) -> None:
    if not file.is_file():  # resumed with more processes than it was saved with
        return
    state = torch.load(file, weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
