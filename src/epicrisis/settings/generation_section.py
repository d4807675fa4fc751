"""The keys of `generation`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from epicrisis.settings.section import Section

VALUE = re.compile(r"^(?P<compare><=|>=|<|>) ?(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))(?: (?P<unit>\S.*))?$")
"""A condition on a value: `> 7.0`, `<= 3.5 mmol/L`."""


class TargetSettings(Section):
    """What is looked for in sampled futures: the first event of any of these codes, within the horizon."""

    name: str
    """What the tables call it."""
    codes: tuple[str, ...] = Field(min_length=1)
    """Codes as in the data; one that ends in `*` stands for all that begin so: `ICD10CM//I21*`."""
    value: str | None = Field(None, pattern=VALUE.pattern)
    """Only events with such a value: `> 7.0`, or with its unit as it is told, `> 7.0 mmol/L`."""
    horizon_days: float = Field(gt=0)
    """Days from the prediction time within which it must come."""


class GenerationSettings(Section):
    """What `generate` has a finished run write, and how; docs/generation.md explains the modes."""

    run: Path | None = None
    """The run directory of a finished run of a language model; its config.yaml underlies this one."""
    mode: Literal["answer", "continue", "futures"] = "answer"
    """An answer in words, the narrative continued, or the risks of `targets` from sampled futures."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What writes; vllm serves a base in 16 bits with one adapter, and does not write answers."""
    n_samples: int = Field(20, ge=1)
    """Continuations of each row; answers are one."""
    max_new_tokens: int | None = Field(None, ge=1)
    """The most tokens written; by default 256, in answers four more than the longest answer has."""
    temperature: float | None = Field(None, ge=0)
    """0 always writes the likeliest token; by default 0 for answers, else 1, at which risks mean what they say."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the likeliest tokens with this much probability together; below 1, rare events become rarer."""
    top_k: int | None = Field(None, ge=1)
    """Draw from this many likeliest tokens; rare events become rarer."""
    stop: tuple[str, ...] = ()
    """Strings that end what is written, and are left out of it; in answers a line break where not given."""
    constrained: bool = False
    """Answers: write nothing but one of model.answers."""
    may_end: bool = False
    """Futures: whether one may end; records cut at the prediction time teach a model to end there."""
    batch_size: int = Field(64, ge=1)
    """Continuations written at once."""
    max_rows: int | None = Field(None, ge=1)
    """So many rows of the split, chosen by training.seed; all where not given."""
    targets: tuple[TargetSettings, ...] = ()
    """Futures: what is looked for."""
