"""Two adapters on one 4-bit base: what must move moves, what must not does not, and both count."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from epicrisis.corpus.packing import best_fit, pack
from epicrisis.corpus.prompt import answer_sequences, make_prompt
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.llm.adapters import CLINICAL, DOWNSTREAM, lora_layers, save_adapter, stack
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base_model import load_base
from epicrisis.llm.classify import QuestionLesson
from epicrisis.llm.heads import LabelTokens, NextToken, ScoreHead
from epicrisis.llm.pretrain import NarrativeLesson
from epicrisis.settings import InputError, settings_from
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.loop import train
from tests.llm.conftest import NARRATIVES, QUESTION

BASES = pytest.mark.parametrize("base", ["llama", "mistral"])


@pytest.fixture(scope="module")
def clinical(bases, tokens, tokenizer, accelerator, tmp_path_factory):
    """A trained clinical adapter per architecture: {name: folder}."""
    folders = {}
    for name, path in bases.items():
        tree = {"model": {"model_name": str(path)}, "lora": {"r": 6, "lora_alpha": 12, "use_rslora": True}}
        tree["training"] = {"learning_rate": 5e-2, "epochs": 6, "batch_size": 4}
        settings = settings_from(tree, check_files=False)
        model = backend_for("peft").attach(load_base(settings, accelerator), CLINICAL, settings.lora, 0)
        folder = tmp_path_factory.mktemp(f"{name}-clinical")
        lesson = NarrativeLesson(tokens, tokenizer, 128)
        _train(NextToken(model), lesson, settings, accelerator, folder)
        save_adapter(model, CLINICAL, folder, name)
        folders[name] = folder
    return folders


def _train(module, lesson, settings, accelerator, folder):
    checkpoints = Checkpoints(folder / "checkpoints", 1, accelerator)
    return train(
        module,
        lesson,
        settings.training,
        accelerator,
        checkpoints,
        title="test",
        evaluate=lambda m: {"loss": 1.0},
        log=lambda **_: None,
    )


def _stacked(settings, accelerator, clinical, **options):
    options = {"clinical_trainable": False, "seed": 0, **options}
    return stack(load_base(settings, accelerator), clinical, settings.lora, **options)


def _batch(tokenizer):
    documents = encode_narratives(tokenizer, NARRATIVES)
    return pack(documents, best_fit([len(d) for d in documents], 128), tokenizer.pad_token_id)


def _head(model, tokenizer):
    answers = answer_sequences(tokenizer, make_prompt(tokenizer, QUESTION), ["no", "yes"])
    return LabelTokens(model, [first for first, *_ in answers])


@BASES
@pytest.mark.parametrize("clinical_trainable", [False, True])
def test_exactly_what_is_meant_to_learn_has_moved(
    settings, accelerator, clinical, tokens, tokenizer, tmp_path, base, clinical_trainable
):
    s = settings(base)
    module = _head(_stacked(s, accelerator, clinical[base], clinical_trainable=clinical_trainable), tokenizer)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    lesson = QuestionLesson(tokens, tokenizer, QUESTION, 128, np.array([0, 1, 0, 1, 0, 1]))
    _train(module, lesson, s, accelerator, tmp_path)
    for name, parameter in module.named_parameters():
        moved = not torch.equal(parameter, before[name])
        meant = f".{DOWNSTREAM}." in name or (clinical_trainable and f".{CLINICAL}." in name)
        assert moved == meant, f"{name} {'moved' if moved else 'did not move'}"
    assert sum(f".{DOWNSTREAM}." in name for name in before) == 2 * 2 * 7  # A and B, 2 layers, 7 linear layers


@BASES
@pytest.mark.parametrize("adapter", [CLINICAL, DOWNSTREAM])
def test_each_adapter_changes_the_answer(settings, accelerator, clinical, tokenizer, base, adapter):
    module = _head(_stacked(settings(base), accelerator, clinical[base]), tokenizer).eval()
    before = module(_batch(tokenizer))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if f"lora_B.{adapter}." in name:
                parameter.add_(0.1)
    assert (module(_batch(tokenizer)) - before).abs().max() > 1e-3


@BASES
def test_updates_add_up(settings, accelerator, clinical, tokenizer, base):
    """Every layer gives base(x) + s_c B_c A_c x + s_d B_d A_d x, with unequal ranks and one rsLoRA scale."""
    model = _stacked(settings(base), accelerator, clinical[base]).eval()
    layer = lora_layers(model)[3]
    for weight in (layer.lora_B[DOWNSTREAM].weight, layer.lora_B[CLINICAL].weight):
        torch.nn.init.normal_(weight)
    x = torch.randn(5, layer.in_features)
    scales = {CLINICAL: 12 / 6**0.5, DOWNSTREAM: 8 / 4}
    expected = layer.base_layer(x)
    for name, scale in scales.items():
        expected = expected + scale * (x @ layer.lora_A[name].weight.T @ layer.lora_B[name].weight.T)
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_a_new_downstream_adapter_starts_where_the_clinical_one_ended(settings, accelerator, clinical, tokenizer):
    s = settings("llama")
    fused = _head(_stacked(s, accelerator, clinical["llama"]), tokenizer).eval()(_batch(tokenizer))
    plain = _head(load_base(s, accelerator), tokenizer).eval()(_batch(tokenizer))
    assert (fused - plain).abs().max() > 1e-3, "the clinical adapter does nothing"


def test_the_frozen_adapter_has_no_dropout_and_the_trained_one_has(settings, accelerator, clinical):
    model = _stacked(settings("llama", **{"lora.lora_dropout": 0.5}), accelerator, clinical["llama"])
    for layer in lora_layers(model):
        assert isinstance(layer.lora_dropout[DOWNSTREAM], torch.nn.Dropout)
        assert isinstance(layer.lora_dropout[CLINICAL], torch.nn.Identity)


def test_an_adapter_of_another_base_is_refused(settings, accelerator, clinical, bases, tokenizer, tmp_path):
    torch.manual_seed(1)
    other = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(bases["llama"]))
    other.save_pretrained(tmp_path)
    changed = settings("llama", **{"model.model_name": str(tmp_path)})
    with pytest.raises(InputError, match="another base"):
        _stacked(changed, accelerator, clinical["llama"])


RELOAD = """
import sys, json, torch
from pathlib import Path
from accelerate import Accelerator
from transformers import AutoTokenizer
from safetensors.torch import load_file
from epicrisis.llm.adapters import load_stacked
from epicrisis.llm.base_model import load_base
from epicrisis.settings import settings_from
from tests.llm.test_adapters import _batch, _head
from epicrisis.llm.heads import ScoreHead
tree, folder, head = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
s = settings_from(tree, check_files=False)
model = load_stacked(load_base(s, Accelerator(cpu=True)), folder)
tokenizer = AutoTokenizer.from_pretrained(s.model.model_name)
module = _head(model, tokenizer) if head == "label_tokens" else ScoreHead(model, 2, 0)
if head == "score":
    module.score.load_state_dict(load_file(folder / "score.safetensors"))
with torch.inference_mode():
    torch.save(module.eval()(_batch(tokenizer)), folder / "logits.pt")
"""


@BASES
@pytest.mark.parametrize("head", ["label_tokens", "score"])
def test_a_fresh_process_gives_the_same_logits(
    settings, accelerator, clinical, tokens, tokenizer, tmp_path, base, head
):
    s = settings(base)
    model = _stacked(s, accelerator, clinical[base])
    module = _head(model, tokenizer) if head == "label_tokens" else ScoreHead(model, 2, 0)
    lesson = QuestionLesson(tokens, tokenizer, QUESTION, 128, np.array([0, 1, 0, 1, 0, 1]))
    _train(module, lesson, s, accelerator, tmp_path)
    for name in (CLINICAL, DOWNSTREAM):
        save_adapter(model, name, tmp_path / name, base)
    if head == "score":
        save_file(module.score.state_dict(), tmp_path / "score.safetensors")
    arguments = [json.dumps(s.resolved()), str(tmp_path), head]
    subprocess.run([sys.executable, "-c", RELOAD, *arguments], check=True)
    reloaded = torch.load(tmp_path / "logits.pt", weights_only=True)
    with torch.inference_mode():  # as in prediction: bitsandbytes has other kernels where gradients are wanted
        torch.testing.assert_close(reloaded, module.eval()(_batch(tokenizer)), atol=1e-6, rtol=1e-6)
