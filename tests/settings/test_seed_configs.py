"""The text pipeline's own config blocks are valid, and so is every config that ships."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from epicrisis.settings import load_settings, settings_from

ROOT = Path(__file__).parents[2]

_DATA = {
    "data_dir": "/path/to/tokenized/data/",
    "vocab_filepath": "/path/to/vocab.csv",
    "labels_filepath": "/path/to/labels.csv",
    "medical_lookup_filepath": "/path/to/medical_lookup.csv",
    "lab_lookup_filepath": "/path/to/lab_lookup.csv",
    "cutoff_months": 1,
}
ENCODER: dict[str, Any] = {
    "model": {
        "model_name": "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext",
        "num_classes": 2,
        "max_length": 512,
    },
    "data": _DATA,
    "training": {
        "output_dir": "results/text_based/bert_finetune/",
        "overwrite_output_dir": True,
        "epochs": 10,
        "batch_size": 16,
        "learning_rate": "2e-5",  # as a YAML 1.1 reader takes it
        "weight_decay": 0.01,
    },
    "wandb": {"project": "cancer-ehr-bert", "run_name": "pubmedbert_1month_cutoff"},
}
PRETRAINING: dict[str, Any] = {
    "model": {"model_name": "unsloth/mistral-7b-v0.3", "max_length": 2048},
    "data": _DATA,
    "lora": {
        "r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "use_rslora": True,
    },
    "training": {
        "output_dir": "results/text_based/llm_pretrain/",
        "framework": "unsloth",
        "epochs": 3,
        "batch_size": 4,
        "learning_rate": "2e-4",
        "weight_decay": 0.01,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": True,
        "load_in_4bit": True,
        "fp16": False,
        "bf16": True,
        "warmup_steps": 500,
        "logging_steps": 10,
        "eval_steps": 500,
        "save_steps": 1000,
    },
    "wandb": {"enabled": True, "project": "cancer-ehr-llm"},
}


@pytest.mark.parametrize(("tree", "arm", "stage"), [(ENCODER, "encoder", "classify"), (PRETRAINING, "llm", "pretrain")])
def test_the_text_pipelines_configs_are_valid_and_every_value_arrives(
    tree: dict[str, Any], arm: str, stage: str, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(tree).replace("'", ""))
    settings = load_settings(path, check_files=False)
    assert settings == settings_from(tree, check_files=False)
    assert (settings.arm, settings.stage) == (arm, stage)
    resolved = settings.resolved()
    for section, keys in tree.items():
        for key, value in keys.items():
            arrived = resolved[section][key]
            expected = float(value) if key == "learning_rate" else value
            assert arrived == (expected.rstrip("/") if isinstance(expected, str) else expected), f"{section}.{key}"


SHIPPED = sorted(set((ROOT / "configs").rglob("*.yaml")) - set((ROOT / "configs" / "accelerate").iterdir()))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_says_what_it_does(path: Path) -> None:
    settings = load_settings(path, check_files=False)
    assert path.read_text().startswith("# "), "a config begins with what it does"
    for arm in settings.benchmark.arms:
        assert arm.overrides
