"""Trains a small adapter in the processes that this script is launched with, its 4-bit base spread over them.

accelerate shards over GPUs only; here it is made to take CPU processes for them, so that the same code runs.
Arguments: a base's folder, where to write. For each precision the first process leaves the trained weights of a run
that was not interrupted (whole) and of one that was and went on (resumed).
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import datasets
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer

from epicrisis.corpus.tokens import encode_narratives
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base_model import load_base
from epicrisis.llm.heads import NextToken
from epicrisis.llm.pretrain import NarrativeLesson, token_loss
from epicrisis.settings import settings_from
from epicrisis.training.checkpoints import Checkpoints, trained_weights
from epicrisis.training.loop import train
from tests.llm.conftest import NARRATIVES

TRAINING = {
    "batch_size": 1,
    "effective_batch_size": 3,
    "max_steps": 4,
    "epochs": 9,
    "save_steps": 2,
    "eval_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-2,
}
PRECISIONS = {
    "float32": {"bf16": False, "quant_storage": "float32"},
    "bfloat16": {"bf16": True, "quant_storage": "bfloat16"},  # as configs/accelerate/fsdp_qlora.yaml asks for
}


def accelerator_for(sharded: bool) -> Accelerator:
    """One process, or several whose weights FSDP 2 spreads."""
    if not sharded:
        return Accelerator(cpu=True)
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
    )
    return Accelerator(cpu=True, fsdp_plugin=plugin)


def learn(
    base_dir: Path,
    folder: Path,
    accelerator: Accelerator,
    precision: str,
    *,
    stop_at: int | None = None,
    resume: bool = False,
):
    """The trained weights, and whether they were spread, layer by layer, while training."""
    accelerator.free_memory()  # or it would go on with the model before, too
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    ids = encode_narratives(tokenizer, NARRATIVES * 3)
    tokens = datasets.Dataset.from_dict({"input_ids": ids, "n_tokens": [len(i) for i in ids]})
    settings = settings_from(
        {
            "model": {"model_name": str(base_dir), "max_length": 128},
            "lora": {"r": 4, "lora_dropout": 0.0},
            "training": {**TRAINING, **PRECISIONS[precision], "output_dir": str(folder), "resume": resume},
        },
        check_files=False,
    )
    base = load_base(settings, accelerator)
    module = NextToken(backend_for("peft").attach(base, "clinical", settings.lora, 0))
    lesson = NarrativeLesson(tokens, tokenizer, 128)
    spread = []

    def log(**fields: object) -> None:
        parts = sum(isinstance(part, FSDPModule) for part in module.modules())
        spread.append(parts > 2 and any(isinstance(parameter, DTensor) for parameter in module.parameters()))
        if fields["step"] == stop_at and "train/loss" in fields:
            raise KeyboardInterrupt

    train(
        *(module, lesson, settings.training, accelerator, Checkpoints(folder, 2, accelerator)),
        title="test",
        evaluate=lambda m: token_loss(m, lesson, 2, accelerator),
        log=log,
    )
    assert not any(isinstance(parameter, DTensor) for parameter in module.parameters())
    return trained_weights(module), any(spread)


def main(base_dir: Path, folder: Path) -> None:
    accelerator = accelerator_for(sharded=True)
    for precision in PRECISIONS:
        place = folder / precision
        whole, spread = learn(base_dir, place / "a", accelerator, precision)
        assert spread, "nothing was spread over the processes"
        with contextlib.suppress(KeyboardInterrupt):
            learn(base_dir, place / "b", accelerator, precision, stop_at=3)
        resumed, _ = learn(base_dir, place / "b", accelerator, precision, resume=True)
        if accelerator.is_main_process:
            save_file(whole, place / "whole.safetensors")
            save_file(resumed, place / "resumed.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
