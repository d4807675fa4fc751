"""What a classifier tells apart and how it is asked: classes, prompt, head, and the lessons it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import polars as pl
from torch import nn
from transformers import PreTrainedTokenizerBase

from epicrisis.cohort.task import TaskKind, classes_of_labels, kind_of_labels
from epicrisis.corpus.prompt import Prompt, answer_sequences, make_prompt
from epicrisis.llm.adapters import causal_model
from epicrisis.llm.attention import attention_weight, documents_are_apart
from epicrisis.llm.classify import Layout, QuestionLesson
from epicrisis.llm.heads import LabelTokens, ScoreHead
from epicrisis.llm.trie import none_begins_another
from epicrisis.settings import Settings, refuse
from epicrisis.training.class_losses import fitted_weights, targets_of
from epicrisis.training.class_weights import ClassWeights

KEYS = ["subject_id", "prediction_time"]


@dataclass(frozen=True)
class Answering:
    """classes: in the order of the probabilities; weights: what they weigh in the loss; prompt: around narratives."""

    kind: TaskKind
    classes: tuple[str, ...]
    weights: ClassWeights
    prompt: Prompt

    @classmethod
    def of_task(cls, settings: Settings, rows: pl.DataFrame, tokenizer: PreTrainedTokenizerBase) -> Answering:
        """For the task of these rows (train and tuning); InputError where it cannot be answered as the settings say."""
        kind, classes = kind_of_labels(rows), classes_of_labels(rows)
        check_head(settings, kind, classes)
        train = rows.filter(pl.col("split") == "train")
        weights = fitted_weights(settings.training.class_weights, train, kind, classes)
        return cls(kind, classes, weights, prompt_for(settings, tokenizer))

    def saved(self) -> dict[str, Any]:
        """As plain JSON, for `load`."""
        return {
            "kind": self.kind,
            "classes": list(self.classes),
            "class_weights": self.weights.values.tolist(),
            "prompt": [list(self.prompt.before), list(self.prompt.after)],
        }

    @classmethod
    def load(cls, saved: dict[str, Any], settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Answering:
        """What was saved; InputError where the settings would ask otherwise than in training."""
        prompt = prompt_for(settings, tokenizer)
        if saved["prompt"] != [list(prompt.before), list(prompt.after)]:
            raise refuse(
                "model.prompt, model.question",
                "is not what this checkpoint was trained with",
                "use the model section of the run's config.yaml",
            )
        weights = ClassWeights(np.asarray(saved["class_weights"], dtype=np.float64))
        return cls(saved["kind"], tuple(saved["classes"]), weights, prompt)


def prompt_for(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """The run's prompt: the same in training, scoring, generation and explanation."""
    model = settings.model
    return make_prompt(tokenizer, model.question, model.prompt, model.chat_template)


def check_head(settings: Settings, kind: TaskKind, classes: tuple[str, ...]) -> None:
    """Raise InputError for a head that cannot do this task."""
    model, names = settings.model, ", ".join(classes)
    if kind == "none":
        raise refuse("data.labels_dir", "holds no label that a model could answer", "give true or false, or words")
    if kind == "multilabel" and model.head == "label_tokens":
        raise refuse(
            "model.head",
            f"one question has one answer, and a row can have several of the {len(classes)} labels",
            "set model.head: score, which gives each label a probability of its own from one reading",
        )
    if model.head == "label_tokens" and len(model.answers) != len(classes):
        what = f"{len(model.answers)} answers for the {len(classes)} classes {names}"
        raise refuse("model.answers", what, "give one word for each, in this order, or set model.head: score")


def head_for(
    settings: Settings, model: nn.Module, tokenizer: PreTrainedTokenizerBase, answering: Answering
) -> nn.Module:
    """The module that gives class logits for packed batches."""
    if settings.model.head == "score":
        return ScoreHead(model, len(answering.classes), settings.training.seed, settings.model.pooling)
    return LabelTokens(model, written_answers(tokenizer, answering.prompt, settings.model.answers))


def written_answers(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answers: Sequence[str]) -> list[list[int]]:
    """Each answer's token ids as they are scored and written after the prompt, with EOS where another goes on from it.

    Raises InputError for an answer that would change how the prompt before it is tokenised.
    """
    return none_begins_another(answer_sequences(tokenizer, prompt, answers), tokenizer.eos_token_id)


def layout_for(module: nn.Module) -> Layout:
    """Several documents in a row where a classifier's base keeps them apart, else each in a row of its own."""
    base: Any = causal_model(module.model)  # type: ignore[arg-type]  # every head holds its model so
    return Layout(documents_are_apart(base), attention_weight(base))


def lesson_for(
    tokens: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    answering: Answering,
    max_length: int,
    layout: Layout,
    rows: pl.DataFrame | None = None,
) -> QuestionLesson:
    """What is learnt from, or only predicted for, prepared narratives. rows: with their labels."""
    targets = None
    if rows is not None:
        keys: Any = pl.from_arrow(tokens.select_columns(KEYS).with_format("arrow")[:])
        labelled = keys.join(rows, on=KEYS, how="left", maintain_order="left")
        targets = targets_of(labelled, answering.kind, answering.classes)
    n_classes = len(answering.classes)
    return QuestionLesson(
        tokens, tokenizer, answering.prompt, max_length, targets, n_classes, weights=answering.weights, layout=layout
    )
