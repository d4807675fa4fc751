"""Trains a small adapter in the processes that this script is launched with, under DeepSpeed.

Arguments: a base's folder, where to write, which of the cases. For each case the first process leaves the trained
weights of a run that was not interrupted (whole) and of one that was and went on (resumed), and what the first logged.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import AutoTokenizer

from epicrisis.corpus.tokens import encode_narratives
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base_model import load_base
from epicrisis.llm.heads import NextToken
from epicrisis.llm.pretrain import NarrativeLesson, token_loss
from epicrisis.settings import Settings, settings_from
from epicrisis.training.checkpoints import Checkpoints, trained_weights
from epicrisis.training.device import make_accelerator
from epicrisis.training.loop import train
from tests.llm.conftest import NARRATIVES

TRAINING = {
    "batch_size": 1,
    "effective_batch_size": 5,  # three micro-batches for one process, two and an empty one for the other
    "max_steps": 4,
    "epochs": 9,
    "save_steps": 2,
    "eval_steps": 2,
    "logging_steps": 1,
    "warmup_steps": 1,
    "learning_rate": 1e-2,
    "max_grad_norm": 0.5,
}
CASES: dict[str, dict[str, Any]] = {
    "4bit": {"bf16": False, "load_in_4bit": True},
    "bfloat16": {"bf16": True, "load_in_4bit": False},
    "checkpointed": {"bf16": False, "load_in_4bit": False, "gradient_checkpointing": True},
    "dropout": {"bf16": False, "load_in_4bit": False},
}


def settings_of(base_dir: Path, folder: Path, case: str, resume: bool = False) -> Settings:
    tree = {
        "model": {"model_name": str(base_dir), "max_length": 128},
        "lora": {"r": 3, "lora_dropout": 0.2 if case == "dropout" else 0.0},
        "training": {**TRAINING, **CASES[case], "output_dir": str(folder), "resume": resume},
    }
    return settings_from(tree, check_files=False)


def learn(
    settings: Settings, accelerator: Accelerator, *, stop_at: int | None = None
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], bool]:
    """The trained weights, what was logged, and whether the base's weights were in pieces while training."""
    base_dir, folder = Path(settings.model.model_name), Path(settings.training.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    ids = encode_narratives(tokenizer, NARRATIVES * 8)
    tokens = datasets.Dataset.from_dict({"input_ids": ids, "n_tokens": [len(i) for i in ids]})
    module = NextToken(backend_for("peft").attach(load_base(settings, accelerator), "clinical", settings.lora, 0))
    untouched = {name: set(vars(parameter)) for name, parameter in module.named_parameters()}
    lesson = NarrativeLesson(tokens, tokenizer, 128)
    logged, in_pieces = [], []

    def log(**fields: Any) -> None:
        logged.append(fields)
        layers = [p for name, p in module.named_parameters() if name.endswith("base_layer.weight")]
        in_pieces.append(all(getattr(p, "ds_numel", 0) > p.numel() for p in layers))
        if fields["step"] == stop_at and "train/loss" in fields:
            raise KeyboardInterrupt

    train(
        *(module, lesson, settings.training, accelerator, Checkpoints(folder, 2, accelerator)),
        title="test",
        evaluate=lambda m: token_loss(m, lesson, 2, accelerator),
        log=log,
    )
    assert {name: set(vars(parameter)) for name, parameter in module.named_parameters()} == untouched
    return trained_weights(module), logged, any(in_pieces)


def main(base_dir: Path, folder: Path, cases: list[str]) -> None:
    accelerator = make_accelerator(settings_of(base_dir, folder, cases[0]).training)
    plugin = accelerator.state.deepspeed_plugin
    assert accelerator.num_processes == 2
    # Weights as small as these would be left whole.
    plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 100
    for case in cases:
        place = folder / case
        whole, logged, in_pieces = learn(settings_of(base_dir, place / "a", case), accelerator)
        assert in_pieces == (plugin.zero_stage == 3)
        with contextlib.suppress(KeyboardInterrupt):
            learn(settings_of(base_dir, place / "b", case), accelerator, stop_at=3)
        accelerator.free_memory()
        resumed, *_ = learn(settings_of(base_dir, place / "b", case, resume=True), accelerator)
        if accelerator.is_main_process:
            save_file(whole, place / "whole.safetensors")
            save_file(resumed, place / "resumed.safetensors")
            (place / "logged.json").write_text(json.dumps(logged))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
