"""How long a training run will take: measured on a few batches where the base is small, else reckoned.

Reckoned is a token's work in the matrix products. A forward takes 2 FLOP for each weight and 4·layers·length·hidden for
attention; a backward through trained weights twice that (6·N·D in all, Kaplan et al. 2020, arXiv:2001.08361). Under an
adapter the base is frozen and needs no gradients of its own, so that its backward costs what the forward did:
4·N·D. Gradient checkpointing adds a forward. A step keeps some share of the speed that plain matrix products
reach on the machine (model FLOP utilisation, Chowdhery et al. 2022, arXiv:2204.02311); KEPT is ours.
"""

from __future__ import annotations

import tempfile
import time

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from epicrisis.corpus.packing import PackedBatch, pack
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base_model import load_weights
from epicrisis.llm.heads import NextToken, ScoreHead
from epicrisis.llm.memory import Shape
from epicrisis.settings import Settings

KEPT = 0.4
"""Of the speed of plain matrix products, what a whole training step keeps."""
PROBED_WEIGHTS = 50_000_000
"""Bases up to this size are made, untrained, and timed; a larger one would take longer to make than to reckon."""
_PROBES = 2


def flop_per_token(shape: Shape, length: int, *, checkpointing: bool) -> float:
    """FLOP that training an adapter over a frozen base takes for one token."""
    products = 2.0 * (shape.linear + shape.vocabulary * shape.hidden)
    attention = 4.0 * shape.layers * length * shape.hidden
    forward, backward = products + attention, products + 2 * attention
    return forward * (2 if checkpointing else 1) + backward


def matmul_speed(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP per second in plain matrix products of the compute precision on this device."""
    size = 4096 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    left @ right
    done, start = 0, _now(device)
    while _now(device) - start < seconds:
        left @ right
        done += 1
    return 2.0 * size**3 * done / (_now(device) - start)


def seconds_per_token(settings: Settings, config: PreTrainedConfig, device: torch.device) -> float:
    """Seconds that training takes per token, padding included: timed on an untrained base of this shape.

    Two batches of random tokens after one that warms up; nothing is kept.
    """
    module = _untrained(settings, config, device)
    size = settings.training.batch_size if settings.training.batch_size != "auto" else 1
    batch = random_batch(size, settings.model.max_length, config.get_text_config().vocab_size).to(device)
    module.train()
    start = 0.0
    for number in range(_PROBES + 1):
        if number == 1:
            start = _now(device)
        output = module(batch)
        output.sum().backward()
        module.zero_grad(set_to_none=True)
    return (_now(device) - start) / _PROBES / batch.input_ids.numel()


def random_batch(rows: int, length: int, vocabulary: int) -> PackedBatch:
    """Full rows of one document each."""
    ids = torch.randint(vocabulary, (rows, length)).tolist()
    return pack(ids, [[row] for row in range(rows)], pad_id=0)


def _untrained(settings: Settings, config: PreTrainedConfig, device: torch.device) -> nn.Module:
    """A model with adapter and head as the run will train it, with random weights."""
    training = settings.training
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        base = load_weights(settings, folder, device)
        model: nn.Module = base
        if settings.lora.method != "none":  # inside of `with`, since LoftQ reads the folder
            model = backend_for(training.framework).attach(base, "probe", settings.lora, training.seed)
    if settings.stage == "pretrain":
        return NextToken(model)
    return ScoreHead(model, len(settings.model.answers), training.seed, settings.model.pooling)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
