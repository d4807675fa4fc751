"""How gradients come together and weights move: by accelerate's optimizer, or by DeepSpeed's engine."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from epicrisis.settings.schema import TrainingSettings
from epicrisis.training.sharding import full, is_sharded, make_whole, name_layers, whole


class Steps(Protocol):
    """A module and its optimizer, prepared for the processes of a run.

    ready: what a forward with gradients goes through. in_lockstep: every process must do as many forwards and
    backwards as the others.
    """

    ready: nn.Module
    optimizer: Any
    in_lockstep: bool

    def micro_batch(self, is_last: bool) -> AbstractContextManager[Any]:
        """Around the forward and backward of one micro-batch of a step."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add to the gradients; the mean over the processes is what counts."""
        ...

    def move(self) -> torch.Tensor:
        """Shorten the gradients, move the weights, clear the gradients; the gradients' length before."""
        ...

    def whole(self) -> AbstractContextManager[None]:
        """The module with all of its weights on every process, e.g. for an evaluation; every process must ask."""
        ...

    def finish(self) -> None:
        """Leave the module with all of its weights on every process, for good."""
        ...


def prepare_steps(
    module: nn.Module, optimizer: torch.optim.Optimizer, training: TrainingSettings, accelerator: Accelerator
) -> Steps:
    """The module and optimizer as this run's launch has them."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from epicrisis.training.deepspeed import ZeroSteps

        return ZeroSteps(module, optimizer, training, accelerator)
    return AcceleratedSteps(module, optimizer, training, accelerator)


class AcceleratedSteps:
    """One process, DDP or FSDP 2."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, training: TrainingSettings, accelerator: Accelerator
    ):
        name_layers(module)
        self.ready, self.optimizer = accelerator.prepare(module, optimizer)
        self.in_lockstep = is_sharded(module)
        self._module = module
        self._accelerator = accelerator
        self._max_norm = training.max_grad_norm

    def micro_batch(self, is_last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if is_last else self._accelerator.no_sync(self.ready)

    def backward(self, loss: torch.Tensor) -> None:
        self._accelerator.backward(loss)

    def move(self) -> torch.Tensor:
        norm = self._accelerator.clip_grad_norm_(self.ready.parameters(), self._max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return full(norm)

    def whole(self) -> AbstractContextManager[None]:
        return whole(self._module)

    def finish(self) -> None:
        make_whole(self._module)
