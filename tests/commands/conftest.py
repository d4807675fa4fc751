"""A small synthetic cohort whose subjects can be recognised wherever they turn up, and a base to fit on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from epicrisis.commands import main
from epicrisis.corpus.tokens import prompt_text
from epicrisis.events.synthetic import synthesize
from epicrisis.llm.tiny_models import train_tokenizer

FIRST_SUBJECT = 7_310_000_000
QUESTION = "Will it happen?"
TABULAR = ["arm=logistic_regression", "evaluation.bootstrap_resamples=100"]


def data_keys(dataset: Path, task: str = "cancer") -> list[str]:
    """The overrides that name a synthetic cohort and one of its tasks."""
    return [f"data.meds_dir={dataset}", f"data.labels_dir={dataset / 'labels' / task}"]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 synthetic subjects in two shards per split, numbered from FIRST_SUBJECT; never written to."""
    folder = tmp_path_factory.mktemp("cohort") / "synthetic"
    synthesize(folder, 100, seed=1, shard_size=50)
    for path in folder.rglob("*.parquet"):
        table = pl.read_parquet(path)
        if "subject_id" in table.columns:
            table.with_columns(pl.col("subject_id") + FIRST_SUBJECT).write_parquet(path)
    return folder


@pytest.fixture(scope="session")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished logistic regression; never written to."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", *TABULAR, *data_keys(dataset), f"training.output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of some thousand untrained weights and its tokenizer, saved as a hub model would be."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer([prompt_text(QUESTION) + f" {answer}" for answer in ("no", "yes")] * 20)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a text file into the test's folder."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
