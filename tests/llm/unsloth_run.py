"""Everything that a language model of this project does, done with one framework, and every number of it kept.

Unsloth changes transformers, TRL and the environment when it is imported, so that this is also a script, for a
process of its own. Argument: JSON of what `run` takes.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import torch

from epicrisis.corpus.packing import pack
from epicrisis.corpus.telling import Telling
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.llm.adalora import sharing_ranks
from epicrisis.llm.adapters import CLINICAL, DOWNSTREAM, load_stacked, save_adapter, stack
from epicrisis.llm.answering import Answering, head_for, prompt_for
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base_model import load_base, load_tokenizer
from epicrisis.llm.classify import QuestionLesson
from epicrisis.llm.cross_entropy import OutputLayer, summed_cross_entropy
from epicrisis.llm.fuse import fuse, load_fused, logits_on_random_tokens, new_tokens_file
from epicrisis.llm.generate import Author, answer, continue_on, decoding_of
from epicrisis.llm.heads import NextToken, hidden_states
from epicrisis.llm.pretrain import NarrativeLesson
from epicrisis.settings import Settings, settings_from
from epicrisis.training.checkpoints import Checkpoints, trained_weights
from epicrisis.training.class_weights import ClassWeights
from epicrisis.training.device import make_accelerator
from epicrisis.training.loop import train
from epicrisis.training.outcome import ClassOutcome
from tests.llm.conftest import NARRATIVES, QUESTION

N_STEPS = 5
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
TRAINING = {
    "bf16": False,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "epochs": N_STEPS,
    "max_steps": N_STEPS,
    "logging_steps": 1,
    "save_steps": 2,
    "keep_best": False,
}
PRETRAINED: dict[str, dict[str, Any]] = {
    "nf4": {},
    "mistral": {"model": {"model_name": "mistral"}},
    "not quantised": {"training": {"load_in_4bit": False}},
    "bfloat16": {"training": {"bf16": True}},
    "rslora": {"lora": {"use_rslora": True}},
    "dora": {"lora": {"use_dora": True}},
    "gaussian": {"lora": {"init_lora_weights": "gaussian"}},
    "loftq": {"lora": {"init_lora_weights": "loftq"}},
    "embeddings and head": {"lora": {"modules_to_train": ["embeddings", "head"]}},
    "new tokens": {"lora": {"new_code_tokens": "codes.csv"}},
    "adalora": {"lora": {"method": "adalora", "initial_r": 6}},
    "prefix": {"lora": {"method": "prefix", "virtual_tokens": 3}},
    "prompt": {"lora": {"method": "prompt", "virtual_tokens": 3}},
    "p_tuning": {"lora": {"method": "p_tuning", "virtual_tokens": 3, "encoder_hidden_size": 16}},
    "gradient checkpointing": {"training": {"gradient_checkpointing": True}},
    "eager attention": {"model": {"attn_implementation": "eager"}},
    "adamw_8bit": {"training": {"optimizer": "adamw_8bit"}},
}
CLASSIFIED: dict[str, dict[str, Any]] = {
    "label tokens": {},
    "answers that begin alike": {"model": {"answers": ["no", "no cough"]}},
    "score": {"model": {"head": "score"}},
    "score, mean pooling": {"model": {"head": "score", "pooling": "mean"}},
    "clinical trainable": {"model": {"clinical_trainable": True}},
    "head alone": {"model": {"head": "score"}, "lora": {"method": "none"}},
}
"""All over the adapter of the case nf4."""
ATTENTIONS = (("llama", "sdpa"), ("llama", "eager"), ("llama", "flex_attention"), ("mistral", "sdpa"))

Numbers = dict[str, Any]


def settings_of(framework: str, inputs: Mapping[str, str], stage: str, changes: Mapping[str, Any]) -> Settings:
    """The settings of a case; inputs: the bases' folders and the file of new tokens, by the names they have here."""
    tree: dict[str, Any] = {
        "arm": "llm",
        "stage": stage,
        "model": {"model_name": "llama", "max_length": 128, "question": QUESTION} | changes.get("model", {}),
        "lora": LORA | changes.get("lora", {}),
        "training": TRAINING | {"framework": framework} | changes.get("training", {}),
    }
    tree["model"]["model_name"] = inputs[tree["model"]["model_name"]]
    if "new_code_tokens" in tree["lora"]:
        tree["lora"]["new_code_tokens"] = inputs[tree["lora"]["new_code_tokens"]]
    return settings_from(tree, check_files=False)


def run(framework: str, inputs: Mapping[str, str], folder: str, reads: str | None = None) -> None:
    """All cases with one framework, into `folder`; reads: where the other one has left adapters, which are read too."""
    place = Path(folder)
    for name, changes in PRETRAINED.items():
        settings = settings_of(framework, inputs, "pretrain", changes)
        numbers, adapters = pretrain(settings, place / name), place / name
        if name == "nf4":
            numbers["resumed"] = _resumed(settings, place / name / "again")
        _keep(numbers | {"read": read(settings, adapters)}, place / name)
        if reads is not None:
            _keep({"read": read(settings, Path(reads) / name)}, place / name / "other")
    for name, changes in CLASSIFIED.items():
        model = {"clinical_adapter": str(place / "nf4" / CLINICAL)} | changes.get("model", {})
        settings = settings_of(framework, inputs, "classify", {**changes, "model": model})
        _keep(classify(settings, place / name), place / name)
    assert ("unsloth" in sys.modules) == (framework == "unsloth")
    settings = settings_of(framework, inputs, "classify", {})
    _keep(fused(settings, place / "label tokens" / "adapters", place / "fused" / "cat"), place / "fused")
    _keep(packed(framework, inputs), place / "packed")


def pretrain(settings: Settings, folder: Path) -> Numbers:
    """A short pretraining: losses step by step and what was learnt; the adapter is saved."""
    model, module, learnt = _pretrained(settings, folder / "checkpoints")
    save_adapter(model, CLINICAL, folder / CLINICAL, "test")
    return {**learnt, "weights": trained_weights(module)}


def _pretrained(settings: Settings, checkpoints: Path, stop_at: int | None = None) -> tuple[Any, NextToken, Numbers]:
    accelerator = make_accelerator(settings.training)
    tokenizer = load_tokenizer(settings.model, accelerator, settings.lora.new_code_tokens)
    base = load_base(settings, accelerator)
    model = backend_for(settings.training.framework).attach(base, CLINICAL, settings.lora, 0)
    module = NextToken(model)
    lesson = NarrativeLesson(_tokens(tokenizer), tokenizer, 64)
    with sharing_ranks(model, N_STEPS):
        learnt = _learn(module, lesson, settings, accelerator, checkpoints, stop_at)
    return model, module, learnt


def _resumed(settings: Settings, checkpoints: Path) -> dict[str, torch.Tensor]:
    """What a run that was broken off after its third step, and went on, has learnt."""
    with contextlib.suppress(KeyboardInterrupt):
        _pretrained(settings, checkpoints, stop_at=3)
    again = settings.model_copy(update={"training": settings.training.model_copy(update={"resume": True})})
    return trained_weights(_pretrained(again, checkpoints)[1])


def read(settings: Settings, folder: Path) -> torch.Tensor:
    """Logits of packed narratives from the adapter that lies in `folder`, on this framework's base."""
    accelerator = make_accelerator(settings.training)
    tokens = new_tokens_file([folder / CLINICAL])
    tokenizer = load_tokenizer(settings.model, accelerator, tokens)
    model = load_stacked(load_base(settings, accelerator, tokens), folder).eval()
    with torch.no_grad():
        states = hidden_states(model, _batch(tokenizer))
        return model.get_base_model().get_output_embeddings()(states).float()


def classify(settings: Settings, folder: Path) -> Numbers:
    """A short training of a downstream adapter over a clinical one, scores, and what the model then writes."""
    accelerator = make_accelerator(settings.training)
    tokenizer = load_tokenizer(settings.model, accelerator)
    told = settings.model
    assert told.clinical_adapter is not None
    model = stack(
        load_base(settings, accelerator),
        told.clinical_adapter,
        settings.lora,
        clinical_trainable=told.clinical_trainable,
        seed=0,
    )
    frozen = {name: weight.detach().clone() for name, weight in model.named_parameters() if CLINICAL in name}
    prompt = prompt_for(settings, tokenizer)
    module = head_for(
        settings, model, tokenizer, Answering(ClassOutcome("binary", ("no", "yes"), ClassWeights.even(2)), prompt)
    )
    lesson = QuestionLesson(_tokens(tokenizer), tokenizer, prompt, 128, np.array([0, 1, 0, 1, 0, 1]))
    learnt = _learn(module, lesson, settings, accelerator, folder / "checkpoints")
    for name in model.peft_config:
        save_adapter(model, name, folder / "adapters" / name, "test")
    with torch.no_grad():
        scores = module(lesson.collate(range(len(NARRATIVES))))
    moved = any(not torch.equal(weight, frozen[name]) for name, weight in model.named_parameters() if name in frozen)
    numbers = {**learnt, "weights": trained_weights(module), "scores": scores, "clinical moved": moved}
    return numbers | (written(settings, model, tokenizer, accelerator) if told.head == "label_tokens" else {})


def written(settings: Settings, model: Any, tokenizer: Any, accelerator: Any) -> Numbers:
    """Answers in words, and drawn continuations, of each narrative."""
    generation = {"n_samples": 2, "max_new_tokens": 12, "mode": "continue"}
    settings = settings.model_copy(update={"generation": settings.generation.model_copy(update=generation)})
    author = Author(settings, Telling(None, None, None, tokenizer), model, accelerator)  # type: ignore[arg-type]
    rows = pl.DataFrame({"subject_id": range(len(NARRATIVES))}).with_columns(
        prediction_time=pl.datetime(2020, 1, 1, time_unit="us")
    )
    answers = answer(author, rows, NARRATIVES)
    prompts = encode_narratives(tokenizer, NARRATIVES)
    continued = continue_on(author, prompts, rows, decoding_of(settings.generation, seed=3))
    return {
        "answers": answers["answer"].to_list(),
        "answers' probabilities": torch.tensor(answers["probabilities"].to_list()),
        "continuations": continued["continuation"].to_list(),
        "continuations' log-probabilities": continued["log_probability"].to_torch(),
    }


def fused(settings: Settings, adapters: Path, output: Path) -> Numbers:
    """Two adapters made into one, exactly; it is loaded anew."""
    accelerator = make_accelerator(settings.training)
    settings = settings.model_copy(update={"fuse": settings.fuse.model_copy(update={"mode": "cat"})})
    told = fuse(settings, {name: adapters / name for name in (CLINICAL, DOWNSTREAM)}, output, accelerator)
    return {"exact": told["exact"], "logits": logits_on_random_tokens(load_fused(settings, output, accelerator).eval())}


@torch.no_grad()
def packed(framework: str, inputs: Mapping[str, str]) -> Numbers:
    """Hidden states of narratives that share rows and of each alone, and the loss taken in pieces and whole."""
    numbers: Numbers = {}
    for base, attention in ATTENTIONS:
        changes = {"model": {"model_name": base, "attn_implementation": attention}}
        settings = settings_of(framework, inputs, "pretrain", changes)
        accelerator = make_accelerator(settings.training)
        tokenizer = load_tokenizer(settings.model, accelerator)
        batch = _batch(tokenizer)
        with torch.compiler.set_stance("force_eager"):  # a compiler would take a minute over flex attention
            model = load_base(settings, accelerator).eval()
            states = hidden_states(model, batch)
            alone = [
                hidden_states(model, pack([document], [[0]], tokenizer.pad_token_id))[0]
                for document in encode_narratives(tokenizer, NARRATIVES)
            ]
        found = {"together": states, "alone": alone, "attention": model.config._attn_implementation}
        numbers[f"{base}, {attention}"] = found | _losses_in_pieces(model, states, batch.input_ids)
    return numbers


def _losses_in_pieces(model: Any, states: torch.Tensor, ids: torch.Tensor) -> Numbers:
    """The same loss from all logits at once and from seven tokens' at a time."""
    layer = OutputLayer(model)
    hidden, targets = states[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    seven = 7 * model.config.vocab_size
    whole = torch.nn.functional.cross_entropy(layer(hidden), targets, reduction="sum")
    return {
        "loss whole": whole,
        "loss in pieces": summed_cross_entropy(layer, hidden, targets, seven),
        "is plain": layer.is_plain,
    }


def _learn(
    module: Any, lesson: Any, settings: Settings, accelerator: Any, folder: Path, stop_at: int | None = None
) -> Numbers:
    """What the short training of a head tells: the losses of its steps, and that of all rows before and after."""
    logged: list[float] = []

    def log(**fields: Any) -> None:
        if "train/loss" in fields:
            logged.append(fields["train/loss"])
            if fields["step"] == stop_at:
                raise KeyboardInterrupt

    checkpoints = Checkpoints(folder, 2, accelerator)
    options: dict[str, Any] = {"title": "test", "evaluate": lambda _: {"loss": 1.0}, "log": log}
    before = _loss(module, lesson)
    train(module, lesson, settings.training, accelerator, checkpoints, **options)
    return {"losses": torch.tensor(logged), "loss before": before, "loss after": _loss(module, lesson)}


@torch.no_grad()
def _loss(module: Any, lesson: Any) -> torch.Tensor:
    """Summed over everything that is learnt from."""
    items = list(range(lesson.n_items))
    return lesson.loss_sum(module.eval(), lesson.collate(items), items)


def _tokens(tokenizer: Any) -> datasets.Dataset:
    ids = encode_narratives(tokenizer, NARRATIVES)
    return datasets.Dataset.from_dict({"input_ids": ids, "n_tokens": [len(document) for document in ids]})


def _batch(tokenizer: Any) -> Any:
    return pack(encode_narratives(tokenizer, NARRATIVES), [[0, 1, 2], [3, 4, 5]], tokenizer.pad_token_id)


def _keep(numbers: Numbers, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(numbers, folder / "numbers.pt")


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
