"""What train_throughput.py's processes tell each other: cases to train and what came of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch

RANK = 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LEARNING_RATE = 2e-3
SEED = 0

Engine = Literal["epicrisis", "trl", "unsloth"]


@dataclass(frozen=True)
class Case:
    """One way to train.

    at_once: rows, or documents where nothing is packed, of one forward; accumulated: forwards of an optimiser step.
    packing: of TRL "bfd" or "wrapped"; of epicrisis "bfd"; "" pads each document. loss: "whole" holds all logits.
    documents: so many of the narratives are trained on, each once; None for all.
    """

    name: str
    engine: Engine
    packing: str = "bfd"
    at_once: int = 1
    accumulated: int = 8
    max_length: int = 512
    documents: int | None = None
    dtype: str = "float32"
    load_in_4bit: bool = False
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    loss: Literal["chunked", "whole"] = "chunked"
    more: tuple[tuple[str, Any], ...] = ()
    """Options that SFTConfig is given besides."""

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]


def case_from(given: dict[str, Any]) -> Case:
    """A case that was written as JSON."""
    return Case(**{**given, "more": tuple((key, value) for key, value in given["more"])})


@dataclass(frozen=True)
class Outcome:
    """What a run has shown. tokens and losses: of each optimiser step; seconds: when each ended, from the run's begin.

    tokens: of narratives, without padding. held_out: mean loss of unseen narratives after it. problem: why there is
    nothing else.
    """

    tokens: list[int]
    losses: list[float]
    seconds: list[float]
    held_out: float
    peak_gb: float
    problem: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Useful tokens per second in all steps but the first, which also sets up and warms up."""
        return sum(self.tokens[1:]) / (self.seconds[-1] - self.seconds[0])


def failed(problem: str) -> Outcome:
    return Outcome([], [], [], float("nan"), 0.0, problem)


class Record:
    """Tokens, losses and ends of steps while a run goes on."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.tokens: list[int] = []
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, tokens: int, loss: float) -> None:
        self.tokens.append(tokens)
        self.losses.append(loss)
        self.seconds.append(time.perf_counter() - self.start)


def adapter_key(name: str) -> str:
    """What is left of a parameter's name without prefixes and adapter: 0.mlp.up_proj, 0.mlp.up_proj.lora_A."""
    parts = name.partition(".layers.")[2].removesuffix(".weight").split(".")
    return ".".join(parts[:4])
