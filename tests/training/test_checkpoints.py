"""Checkpoints by name: the latest, the best, and those of epochs, which stay; and none of it is needed to resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from epicrisis.settings.schema import TrainingSettings
from epicrisis.tracking.run_record import PARAMETERS, TRAINED
from epicrisis.training.checkpoints import Checkpoints, trained_weights
from epicrisis.training.loop import train
from epicrisis.training.parameters import parameter_counts

EPOCHS = 5


@dataclass
class Numbers:
    """A batch of plain numbers."""

    x: torch.Tensor

    useful_tokens: int = 1
    places: int = 1

    def to(self, device: torch.device) -> Numbers:
        return Numbers(self.x.to(device))


class Sums:
    """Four items; a linear model learns their sums."""

    n_items = 4

    def collate(self, items: Sequence[int]) -> Numbers:
        return Numbers(torch.eye(4)[list(items)])

    def units(self, items: Sequence[int]) -> float:
        return len(items)

    def loss_sum(self, module: nn.Module, batch: Any, items: Sequence[int]) -> torch.Tensor:
        return ((module(batch.x).squeeze(1) - 1) ** 2).sum()


def learn(folder: Path, stop_after: int | None = None, losses: Sequence[float] = (), **training: Any) -> dict:
    """Train for five epochs of two steps; the trained weights, what was logged and what evaluations gave."""
    torch.manual_seed(1)
    module = nn.Linear(4, 1)
    accelerator = Accelerator(cpu=True)
    given = {"batch_size": 2, "epochs": EPOCHS, "bf16": False, "learning_rate": 0.1, "load_in_4bit": False, **training}
    logged: list[dict[str, Any]] = []
    scripted = iter(losses)

    def log(**fields: Any) -> None:
        logged.append(fields)
        if stop_after is not None and fields["step"] == stop_after and "eval/loss" in fields:
            raise ConnectionError

    checkpoints = Checkpoints(folder, 1, accelerator)
    train(
        *(module, Sums(), TrainingSettings(**given), accelerator, checkpoints),
        title="test",
        evaluate=lambda _: {"loss": next(scripted, 9.0)},
        log=log,
    )
    return {"weights": trained_weights(module), "logged": logged}


def links(folder: Path) -> dict[str, str]:
    return {path.name: path.readlink().name for path in sorted(folder.iterdir()) if path.is_symlink()}


def test_the_latest_and_the_best_are_found_by_name(tmp_path: Path) -> None:
    learn(tmp_path, losses=(3.0, 1.0, 2.0, 2.0, 2.0))
    assert links(tmp_path) == {"best.safetensors": "best-0000004.safetensors", "latest": "step-0000010"}
    assert (tmp_path / "latest" / "complete.json").is_file()
    assert set(load_file(tmp_path / "best.safetensors")) == {"weight", "bias"}


def test_without_best_weights_there_is_no_such_link(tmp_path: Path) -> None:
    learn(tmp_path, keep_best=False)
    assert links(tmp_path) == {"latest": "step-0000010"}


@pytest.mark.parametrize(("every", "kept"), [(1, [2, 4, 6, 8, 10]), (2, [4, 8, 10]), (None, [10])])
def test_checkpoints_of_epochs_stay(tmp_path: Path, every: int | None, kept: list[int]) -> None:
    learn(tmp_path, keep_every_epochs=every)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-{step:07d}" for step in kept]
    epochs = {f"epoch-{e:04d}": f"step-{2 * e:07d}" for e in range(1, EPOCHS + 1) if every and e % every == 0}
    assert {name: to for name, to in links(tmp_path).items() if name.startswith("epoch")} == epochs


def test_an_epoch_is_kept_where_nothing_else_is_saved_and_changes_no_weight(tmp_path: Path) -> None:
    rarely = {"save_steps": 1000, "eval_steps": 1000}
    plain = learn(tmp_path / "plain", **rarely)["weights"]
    kept = learn(tmp_path / "kept", keep_every_epochs=3, **rarely)["weights"]
    assert all(torch.equal(plain[name], kept[name]) for name in plain)
    assert sorted(path.name for path in (tmp_path / "kept").glob("step-*")) == ["step-0000006", "step-0000010"]


def test_a_run_that_broke_goes_on_to_the_same_weights_and_links_without_the_links(tmp_path: Path) -> None:
    losses = (3.0, 1.0, 2.0, 0.5, 2.0)
    whole = learn(tmp_path / "whole", losses=losses, keep_every_epochs=2)["weights"]
    with pytest.raises(ConnectionError):
        learn(tmp_path / "cut", stop_after=8, losses=losses, keep_every_epochs=2)
    assert links(tmp_path / "cut")["latest"] == "step-0000006"
    for link in (path for path in (tmp_path / "cut").iterdir() if path.is_symlink()):
        link.unlink()
    (tmp_path / "cut" / "latest").symlink_to("step-0000999")
    resumed = learn(tmp_path / "cut", losses=losses[3:], keep_every_epochs=2, resume=True)
    assert all(torch.equal(whole[name], resumed["weights"][name]) for name in whole)
    assert links(tmp_path / "cut") == links(tmp_path / "whole")
    assert {to for to in links(tmp_path / "cut").values() if not (tmp_path / "cut" / to).exists()} == set()


def test_best_weights_that_no_checkpoint_knows_of_are_not_named_best_after_a_resume(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        learn(tmp_path, stop_after=6, losses=(1.0, 2.0, 3.0))
    (tmp_path / "best-0000006.safetensors").write_bytes((tmp_path / "best-0000002.safetensors").read_bytes())
    (tmp_path / "best.safetensors").unlink()
    (tmp_path / "best.safetensors").symlink_to("best-0000006.safetensors")
    learn(tmp_path, losses=(3.0, 3.0, 3.0), resume=True)
    assert links(tmp_path)["best.safetensors"] == "best-0000002.safetensors"


def test_a_run_says_once_how_many_parameters_it_trains(tmp_path: Path) -> None:
    logged = learn(tmp_path)["logged"]
    assert [line for line in logged if PARAMETERS in line] == [{"step": 0, PARAMETERS: 5, TRAINED: 5}]
    again = learn(tmp_path, resume=True)["logged"]
    assert not [line for line in again if PARAMETERS in line]


def test_shared_parameters_count_once_and_frozen_ones_are_not_trained() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    other = nn.Linear(3, 2).requires_grad_(False)
    assert parameter_counts(nn.Sequential(first, second, other)) == {PARAMETERS: 9 + 8, TRAINED: 9}
