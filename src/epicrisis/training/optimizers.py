"""The optimizer and the learning rate's course."""

from __future__ import annotations

import torch
from torch import nn
from transformers import get_scheduler

from epicrisis.settings.schema import TrainingSettings
from epicrisis.training.parameters import parameter_groups
from epicrisis.training.plan import Plan


def make_optimizer(module: nn.Module, training: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW over what requires gradients, each group with its own learning rate.

    States in 8 bits are kept in blocks (Dettmers et al. 2022, arXiv:2110.02861); paged ones lie in memory
    that the driver moves to RAM when the GPU's is short.
    """
    groups = parameter_groups(module, training)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    kind = PagedAdamW8bit if training.optimizer == "paged_adamw_8bit" else AdamW8bit
    return kind(groups, lr=training.learning_rate, weight_decay=training.weight_decay)


def make_schedule(optimizer: torch.optim.Optimizer, plan: Plan, training: TrainingSettings):
    """Warm-up and fall of every group's learning rate over the plan's steps."""
    return get_scheduler(training.lr_scheduler_type, optimizer, plan.warmup_steps, plan.n_steps)
