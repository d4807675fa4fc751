"""DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054) under the training loop.

Stage 2 spreads gradients and optimizer states over processes, stage 3 the weights, too. The engine keeps what it
moves in flat pieces; here it is told when a step ends, and its pieces are put together by the weights' names, so
that a checkpoint does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from epicrisis.settings import refuse
from epicrisis.settings.schema import TrainingSettings

_MOMENTS = ("exp_avg", "exp_avg_sq")
_LARGEST_BUCKET = 500_000_000
"""DeepSpeed's own reduce_bucket_size: gradients that are summed at once."""


class ZeroSteps:
    """A module whose weights DeepSpeed's engine moves; see `steps.Steps`."""

    in_lockstep = True  # each backward sums gradients over all processes

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, training: TrainingSettings, accelerator: Accelerator
    ):
        if any(parameter.dtype != torch.float32 for parameter in _trained(module).values()):
            what = "DeepSpeed would keep float32 copies of weights that are trained in less, and learn something else"
            raise refuse("accelerate", what, "launch with configs/accelerate/multi_gpu_ddp.yaml")
        self._plain = {parameter: set(vars(parameter)) for parameter in module.parameters()}
        self._module = module
        self._accelerator = accelerator
        _configure(accelerator.state.deepspeed_plugin.deepspeed_config, module, training, accelerator.num_processes)
        self.ready, self.optimizer = accelerator.prepare(module, optimizer)
        self._spread: Any = getattr(self.ready.optimizer, "parameter_offload", None)

    def micro_batch(self, is_last: bool) -> AbstractContextManager[Any]:
        self.ready.set_gradient_accumulation_boundary(is_last)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self.ready.backward(loss)

    def move(self) -> torch.Tensor:
        self.ready.step()
        return torch.as_tensor(self.ready.get_global_grad_norm())

    @contextmanager
    def whole(self) -> Iterator[None]:
        if self._spread is None:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters

        self.ready.empty_partition_cache()
        with GatheredParameters(list(self._plain)):
            self._take_hooks_off()
            try:
                yield
            finally:
                self._spread.setup_zero_stage3_hooks()

    def finish(self) -> None:
        """Gather the weights, and take off all that DeepSpeed has hung on them and on the module."""
        if self._spread is not None:
            self.ready.empty_partition_cache()
            parameters: list[Any] = list(self._plain)
            parameters[0].all_gather(parameters)
            self._take_hooks_off()
        self.ready.module_forward_pre_hook.remove()
        self.ready.module_forward_post_hook.remove()
        self._accelerator.free_memory()
        for part in self._module.modules():
            part._parameters = vars(part).pop("_original_parameters", part._parameters)
        for parameter, known in self._plain.items():
            for name in set(vars(parameter)) - known:
                delattr(parameter, name)

    def _take_hooks_off(self) -> None:
        """A forward then needs no other process, and leaves the weights whole."""
        self._spread.destroy()
        self._spread.forward_hooks, self._spread.backward_hooks = [], []


def is_piece(parameter: Any) -> bool:
    """Whether only a piece of the weight is kept on each process (stage 3)."""
    return hasattr(parameter, "ds_id")


def shape_of_whole(parameter: Any) -> torch.Size:
    """The shape that a spread weight has when it is put together."""
    return parameter.ds_shape


def whole_weight(parameter: Any) -> torch.Tensor:
    """A copy of a spread weight; every process must ask."""
    from deepspeed.runtime.zero import GatheredParameters

    if parameter.ds_status.name == "AVAILABLE":
        return parameter.detach().clone()
    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def copy_into_pieces(parameter: Any, value: torch.Tensor) -> None:
    """Set a spread weight to a value that every process has whole."""
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(value)


def is_zero(optimizer: Any) -> bool:
    """Whether an optimizer, unwrapped from accelerate's, is DeepSpeed's."""
    return type(optimizer).__module__.startswith("deepspeed.")


def zero_state(module: nn.Module, zero: Any) -> dict[str, Any]:
    """What DeepSpeed's AdamW knows, as plain tensors and numbers; every process must ask.

    step; groups: each group's learning rate and the like; moments: by the weights' names, as their shapes, float32,
    none before the first step.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    known = zero.optimizer.state.get(_pieces(zero)[0], {})
    moments = {
        name: {key: safe_get_full_optimizer_state(parameter, key).cpu() for key in _MOMENTS}
        for name, parameter in _trained(module).items()
        if known
    }
    groups = [{key: value for key, value in group.items() if key != "params"} for group in zero.optimizer.param_groups]
    return {"step": float(known["step"]) if known else 0.0, "groups": groups, "moments": moments}


def load_zero_state(module: nn.Module, zero: Any, state: dict[str, Any]) -> None:
    """Give DeepSpeed's AdamW what `zero_state` gave; the module's weights must be set already."""
    for group, saved in zip(zero.optimizer.param_groups, state["groups"], strict=True):
        group.update(saved)
    zero.refresh_fp32_params()
    if not state["moments"]:
        return
    for piece in _pieces(zero):
        nothing = {key: torch.zeros_like(piece) for key in _MOMENTS}
        zero.optimizer.state[piece] = {"step": torch.tensor(state["step"]), **nothing}
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._lazy_init_hp_params_optimizer_state()  # stage 2 does it at its first step
    for name, parameter in _trained(module).items():
        for key, moment in state["moments"][name].items():
            _put(parameter, key, moment.to(parameter.device))


def _configure(config: dict[str, Any], module: nn.Module, training: TrainingSettings, n_processes: int) -> None:
    """Give DeepSpeed the run's own settings. The loop has divided the loss already: DeepSpeed must not."""
    assert training.batch_size != "auto"
    config["train_micro_batch_size_per_gpu"] = training.batch_size
    config["gradient_accumulation_steps"] = 1
    config["train_batch_size"] = training.batch_size * n_processes
    config["gradient_clipping"] = training.max_grad_norm
    n_trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    # DeepSpeed sets aside as much at once, however little is trained.
    config["zero_optimization"].setdefault("reduce_bucket_size", min(n_trained, _LARGEST_BUCKET))


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _pieces(zero: Any) -> list[torch.Tensor]:
    """This process's flat float32 pieces of all trained weights, which the optimizer inside moves."""
    spread = getattr(zero, "fp32_partitioned_groups_flat", None)
    return zero.single_partition_of_fp32_groups if spread is None else spread


def _put(parameter: Any, key: str, moment: torch.Tensor) -> None:
    """Set this process's piece of a moment that is given whole."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not is_piece(parameter):
        safe_set_full_optimizer_state(parameter, moment, key)
        return
    # DeepSpeed's own way to set whole ones fails where a weight cannot be cut into equal pieces.
    size = parameter.ds_tensor.ds_numel
    start = size * torch.distributed.get_rank(parameter.ds_process_group)
    own = moment.flatten()[start : start + size]
    safe_set_local_optimizer_state(parameter, nn.functional.pad(own, (0, size - len(own))), key)
