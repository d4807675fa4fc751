"""What a classifier tells apart and how it is asked: classes, prompt, head, and the lessons it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import polars as pl
from accelerate import Accelerator
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
from epicrisis.training.outcome import Outcome, completed, load_outcome, outcome_for

KEYS = ["subject_id", "prediction_time"]


@dataclass(frozen=True)
class Answering:
    """outcome: what is told apart, or foretold, and how it is learnt; prompt: around narratives."""

    outcome: Outcome
    prompt: Prompt

    @property
    def kind(self) -> TaskKind:
        """The kind of task."""
        return self.outcome.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """What predictions are of: the classes, or of a time to an event its risk and horizons."""
        return self.outcome.columns

    @classmethod
    def of_task(cls, settings: Settings, rows: pl.DataFrame, tokenizer: PreTrainedTokenizerBase) -> Answering:
        """For the task of these rows (train and tuning); InputError where it cannot be answered as the settings say."""
        kind = kind_of_labels(rows)
        check_head(settings, kind, () if kind == "survival" else classes_of_labels(rows))
        return cls(outcome_for(settings, rows), prompt_for(settings, tokenizer))

    def completed(
        self, module: nn.Module, train: QuestionLesson, batch_size: int, accelerator: Accelerator
    ) -> Answering:
        """The same when all is learnt, with what is still to be fitted on the train rows (see `Outcome`)."""
        return replace(self, outcome=completed(module, train, batch_size, accelerator))

    def saved(self) -> dict[str, Any]:
        """As plain JSON, for `load`."""
        return {**self.outcome.saved(), "prompt": [list(self.prompt.before), list(self.prompt.after)]}

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
        return cls(load_outcome(saved, settings), prompt)


def prompt_for(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """The run's prompt: the same in training, scoring, generation and explanation."""
    model = settings.model
    return make_prompt(tokenizer, model.question, model.prompt, model.chat_template)


def check_head(settings: Settings, kind: TaskKind, classes: tuple[str, ...]) -> None:
    """Raise InputError for a head that cannot do this task."""
    model, names = settings.model, ", ".join(classes)
    if kind == "none":
        raise refuse("data.labels_dir", "holds no label that a model could answer", "give true or false, or words")
    if kind == "survival" and model.head == "label_tokens":
        what = "the labels are times to an event, and an answer in words tells classes apart"
        raise refuse("model.head", what, "set model.head: score, from which survival.head learns")
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
    """The module that gives the outcome's logits for packed batches."""
    if settings.model.head == "score":
        return ScoreHead(model, answering.outcome.n_outputs, settings.training.seed, settings.model.pooling)
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
        targets = answering.outcome.targets(labelled)
    return QuestionLesson(
        tokens, tokenizer, answering.prompt, max_length, targets, outcome=answering.outcome, layout=layout
    )
