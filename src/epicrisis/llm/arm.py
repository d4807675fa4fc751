"""The arm `llm`: an adapter, alone or over a clinical one, that answers a question about each narrative."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from epicrisis.cohort import History
from epicrisis.corpus.prepare import KEYS, Prepared, Telling, prepare
from epicrisis.corpus.tokens import answer_token_ids, encode_prompt
from epicrisis.llm.adapters import (
    CLINICAL,
    DOWNSTREAM,
    load_stacked,
    save_adapter,
    stack,
)
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base import load_base, load_tokenizer
from epicrisis.llm.checkpoints import Checkpoints
from epicrisis.llm.classify import QuestionLesson, class_probabilities, tuning_metrics
from epicrisis.llm.device import make_accelerator
from epicrisis.llm.heads import LabelTokens, NextToken, ScoreHead
from epicrisis.llm.loop import train
from epicrisis.llm.pretrain import NarrativeLesson, token_loss
from epicrisis.narrative import Lookups, get_style
from epicrisis.settings import Settings, refuse


class Run(Protocol):
    """What an arm needs of a run directory."""

    @property
    def dir(self) -> Path:
        """The run's folder."""
        ...

    def log(self, **fields: Any) -> None:
        """Append one line to the run's history."""
        ...


@dataclass
class FittedLlm:
    """A classifier: adapters on a base, a head, and how histories are told to it."""

    settings: Settings
    telling: Telling
    module: nn.Module
    accelerator: Accelerator
    classes: tuple[Any, ...]
    directory: Path

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """Probabilities [n_rows, n_classes] in the order of `rows` and of the task's classes."""
        prepared = _prepare_once(rows, history, self.telling, self.directory / "judged", self.accelerator)
        ordered = []
        for split in sorted(rows["split"].unique()):
            tokens = prepared.tokens(split)
            lesson = QuestionLesson(
                tokens, self.telling.tokenizer, self.settings.model.question, self.settings.model.max_length
            )
            scores = class_probabilities(
                self.module, lesson, len(self.classes), self.settings.training.batch_size, self.accelerator
            )
            ordered.append(_keys(tokens).with_columns(scores=pl.Series(scores.tolist())))
        joined = rows.select(KEYS).join(pl.concat(ordered), on=KEYS, how="left", maintain_order="left")
        return np.asarray(joined["scores"].to_list(), dtype=np.float64)

    def save(self, directory: Path) -> None:
        """Adapters, head and what the narratives were told with; safetensors and JSON only."""
        model = self.module.model
        assert isinstance(model, PeftModel)
        for name in model.peft_config:
            save_adapter(model, name, directory / "adapters" / name, self.settings.model.model_name)
        if isinstance(self.module, ScoreHead):
            weights = {name: tensor.contiguous() for name, tensor in self.module.score.state_dict().items()}
            save_file(weights, directory / "adapters" / "score.safetensors")
        told = {"classes": list(self.classes), **self.telling.inputs()}
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
        telling = telling_for(settings, self._lookups, load_tokenizer(settings.model, accelerator))
        classes = _classes(settings, rows)
        module = _classifier(settings, telling.tokenizer, accelerator)
        prepared = _prepare_once(rows, history, telling, run.dir, accelerator)
        lessons = {split: _lesson(prepared, rows, split, classes, telling, settings) for split in ("train", "tuning")}
        batch_size = settings.training.batch_size
        train(
            module,
            lessons["train"],
            settings.training,
            accelerator,
            Checkpoints(run.dir / "checkpoints", settings.training.save_total_limit, accelerator),
            title="classify",
            evaluate=lambda m: tuning_metrics(m, lessons["tuning"], batch_size, accelerator),
            log=run.log if accelerator.is_main_process else lambda **_: None,
        )
        module.eval()
        return FittedLlm(settings, telling, module, accelerator, classes, run.dir)

    def load(self, directory: Path) -> FittedLlm:
        """A saved classifier; InputError where narratives would be told otherwise than in training."""
        settings = self._settings
        accelerator = make_accelerator(settings.training)
        telling = telling_for(settings, self._lookups, load_tokenizer(settings.model, accelerator))
        told = json.loads((directory / "adapters" / "narrative.json").read_text())
        check_telling(told, telling)
        model = load_stacked(load_base(settings, accelerator), directory / "adapters")
        module = _head(settings, model, telling.tokenizer)
        if isinstance(module, ScoreHead):
            module.score.load_state_dict(load_file(directory / "adapters" / "score.safetensors"))
        return FittedLlm(settings, telling, module.eval(), accelerator, tuple(told["classes"]), directory)


def pretrain(settings: Settings, lookups: Lookups, rows: pl.DataFrame, history: History, run: Run) -> dict[str, float]:
    """QLoRA continued pretraining on the rows' narratives; writes the clinical adapter, returns tuning metrics.

    rows: one row per subject of the splits train and tuning.
    """
    accelerator = make_accelerator(settings.training)
    telling = telling_for(settings, lookups, load_tokenizer(settings.model, accelerator))
    base = load_base(settings, accelerator)
    backend = backend_for(settings.training.framework)
    model = backend.attach(base, CLINICAL, settings.lora, settings.training.seed)
    prepared = _prepare_once(rows, history, telling, run.dir, accelerator)
    length = settings.model.max_length
    lesson, tuning = (
        NarrativeLesson(prepared.tokens(split), telling.tokenizer, length) for split in ("train", "tuning")
    )
    module = NextToken(model)
    batch_size = settings.training.batch_size

    def evaluate(module: nn.Module) -> dict[str, float]:
        return token_loss(module, tuning, batch_size, accelerator)

    before = evaluate(module.eval())
    train(
        module,
        lesson,
        settings.training,
        accelerator,
        Checkpoints(run.dir / "checkpoints", settings.training.save_total_limit, accelerator),
        title="pretrain",
        evaluate=evaluate,
        log=run.log if accelerator.is_main_process else lambda **_: None,
    )
    after = evaluate(module.eval())
    if accelerator.is_main_process:
        directory = run.dir / "adapters" / CLINICAL
        save_adapter(model, CLINICAL, directory, settings.model.model_name)
        (directory / "narrative.json").write_text(json.dumps(telling.inputs(), indent=2))
    accelerator.wait_for_everyone()
    return {
        "loss_before": before["loss"],
        "perplexity_before": before["perplexity"],
        "loss": after["loss"],
        "perplexity": after["perplexity"],
        "useful_token_share": lesson.useful_share,
    }


def telling_for(settings: Settings, lookups: Lookups, tokenizer: PreTrainedTokenizerBase) -> Telling:
    """How this run tells histories; the same budget in every stage, so that the ids are the same too."""
    room = settings.model.max_length - len(encode_prompt(tokenizer, settings.model.question)) - 2
    if room < 16:
        raise refuse(
            "model.max_length",
            f"{settings.model.max_length} leaves no room for a narrative beside the question",
            "make it larger, or the question shorter",
        )
    budget = settings.narrative.max_tokens or room
    return Telling(lookups, get_style(settings.narrative.style), settings.narrative.dates, min(budget, room), tokenizer)


def check_telling(told: dict[str, Any], telling: Telling) -> None:
    """Raise InputError where a checkpoint's narratives were told in another style or by another tokenizer."""
    now = telling.inputs()
    changed = [key for key in ("style", "dates", "tokenizer") if told.get(key) != now[key]]
    if changed:
        raise refuse(
            f"narrative ({', '.join(changed)})",
            "is not what this checkpoint was trained with",
            "use the narrative section and the base of the run's config.yaml",
        )


def _classifier(settings: Settings, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator) -> nn.Module:
    base = load_base(settings, accelerator)
    seed = settings.training.seed
    if settings.model.clinical_adapter is None:
        model = backend_for(settings.training.framework).attach(base, DOWNSTREAM, settings.lora, seed)
    else:
        model = stack(
            base,
            settings.model.clinical_adapter,
            settings.lora,
            clinical_trainable=settings.model.clinical_trainable,
            seed=seed,
        )
    return _head(settings, model, tokenizer)


def _head(settings: Settings, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    answers = settings.model.answers
    if settings.model.head == "score":
        return ScoreHead(model, len(answers), settings.training.seed, settings.model.pooling)
    return LabelTokens(model, answer_token_ids(tokenizer, settings.model.question, answers))


def _classes(settings: Settings, rows: pl.DataFrame) -> tuple[Any, ...]:
    if rows.schema["label"] != pl.Boolean:
        raise refuse("data.labels_dir", "this task is not binary", "the arm llm answers yes-or-no tasks")
    if len(settings.model.answers) != 2:
        raise refuse("model.answers", f"{len(settings.model.answers)} answers for 2 classes", "give [no, yes]")
    return (False, True)


def _lesson(
    prepared: Prepared,
    rows: pl.DataFrame,
    split: str,
    classes: tuple[Any, ...],
    telling: Telling,
    settings: Settings,
) -> QuestionLesson:
    tokens = prepared.tokens(split)
    labels = _keys(tokens).join(rows, on=KEYS, how="left", maintain_order="left")["label"]
    index = np.array([classes.index(label) for label in labels], dtype=np.int64)
    return QuestionLesson(
        tokens, telling.tokenizer, settings.model.question, settings.model.max_length, index, len(classes)
    )


def _keys(tokens: Any) -> pl.DataFrame:
    return pl.from_arrow(tokens.select_columns(KEYS).with_format("arrow")[:])  # type: ignore[return-value]


def _prepare_once(
    rows: pl.DataFrame, history: History, telling: Telling, directory: Path, accelerator: Accelerator
) -> Prepared:
    """The main process prepares; the others find it done."""
    with accelerator.main_process_first():
        return prepare(rows, history, telling, directory)
