"""The arm `llm`: an adapter, alone or over a clinical one, that answers a question about each narrative."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from epicrisis.cohort import History
from epicrisis.corpus.prepare import KEYS
from epicrisis.corpus.run_narratives import (
    NARRATOR,
    Run,
    check_choice,
    check_telling,
    keys_of,
    prepare_once,
    run_narrator,
)
from epicrisis.corpus.telling import Telling
from epicrisis.llm.adalora import RankSharing, sharing_ranks
from epicrisis.llm.adapters import (
    CLINICAL,
    DOWNSTREAM,
    adapter_directory,
    adapters_in,
    load_stacked,
    save_adapter,
    stack,
)
from epicrisis.llm.answering import Answering, head_for, layout_for, lesson_for, prompt_for
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base_model import load_base, load_tokenizer
from epicrisis.llm.batch_size import inference_batch_size, settle_batch_size
from epicrisis.llm.classify import tuning_metrics
from epicrisis.llm.fuse import load_fused, new_tokens_file
from epicrisis.llm.heads import NextToken, ScoreHead
from epicrisis.llm.pretrain import NarrativeLesson, packing_text, token_loss, whole_records
from epicrisis.narrative import Lookups, Narrator
from epicrisis.settings import Settings, refuse
from epicrisis.tracking.progress import say
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.device import make_accelerator
from epicrisis.training.lessons import Lesson
from epicrisis.training.loop import make_plan, train
from epicrisis.training.outcome import row_predictions


@dataclass
class FittedLlm:
    """A classifier: adapters on a base, a head, and how histories are told to it."""

    settings: Settings
    telling: Telling
    module: nn.Module
    accelerator: Accelerator
    answering: Answering
    directory: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """The task's classes, in the order of the probabilities; of a time to an event its risk and horizons."""
        return self.answering.classes

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """float64 [n_rows, n_columns] in the order of `rows` and of `classes`."""
        prepared = prepare_once(self.settings, rows, history, self.telling, self.directory / "judged", self.accelerator)
        settings, ordered = self.settings, []
        layout, size = layout_for(self.module), inference_batch_size(settings.training)
        for split in sorted(rows["split"].unique()):
            tokens = prepared.tokens(split)
            lesson = lesson_for(tokens, self.telling.tokenizer, self.answering, settings.model.max_length, layout)
            scores = row_predictions(self.module, lesson, size, self.accelerator)
            ordered.append(keys_of(tokens).with_columns(scores=pl.Series(scores.tolist())))
        joined = rows.select(KEYS).join(pl.concat(ordered), on=KEYS, how="left", maintain_order="left")
        return np.asarray(joined["scores"].to_list(), dtype=np.float64)

    def save(self, directory: Path) -> None:
        """Adapters, head and what the narratives were told with; safetensors and JSON only."""
        model: Any = self.module.model
        for name in model.peft_config if isinstance(model, PeftModel) else ():
            save_adapter(model, name, directory / "adapters" / name, self.settings.model.model_name)
        if isinstance(self.module, ScoreHead):
            weights = {name: tensor.contiguous() for name, tensor in self.module.score.state_dict().items()}
            save_file(weights, directory / "adapters" / "score.safetensors")
        self.telling.narrator.save(directory / "adapters" / NARRATOR)
        told = {**self.answering.saved(), **self.telling.inputs()}
        (directory / "adapters" / "narrative.json").write_text(json.dumps(told, indent=2))


class LlmArm:
    """`arm: llm`, stage classify."""

    def __init__(self, settings: Settings, lookups: Lookups):
        self._settings = settings
        self._lookups = lookups

    def fit(self, rows: pl.DataFrame, history: History, run: Run) -> FittedLlm:
        """Train on the train rows, watching tuning. `rows` holds both splits."""
        settings = self._settings
        accelerator = make_accelerator(settings.training)
        telling = telling_of_run(settings, self._lookups, rows, history, run.dir, accelerator)
        tokenizer = telling.tokenizer
        answering = Answering.of_task(settings, rows, tokenizer)
        module = _classifier(settings, tokenizer, answering, accelerator)
        prepared = prepare_once(settings, rows, history, telling, run.dir, accelerator)
        layout, length = layout_for(module), settings.model.max_length
        lessons = {
            split: lesson_for(prepared.tokens(split), tokenizer, answering, length, layout, rows)
            for split in ("train", "tuning")
        }
        size = inference_batch_size(settings.training)
        mass = settings.model.answer_mass

        def evaluate(module: nn.Module) -> dict[str, float]:
            return tuning_metrics(module, lessons["tuning"], size, accelerator, mass=mass)

        _learn(module, lessons["train"], settings, accelerator, run, evaluate)
        answering = answering.completed(module.eval(), lessons["train"], size, accelerator)
        return FittedLlm(settings, telling, module, accelerator, answering, run.dir)

    def load(self, directory: Path) -> FittedLlm:
        """A saved classifier, or what `model.fused` names in its place.

        InputError where narratives would be told otherwise than in training.
        """
        settings = self._settings
        accelerator = make_accelerator(settings.training)
        adapters = settings.model.fused or directory / "adapters"
        if not (adapters / "narrative.json").is_file():
            raise refuse(
                "model.fused", f"{adapters} was not fused from a finished run", "fuse one, without naming adapters"
            )
        narrator = Narrator.load(adapters / NARRATOR, self._lookups)
        check_choice(narrator, settings)
        tokens = new_tokens_file(directory / "adapters" / name for name in (CLINICAL, DOWNSTREAM))
        tokenizer = load_tokenizer(settings.model, accelerator, tokens)
        telling = telling_for(settings, narrator, self._lookups, tokenizer)
        told = json.loads((adapters / "narrative.json").read_text())
        check_telling(told, telling)
        if settings.model.fused is not None:
            model = load_fused(settings, settings.model.fused, accelerator)
        else:
            model = load_base(settings, accelerator, tokens)
            if adapters_in(adapters) or settings.lora.method != "none":
                model = load_stacked(model, adapters)
        answering = Answering.load(told, settings, tokenizer)
        module = head_for(settings, model, tokenizer, answering)
        if isinstance(module, ScoreHead):
            module.score.load_state_dict(load_file(adapters / "score.safetensors"))
        return FittedLlm(settings, telling, module.eval(), accelerator, answering, directory)


def pretrain(settings: Settings, lookups: Lookups, rows: pl.DataFrame, history: History, run: Run) -> dict[str, float]:
    """QLoRA continued pretraining on the rows' narratives; writes the clinical adapter.

    rows: one row per subject of the splits train and tuning. Returns loss and perplexity on tuning before and
    after, and how the train narratives were packed in the first epoch.
    """
    accelerator = make_accelerator(settings.training)
    telling = telling_of_run(settings, lookups, rows, history, run.dir, accelerator)
    base = load_base(settings, accelerator)
    backend = backend_for(settings.training.framework)
    model = backend.attach(base, CLINICAL, settings.lora, settings.training.seed)
    prepared = prepare_once(settings, rows, history, telling, run.dir, accelerator)
    length, repeat_header = settings.model.max_length, settings.narrative.repeat_header
    lesson, tuning = (
        NarrativeLesson(prepared.tokens(split), telling.tokenizer, length, repeat_header=repeat_header)
        for split in ("train", "tuning")
    )
    lesson.start_epoch(0, settings.training.seed)
    packing = lesson.packing()
    if accelerator.is_main_process:
        say(f"pretrain: {packing_text(packing)}")
    module = NextToken(model)
    batch_size = inference_batch_size(settings.training)

    def evaluate(module: nn.Module) -> dict[str, float]:
        return token_loss(module, tuning, batch_size, accelerator)

    before = evaluate(module.eval())
    with sharing_ranks(model, make_plan(lesson.fewest_items, settings.training).n_steps) as sharing:
        _learn(module, lesson, settings, accelerator, run, evaluate, sharing)
    after = evaluate(module.eval())
    if accelerator.is_main_process:
        directory = run.dir / "adapters" / CLINICAL
        save_adapter(model, CLINICAL, directory, settings.model.model_name)
        telling.narrator.save(directory / NARRATOR)
        (directory / "narrative.json").write_text(json.dumps(telling.inputs(), indent=2))
    accelerator.wait_for_everyone()
    return {
        "loss_before": before["loss"],
        "perplexity_before": before["perplexity"],
        "loss": after["loss"],
        "perplexity": after["perplexity"],
        **packing,
    }


def _learn(
    module: nn.Module,
    lesson: Lesson,
    settings: Settings,
    accelerator: Accelerator,
    run: Run,
    evaluate: Callable[[nn.Module], dict[str, float]],
    sharing: RankSharing | None = None,
) -> None:
    """Train as the settings say, in batches that fit, with checkpoints in the run's folder."""
    stage, is_main = str(settings.stage), accelerator.is_main_process
    checkpoints = Checkpoints(run.dir / "checkpoints", settings.training.save_total_limit, accelerator, sharing)

    def tell(text: str) -> None:
        if is_main:
            say(f"{stage}: {text}")

    training = settle_batch_size(module, lesson, settings.training, accelerator, checkpoints, tell)
    log = run.log if is_main else lambda **_: None
    log(batch_size=training.batch_size)
    train(module, lesson, training, accelerator, checkpoints, title=stage, evaluate=evaluate, log=log)


def telling_of_run(
    settings: Settings, lookups: Lookups, rows: pl.DataFrame, history: History, directory: Path, acc: Accelerator
) -> Telling:
    """How a run with these settings tells the histories of its rows; whole records where it is to keep them."""
    narrator = _narrator_once(settings, lookups, rows, history, directory, acc)
    tokenizer = load_tokenizer(settings.model, acc, settings.lora.new_code_tokens)
    telling = telling_for(settings, narrator, lookups, tokenizer)
    return whole_records(telling) if settings.narrative.records == "whole" else telling


def telling_for(
    settings: Settings, narrator: Narrator, lookups: Lookups, tokenizer: PreTrainedTokenizerBase
) -> Telling:
    """How this run tells histories; the same budget in every stage, so that the ids are the same too."""
    room = settings.model.max_length - prompt_for(settings, tokenizer).n_tokens - 2
    if room < 16:
        raise refuse(
            "model.max_length",
            f"{settings.model.max_length} leaves no room for a narrative beside the question",
            "make it larger, or the question shorter",
        )
    budget = settings.narrative.max_tokens or room
    return Telling(narrator, lookups, min(budget, room), tokenizer)


def narrator_for(
    settings: Settings, lookups: Lookups, rows: pl.DataFrame, history: History, directory: Path
) -> Narrator:
    """The clinical adapter's narrator where there is one, so that both adapters read one language; else the rows' own.

    rows: with a column split, of which train alone is looked at. directory: where it is kept once it is fitted.
    """
    clinical = settings.model.clinical_adapter
    earlier = None if clinical is None else adapter_directory(clinical) / NARRATOR
    return run_narrator(settings, lookups, rows, history, directory, earlier)


def _narrator_once(
    settings: Settings,
    lookups: Lookups,
    rows: pl.DataFrame,
    history: History,
    directory: Path,
    accelerator: Accelerator,
) -> Narrator:
    """The main process fits it, the others find it done."""
    with accelerator.main_process_first():
        return narrator_for(settings, lookups, rows, history, directory)


def _classifier(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, answering: Answering, accelerator: Accelerator
) -> nn.Module:
    base = load_base(settings, accelerator)
    seed = settings.training.seed
    model: nn.Module = base
    if settings.model.clinical_adapter is None and settings.lora.method != "none":
        model = backend_for(settings.training.framework).attach(base, DOWNSTREAM, settings.lora, seed)
    elif settings.model.clinical_adapter is not None:
        model = stack(
            base,
            settings.model.clinical_adapter,
            settings.lora,
            clinical_trainable=settings.model.clinical_trainable,
            seed=seed,
        )
    return head_for(settings, model, tokenizer, answering)
