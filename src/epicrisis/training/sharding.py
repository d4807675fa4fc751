"""Models whose weights are spread over processes (FSDP 2, ZeRO-3), and how to have them whole where that is needed.

What is not sharded passes through all of this unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from epicrisis.training.deepspeed import copy_into_pieces, is_piece, shape_of_whole, whole_weight


def name_layers(module: nn.Module) -> None:
    """Tell a head what layers its model is made of: FSDP asks the outermost module, and else gathers all at once."""
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            module._no_split_modules = list(part._no_split_modules or [])  # type: ignore[assignment]
            return


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP keeps the weights of the module in parts on several processes."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def make_whole(module: nn.Module) -> None:
    """Gather all weights on every process, for good; every process must call it.

    Afterwards a forward needs no other process, so each may do as many as it has batches, and the weights
    can be saved as those of any model.
    """
    for part in _parts(module):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """The weights gathered for the time of a `with` block, e.g. an evaluation; spread again after it."""
    make_whole(module)
    try:
        yield
    finally:
        for part in _parts(module):
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or all parts of a sharded one; then every process must call it."""
    if is_piece(tensor):
        return whole_weight(tensor)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of a weight, sharded or not, when all of it is there."""
    return shape_of_whole(parameter) if is_piece(parameter) else parameter.shape


def copy_into(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Set a weight, sharded or not, to a value that every process has whole."""
    if is_piece(parameter):
        copy_into_pieces(parameter, value)
        return
    if isinstance(parameter, DTensor):
        value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.copy_(value)


def _parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]
