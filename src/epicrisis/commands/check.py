"""`epicrisis check`: is this config sound, and what would it do? Trains nothing, writes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import psutil
import torch

from epicrisis.cohort import Cohort
from epicrisis.commands.benchmark import refuse_unless_all_runnable, settings_of_arms, tree_of
from epicrisis.commands.inputs import coverage_of, open_cohort, open_lookups
from epicrisis.commands.preflight import refuse_unless_runnable
from epicrisis.commands.sweep import sound_sweep, wanted_trials
from epicrisis.commands.train import latest_rows
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings, load_settings
from epicrisis.tracking.progress import duration
from epicrisis.tracking.sweeps.sweep_file import is_sweep_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from epicrisis.training.plan import Plan

_SAMPLE = 200


def run(config_filepath: Path | None, overrides: Sequence[str]) -> None:
    """Print the cohort, the coverage of its codes and, for language models, tokens, steps, memory and time.

    Of a benchmark all arms are asked whether they could run, and each is said to be sound by its name. Of a sweep file
    all that can be asked before its first trial is, of every value that stands for its space.
    """
    if config_filepath is not None and is_sweep_file(config_filepath):
        _check_sweep(config_filepath, overrides)
        return
    settings = load_settings(config_filepath, overrides)
    arms = settings_of_arms(settings, tree_of(config_filepath, overrides))
    cohort = open_cohort(settings)
    lookups = open_lookups(settings, cohort)
    if arms:
        refuse_unless_all_runnable(arms, cohort, lookups)
        print(f"config is sound: a benchmark of {len(arms)} arms, run directory {settings.training.output_dir}")
        print("\n".join(f"{name} is sound: {_told(own)}" for name, own in arms.items()))
    else:
        refuse_unless_runnable(settings, cohort, lookups)
        print(f"config is sound: {_told(settings)}")
    _tell(arms or {"": settings}, cohort, lookups)


def _check_sweep(path: Path, overrides: Sequence[str]) -> None:
    """Print what a sweep searches, how far, and what one of its trials would do."""
    found = sound_sweep(path, overrides)
    sweep, checked = found.sweep, found.checked
    trials = wanted_trials(sweep, None)
    print(f"sweep is sound: {sweep.method}, {sweep.goal} {sweep.metric}, {trials or 'as many as --count says'} trials")
    print("\n".join(f"{key}: {own}" for key, own in sweep.space.items()))
    if checked.default is None:
        print(
            f"the config's own values are not in the space, so that no trial is of them: {', '.join(checked.outside)}"
        )
    else:
        print("the first trial has the config's own values")
    print("".join(f"note: {text}\n" for text in checked.warnings), end="")
    print(f"each trial: {_told(checked.settings)}")
    _tell({"": checked.settings}, found.cohort, found.lookups)


def _tell(arms: Mapping[str, Settings], cohort: Cohort, lookups: Lookups) -> None:
    """The cohort, how much of it reads as words, and what language models cost. arms: settings by name."""
    print("\n".join(cohort.notes))
    sample = cohort.rows.sample(min(_SAMPLE, cohort.rows.height), seed=0)
    table = coverage_of(cohort, sample, lookups).filter(pl.col("vocabulary") == "*")
    readable = np.average(table["words"], weights=table["n_events"])
    print(f"{readable:.1%} of the events of {sample.height} sampled rows read as words")
    for name, own in arms.items():
        if own.arm == "llm":
            told = _cost(own, cohort, lookups, sample)
            print("\n".join(f"{name}: {line}" if name else line for line in told))


def _told(settings: Settings) -> str:
    return f"arm {settings.arm}, stage {settings.stage}, run directory {settings.training.output_dir}"


@dataclass(frozen=True)
class _Work:
    """What a run will read: tokens of train that it learns from, and of tuning that it is watched on."""

    plan: Plan
    train_tokens: float
    tuning_tokens: float


def _cost(settings: Settings, cohort: Cohort, lookups: Lookups, sample: pl.DataFrame) -> list[str]:
    from epicrisis.llm.known_bases import base_config
    from epicrisis.training.device import make_accelerator

    device = make_accelerator(settings.training).device
    lines, work = _reading(settings, cohort, lookups, sample)
    config = base_config(settings.model.model_name)
    if config is None:
        return [*lines, f"memory and time: {settings.model.model_name} is not here and nothing is known of its shape"]
    return [*lines, _memory(settings, config, device), _time(settings, config, device, work)]


def _reading(settings: Settings, cohort: Cohort, lookups: Lookups, sample: pl.DataFrame) -> tuple[list[str], _Work]:
    """How many tokens and steps, from a sample of the rows."""
    from epicrisis.corpus.prepare import prepare
    from epicrisis.llm.arm import narrator_for, telling_for
    from epicrisis.llm.pretrain import whole_records
    from epicrisis.training.plan import make_plan

    lines, tokenizer = _tokenizer(settings)
    with tempfile.TemporaryDirectory() as place:
        train = cohort.select("train")
        narrator = narrator_for(settings, lookups, train, cohort.history(train), Path(place))
        telling = telling_for(settings, narrator, lookups, tokenizer)
        if settings.narrative.records == "whole":
            telling = whole_records(telling)
        prepared = prepare(sample, cohort.history(sample), telling, Path(place))
        told = prepared.statistics()
    mean = float(np.average(told["tokens_mean"], weights=told["n"]))
    tuning = cohort.select("tuning")
    if settings.stage == "pretrain":
        train, tuning = latest_rows(train), latest_rows(tuning)
        items = max(1, round(train.height * mean / settings.model.max_length))
    else:
        items = train.height
    plan = make_plan(items, settings.training)
    tokens = train.height * mean * plan.n_steps / plan.steps_per_epoch
    line = (
        f"{train.height} train narratives of {mean:.0f} tokens on average (from a sample): "
        f"about {plan.n_steps} optimiser steps, {plan.warmup_steps} of them warm-up, over {tokens:,.0f} tokens"
    )
    return [*lines, line], _Work(plan, tokens, tuning.height * mean)


def _tokenizer(settings: Settings) -> tuple[list[str], PreTrainedTokenizerBase]:
    """The base's own, or the embedded one where that is not to be had, which says so."""
    from epicrisis.llm.base_model import load_tokenizer
    from epicrisis.llm.embedded import EMBEDDED
    from epicrisis.training.device import make_accelerator

    accelerator = make_accelerator(settings.training)
    try:
        return [], load_tokenizer(settings.model, accelerator, settings.lora.new_code_tokens)
    except OSError:
        note = f"the tokenizer of {settings.model.model_name} is not here: tokens are counted with the embedded one"
        return [note], load_tokenizer(settings.model.model_copy(update={"model_name": EMBEDDED[0]}), accelerator)


def _memory(settings: Settings, config: PreTrainedConfig, device: torch.device) -> str:
    """One line: what a process will need at its peak, of what, and whether this machine has it."""
    from epicrisis.llm.memory import GPU_RUNTIME, Shape, memory_of

    if device.type == "cuda":
        free, runtime, kind = torch.cuda.mem_get_info(device)[0] + GPU_RUNTIME, GPU_RUNTIME, "GPU memory"
    else:
        runtime, kind = float(psutil.Process().memory_info().rss), "RAM"
        free = psutil.virtual_memory().available + runtime
    memory = memory_of(Shape.of(config), settings, runtime=runtime)
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in vars(memory).items() if size >= 5e6)
    told = f"memory: about {memory.total / 1e9:.2f} GB of {free / 1e9:.2f} GB free {kind} in each process ({parts})"
    if settings.training.batch_size == "auto":
        told += ", with one sequence at once"
    if memory.total > free:
        return f"{told}: it does NOT fit; {_remedy(settings)}"
    return f"{told}: it fits" + (", narrowly" if memory.total > 0.8 * free else "")


def _remedy(settings: Settings) -> str:
    training = settings.training
    if not training.gradient_checkpointing:
        return "set training.gradient_checkpointing: true"
    if not training.load_in_4bit:
        return "set training.load_in_4bit: true"
    if training.batch_size != 1:
        return "lower training.batch_size"
    return "lower model.max_length, or take a smaller base"


def _time(settings: Settings, config: PreTrainedConfig, device: torch.device, work: _Work) -> str:
    """One line: how long the run will take here in one process, and how that is known."""
    from epicrisis.llm.forecast import KEPT, PROBED_WEIGHTS, flop_per_token, matmul_speed, seconds_per_token
    from epicrisis.llm.memory import Shape
    from epicrisis.training.device import compute_dtype

    shape, training = Shape.of(config), settings.training
    if shape.weights <= PROBED_WEIGHTS:
        each, how = seconds_per_token(settings, config, device), "timed on two batches of an untrained base"
    else:
        flop = flop_per_token(shape, settings.model.max_length, checkpointing=training.gradient_checkpointing)
        speed = matmul_speed(device, compute_dtype(training))
        each = flop / (KEPT * speed)
        how = f"reckoned: {flop:.1e} FLOP per token at {KEPT:.0%} of this machine's {speed / 1e12:.2f} TFLOP/s"
    n_evaluations = -(-work.plan.n_steps // (training.eval_steps or work.plan.steps_per_epoch))
    forward = 0.25 if training.gradient_checkpointing else 0.33  # of a training step, which an evaluation is
    seconds = each * (work.train_tokens + forward * n_evaluations * work.tuning_tokens)
    return f"time: about {duration(seconds)} for training and evaluation ({how}; {1 / each:,.0f} tokens/s)"
