"""Bases of a few thousand weights, saved as a hub model would be, and a few narratives to learn."""

import datasets
import pytest
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from epicrisis.corpus.tokens import encode_narratives, prompt_text
from epicrisis.llm.tiny_models import train_tokenizer
from epicrisis.settings import settings_from

QUESTION = "Will it happen?"
NARRATIVES = [
    f"{age}-year-old {sex}.\n{gap}: {finding}; Haemoglobin {value} g/dL"
    for age, sex, gap, finding, value in [
        (63, "woman", "2 years before", "Essential hypertension", 13.1),
        (41, "man", "3 months before", "Weight loss", 9.2),
        (77, "woman", "5 days before", "Asthma; Cough; Chest pain", 11),
        (58, "man", "1 year before", "Type 2 diabetes", -0.5),
        (35, "woman", "same day", "Migraine", 14.9),
        (69, "man", "8 years before", "Iron deficiency anaemia; Weight loss", 8.0),
    ]
]
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,  # an untrained output layer of the usual 0.02 could not express a sure answer
}


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([prompt_text(QUESTION) + f" {w}" for w in ("no", "yes")] * 20 + NARRATIVES * 20)


@pytest.fixture(scope="session")
def bases(tmp_path_factory, tokenizer):
    """Folders of an untrained Llama and an untrained Mistral."""
    import torch

    folders = {}
    for name, config, model in (
        ("llama", LlamaConfig, LlamaForCausalLM),
        ("mistral", MistralConfig, MistralForCausalLM),
    ):
        torch.manual_seed(0)
        extra = {"sliding_window": None} if name == "mistral" else {}
        ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        folder = tmp_path_factory.mktemp(name)
        model(config(vocab_size=len(tokenizer), **SHAPE, **extra, **ids)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[name] = folder
    return folders


@pytest.fixture(scope="session")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="session")
def tokens(tokenizer):
    ids = encode_narratives(tokenizer, NARRATIVES)
    return datasets.Dataset.from_dict({"input_ids": ids, "n_tokens": [len(i) for i in ids]})


@pytest.fixture
def settings(bases):
    """Settings for a base, with dotted changes: settings("llama", **{"lora.r": 4})."""

    def make(base: str = "llama", **changes):
        tree = {
            "stage": "classify",
            "model": {"model_name": str(bases[base]), "max_length": 128, "question": QUESTION},
            "lora": {"r": 4, "lora_alpha": 8},
            "training": {"batch_size": 2, "learning_rate": 1e-2, "epochs": 2, "logging_steps": 100},
        }
        for key, value in changes.items():
            section, _, name = key.partition(".")
            tree.setdefault(section, {})[name] = value
        return settings_from(tree, check_files=False)

    return make
