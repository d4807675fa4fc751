"""One contestant of train_throughput.py: a process that trains the same adapter on the same narratives in one way.

    python benchmarks/train_contestants.py FOLDER

Cases come as lines of JSON on standard input, results go as lines of JSON to standard output. A process of its own,
since Unsloth changes transformers and TRL when it is imported.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from epicrisis.corpus.packing import PackedBatch, pack
from epicrisis.settings import InputError, Settings, settings_from
from epicrisis.tracking.progress import peak_memory_gb
from train_cases import LEARNING_RATE, RANK, SEED, TARGETS, Case, Outcome, Record, adapter_key, case_from, failed


def train_here(case: Case, folder: Path) -> Outcome:
    """The case as epicrisis trains it."""
    from epicrisis.llm.attention import choose_attention
    from epicrisis.llm.backends import backend_for
    from epicrisis.llm.base_model import load_base
    from epicrisis.llm.heads import NextToken
    from epicrisis.training.checkpoints import Checkpoints
    from epicrisis.training.device import make_accelerator
    from epicrisis.training.loop import train

    settings = settings_of(case, folder)
    accelerator = make_accelerator(settings.training)
    choose_attention(case.attention, accelerator.device, case.torch_dtype, learning=True)  # refuses what cannot run
    base = load_base(settings, accelerator)
    model = backend_for("peft").attach(base, "clinical", settings.lora, SEED)
    load_adapter(model, folder)
    lesson, record = lesson_of(case, folder), Record()

    def log(step: int, **fields: Any) -> None:
        if "train/loss" in fields:
            record.step(lesson.take_count(), fields["train/loss"])

    module = NextToken(model) if case.loss == "chunked" else WholeLogits(model)
    with tempfile.TemporaryDirectory() as checkpoints:
        train(
            *(module, lesson, settings.training, accelerator, Checkpoints(Path(checkpoints), 1, accelerator)),
            title=case.name,
            evaluate=lambda _: {"loss": 0.0},
            log=log,
        )
    return Outcome(record.tokens, record.losses, record.seconds, held_out_loss(model, folder), peak_memory_gb())


def settings_of(case: Case, folder: Path) -> Settings:
    """The settings that a run of this case would have."""
    far = 1_000_000  # nothing is evaluated or saved between steps
    training = {
        "batch_size": case.at_once,
        "gradient_accumulation_steps": case.accumulated,
        "epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "gradient_checkpointing": case.gradient_checkpointing,
        "load_in_4bit": case.load_in_4bit,
        "bf16": case.dtype == "bfloat16",
        "logging_steps": 1,
        "eval_steps": far,
        "save_steps": far,
        "keep_best": False,
        "seed": SEED,
    }
    model = {
        "model_name": str(folder / "base"),
        "max_length": case.max_length,
        "attn_implementation": case.attention,
    }
    lora = {"r": RANK, "lora_alpha": RANK, "target_modules": TARGETS}
    return settings_from({"stage": "pretrain", "model": model, "training": training, "lora": lora}, check_files=False)


class WholeLogits(nn.Module):
    """Summed next-token loss over logits of the whole batch and vocabulary, as a causal model's own forward has it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        from epicrisis.llm.adapters import causal_model
        from epicrisis.llm.heads import hidden_states

        logits = causal_model(self.model).get_output_embeddings()(hidden_states(self.model, batch)[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")


def lesson_of(case: Case, folder: Path) -> Any:
    """The narratives packed, or each in a padded row; take_count gives the tokens since it was last asked."""
    from epicrisis.llm.pretrain import NarrativeLesson

    tokens, tokenizer = read_tokens(folder, "train", case.documents), Tokenizer(folder)

    class Counted(NarrativeLesson if case.packing else Padded):  # type: ignore[misc]
        count = 0

        def collate(self, items: Sequence[int]) -> PackedBatch:
            batch = super().collate(items)
            self.count += batch.useful_tokens
            return batch

        def take_count(self) -> int:
            count, self.count = self.count, 0
            return count

    return Counted(tokens, tokenizer, case.max_length)


class Tokenizer:
    """All that a lesson asks of a tokenizer."""

    def __init__(self, folder: Path):
        known = json.loads((folder / "tokens.json").read_text())
        self.eos_token_id, self.pad_token_id = known["eos"], known["pad"]


class Padded:
    """A lesson whose items are narratives, each a row, padded to the longest of its batch."""

    def __init__(self, tokens: datasets.Dataset, tokenizer: Any, max_length: int):
        self._documents = [[*ids, tokenizer.eos_token_id] for ids in tokens["input_ids"]]
        self._pad = tokenizer.pad_token_id

    @property
    def n_items(self) -> int:
        return len(self._documents)

    def collate(self, items: Sequence[int]) -> PackedBatch:
        documents = [self._documents[item] for item in items]
        return pack(documents, [[row] for row in range(len(documents))], self._pad)

    def units(self, items: Sequence[int]) -> int:
        return sum(len(self._documents[item]) - 1 for item in items)

    def loss_sum(self, module: nn.Module, batch: PackedBatch, items: Sequence[int]) -> torch.Tensor:
        return module(batch)


def train_with_trl(case: Case, folder: Path) -> Outcome:
    """The case as TRL's SFTTrainer trains it: base by transformers, adapter by PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=case.torch_dtype,
    )
    base = AutoModelForCausalLM.from_pretrained(
        folder / "base",
        dtype=case.torch_dtype,
        quantization_config=nf4 if case.load_in_4bit else None,
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
        attn_implementation=case.attention,
    )
    lora = LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    return supervised(case, folder, get_peft_model(base, lora), tokenizer_of(folder))


def train_with_unsloth(case: Case, folder: Path) -> Outcome:
    """The case as Unsloth's own scripts have it: its loader, its adapter, and the SFTTrainer that it has changed."""
    from epicrisis.llm.backends.unsloth import import_unsloth

    unsloth = import_unsloth()
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        str(folder / "base"),
        max_seq_length=case.max_length,
        dtype=case.torch_dtype,
        load_in_4bit=case.load_in_4bit,
        load_in_16bit=not case.load_in_4bit,
        use_exact_model_name=True,
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        target_modules=list(TARGETS),
        lora_alpha=RANK,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing="unsloth" if case.gradient_checkpointing else False,
        random_state=SEED,
    )
    return supervised(case, folder, model, tokenizer)


def supervised(case: Case, folder: Path, model: Any, tokenizer: Any) -> Outcome:
    """A run of SFTTrainer over a model with its adapter."""
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    load_adapter(model, folder)
    record = Record()

    class Watch(TrainerCallback):
        seen = 0

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
            if logs and "loss" in logs:
                so_far = int(logs.get("num_tokens", getattr(trainer, "tokens_seen", 0)))
                record.step(so_far - self.seen, float(logs["loss"]))
                self.seen = so_far

    tokenizer.padding_side = "right"
    as_it_comes = case.engine == "unsloth" or torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as output:
        trainer = (SFTTrainer if as_it_comes else with_the_models_loss(SFTTrainer))(
            model=model,
            args=SFTConfig(output_dir=output, **sft_options(case)),
            train_dataset=datasets.Dataset.from_dict({"input_ids": documents_of(folder, "train", case.documents)}),
            processing_class=tokenizer,
            callbacks=[Watch()],
        )
        record.start = time.perf_counter()
        trainer.train()
    return Outcome(record.tokens, record.losses, record.seconds, held_out_loss(model, folder), peak_memory_gb())


def sft_options(case: Case) -> dict[str, Any]:
    """SFTConfig's options for a case."""
    return {
        "num_train_epochs": 1,
        "per_device_train_batch_size": case.at_once,
        "gradient_accumulation_steps": case.accumulated,
        "packing": bool(case.packing),
        "packing_strategy": case.packing or "bfd",
        "max_length": case.max_length,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": case.gradient_checkpointing,
        "bf16": case.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
        **dict(case.more),
    }


def with_the_models_loss(trainer: type) -> type:
    """TRL's SFTTrainer so that it can train on a CPU: its own loss in 1.15 is a Triton kernel, which a CPU cannot run.

    compute_loss is overridden, as TRL advises for other losses, by that of transformers' Trainer: the model's own
    cross-entropy over whole logits. The trainer's own figures (entropy, accuracy) are not computed.
    """
    from transformers import Trainer

    class OnCpu(trainer):  # type: ignore[misc]
        tokens_seen = 0

        def compute_loss(self, model: Any, inputs: Any, *others: Any, **more: Any) -> Any:
            seen = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
            self.tokens_seen += int(seen)
            return Trainer.compute_loss(self, model, {**inputs, "use_cache": False}, *others, **more)

    return OnCpu


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "base")


def read_tokens(folder: Path, split: str, n: int | None = None) -> datasets.Dataset:
    """input_ids · n_tokens of the first `n` narratives, without their EOS."""
    tokens = datasets.Dataset.from_parquet(str(folder / f"{split}.parquet"), cache_dir=str(folder / "cache"))
    return tokens if n is None else tokens.select(range(n))


def documents_of(folder: Path, split: str, n: int | None = None) -> list[list[int]]:
    """Each narrative with its EOS, as SFTTrainer takes it."""
    end = Tokenizer(folder).eos_token_id
    return [[*ids, end] for ids in read_tokens(folder, split, n)["input_ids"]]


def load_adapter(model: nn.Module, folder: Path) -> None:
    """The same first weights for everyone, whatever the adapter's name; ValueError where a weight is missing."""
    saved, loaded = load_file(folder / "adapter.safetensors"), 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(saved[adapter_key(name)].to(parameter.dtype))
                loaded += 1
    if loaded != len(saved):
        raise ValueError(f"{loaded} of {len(saved)} adapter weights found their place")


@torch.no_grad()
def held_out_loss(model: nn.Module, folder: Path) -> float:
    """Mean next-token loss of unseen narratives, each read alone, by the model's own logits: nobody's own loss."""
    model.eval()
    total, count = 0.0, 0
    device = next(model.parameters()).device
    for document in documents_of(folder, "held_out"):
        ids = torch.tensor([document], device=device)
        logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += len(document) - 1
    return total / count


ENGINES: dict[str, Callable[[Case, Path], Outcome]] = {
    "epicrisis": train_here,
    "trl": train_with_trl,
    "unsloth": train_with_unsloth,
}


def run(case: Case, folder: Path) -> Outcome:
    """The outcome of a case, with the reason where it cannot run here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        outcome = ENGINES[case.engine](case, folder)
    except torch.cuda.OutOfMemoryError:
        return failed("out of memory")
    except (InputError, ImportError) as error:
        return failed(str(error).splitlines()[-1].strip())
    if not all(np.isfinite(outcome.losses)):
        return failed("the loss is not finite")
    return outcome


@contextmanager
def own_output() -> Iterator[Any]:
    """Standard output for results alone; what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w") as results:
        os.dup2(2, 1)
        yield results


def main() -> None:
    folder = Path(sys.argv[1])
    with own_output() as results:
        for line in sys.stdin:
            results.write(json.dumps(asdict(run(case_from(json.loads(line)), folder))) + "\n")
            results.flush()


if __name__ == "__main__":
    main()
