"""The embedded default bases: a small Llama and a small Mistral that can read, made on the spot and cached.

They stand in for hub models where there is no network. Tokenizer and weights come from the shipped lookup
terms and from a synthetic population of other subjects than any cohort's, told up to their prediction time,
so that the base has seen the language of narratives but no outcome.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from epicrisis.corpus.tiny_population import build_alone, new_folder, population_texts, prepare_population, recipe
from epicrisis.corpus.tokens import prompt_text
from epicrisis.llm.heads import NextToken
from epicrisis.llm.pretrain import NarrativeLesson, token_loss
from epicrisis.llm.tiny_models import SHAPE, VOCABULARY, new_model, train_tokenizer
from epicrisis.settings.schema import TrainingSettings
from epicrisis.tracking.progress import say
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.device import make_accelerator
from epicrisis.training.loop import train

EMBEDDED = ("epicrisis/tiny-llama", "epicrisis/tiny-mistral")

WINDOW = 512
REVISION = 2
"""Counts up with every change that makes training end in other weights, so that no older ones are used."""
TRAINING: dict[str, Any] = {
    "epochs": 1.0,
    "batch_size": 2,
    "learning_rate": 3e-3,
    "warmup_ratio": 0.1,
    "logging_steps": 50,
}
QUESTION = "Will the outcome happen?"
WORDS = ("no", "yes", "none", "first", "second", "third", "fourth")


def embedded_tokenizer(cache_dir: Path) -> Path:
    """The folder of the embedded bases' tokenizer, built there on first use."""
    target = cache_dir / f"tokenizer-{_recipe()}"
    if not target.is_dir():
        say("embedded base: building its tokenizer from the lookup terms and a synthetic population (once)")
        with new_folder(target) as partial:
            texts = [prompt_text(QUESTION) + f" {word}" for word in WORDS] * 50
            train_tokenizer(texts + population_texts(partial / "population")).save_pretrained(partial)
            shutil.rmtree(partial / "population")
    return target


def embedded_base(name: str, cache_dir: Path) -> Path:
    """The folder of an embedded base (weights and tokenizer), trained in full there on first use."""
    architecture = name.rpartition("-")[2]
    target = cache_dir / f"tiny-{architecture}-{_recipe()}"
    if not target.is_dir() and PartialState().num_processes > 1:
        build_alone("epicrisis.llm.embedded", "embedded_base", name, cache_dir)
    if not target.is_dir():
        tokenizer_dir = embedded_tokenizer(cache_dir)
        say(f"embedded base: training {name} in full on another synthetic population (once, then cached)")
        say("embedded base: it reads narratives and nothing else; for real work name a hub model")
        with new_folder(target) as partial:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
            model = _train_base(architecture, tokenizer, partial / "work")
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            shutil.rmtree(partial / "work")
    return target


def _train_base(architecture: str, tokenizer: PreTrainedTokenizerFast, work: Path) -> PreTrainedModel:
    prepared = prepare_population(tokenizer, work, WINDOW - 2)
    training = TrainingSettings(output_dir=work, keep_best=False, **TRAINING)
    lesson = NarrativeLesson(prepared.tokens("train"), tokenizer, WINDOW)
    tuning = NarrativeLesson(prepared.tokens("tuning"), tokenizer, WINDOW)
    accelerator = make_accelerator(training)
    model = new_model(architecture, tokenizer).to(accelerator.device)
    train(
        NextToken(model),
        lesson,
        training,
        accelerator,
        Checkpoints(work / "checkpoints", keep=1, accelerator=accelerator),
        title="embedded base",
        evaluate=lambda module: token_loss(module, tuning, TRAINING["batch_size"], accelerator),
        log=lambda **_: None,
    )
    return model.cpu()


def _recipe() -> str:
    """A hash of all that the embedded bases are made of; REVISION stands for how training goes about it."""
    return recipe(VOCABULARY, WINDOW, SHAPE, TRAINING, QUESTION, WORDS, REVISION)
