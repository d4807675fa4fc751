"""Fused adapters: exact where exactness is claimed, labelled where it is not, refused where it cannot be had."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from epicrisis.llm import fuse as fusing
from epicrisis.llm.adapters import CLINICAL, DOWNSTREAM, save_adapter, stack
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base_model import load_base
from epicrisis.llm.fuse import MANIFEST, difference, fuse, load_fused, logits_on_random_tokens, merge
from epicrisis.llm.updates import CONFIG, WEIGHTS, Updates, read_updates, side_by_side
from epicrisis.settings import InputError, settings_from

EXACT = ["stack", "cat"]
ABLATIONS = ["ties", "dare", "svd:3"]


def _settings(base, mode="cat", *, in_4bit=True, model=None, **lora):
    tree = {
        "stage": "classify",
        "model": {"model_name": str(base), **(model or {})},
        "lora": {"r": 4, "lora_alpha": 8, **lora},
        "training": {"load_in_4bit": in_4bit, "bf16": False},
        "fuse": {"mode": mode},
    }
    return settings_from(tree, check_files=False)


def _filled(model, name):
    """The adapter, whose B would be zero, with weights as training might leave them."""
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f"lora_B.{name}." in key or ".modules_to_save." in key:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def sources(bases, accelerator, tmp_path_factory):
    """A clinical adapter (rank 6, rsLoRA, with a head of its own) and a downstream one (rank 4, two modules)."""
    folder = tmp_path_factory.mktemp("run")
    clinical = _settings(bases["llama"], r=6, lora_alpha=12, use_rslora=True, modules_to_train=["head"])
    base = load_base(clinical, accelerator)
    model = _filled(backend_for("peft").attach(base, CLINICAL, clinical.lora, 0), CLINICAL)
    save_adapter(model, CLINICAL, folder / CLINICAL, "llama")
    downstream = _settings(bases["llama"], target_modules=["q_proj", "down_proj"])
    base = load_base(downstream, accelerator)
    model = stack(base, folder / CLINICAL, downstream.lora, clinical_trainable=False, seed=1)
    save_adapter(_filled(model, DOWNSTREAM), DOWNSTREAM, folder / DOWNSTREAM, "llama")
    return {name: folder / name for name in (CLINICAL, DOWNSTREAM)}


@pytest.fixture(scope="module")
def fused(bases, sources, accelerator, tmp_path_factory):
    """Every mode's folder and what was told of it; `merge16` on the 16-bit base, the others on the 4-bit one."""
    made = {}
    for mode in [*EXACT, *ABLATIONS, "svd:10", "merge16"]:
        folder = tmp_path_factory.mktemp("fused") / mode.replace(":", "-")
        settings = _settings(bases["llama"], mode, in_4bit=mode != "merge16")
        made[mode] = folder, fuse(settings, sources, folder, accelerator)
    return made


@pytest.mark.parametrize("mode", EXACT)
def test_an_exact_mode_has_the_stacks_logits(fused, mode):
    folder, told = fused[mode]
    parity = json.loads((folder / MANIFEST).read_text())["parity"]
    assert parity == told["parity"]
    assert parity["max_abs_difference"] <= 1e-5 * max(1, parity["max_abs_logit"])
    assert parity["adapters_effect"] > 0.1, "the adapters do nothing, so their fusion proves nothing"
    assert told["exact"]


def test_the_ranks_of_one_exact_adapter_add_up(fused):
    config = json.loads((fused["cat"][0] / "fused" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (10, 10, False)
    tensors = load_file(fused["cat"][0] / "fused" / WEIGHTS)
    assert {len(tensor) for name, tensor in tensors.items() if ".lora_A." in name} == {10}


@pytest.mark.parametrize("mode", ABLATIONS)
def test_an_ablation_says_so_and_differs(fused, mode):
    _, told = fused[mode]
    assert told["note"].startswith("ablation, not exact")
    assert not told["exact"]
    assert told["parity"]["max_abs_difference"] > 1e-2
    assert told["parity"]["share_of_effect"] > 0


def test_an_ablation_that_cuts_nothing_off_is_the_stack(fused):
    """PEFT's scale for rsLoRA is made up for: at full rank the singular vectors hold the whole sum."""
    assert fused["svd:10"][1]["parity"]["share_of_effect"] < 1e-3


def test_merged_weights_are_exact_before_they_are_rounded(fused):
    folder, told = fused["merge16"]
    parity = told["parity"]
    assert parity["max_abs_difference_unrounded"] <= 1e-5 * max(1, parity["max_abs_logit"])
    assert 1e-5 < parity["max_abs_difference"] < 0.2 * parity["adapters_effect"]
    assert told["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(folder / "model" / "model.safetensors").values()} == {torch.bfloat16}


RELOAD = """
import json, sys, torch
from pathlib import Path
from accelerate import Accelerator
from epicrisis.llm.fuse import load_fused, logits_on_random_tokens
from epicrisis.settings import settings_from
for tree, folder in json.loads(sys.argv[1]):
    settings = settings_from(tree, check_files=False)
    model = load_fused(settings, Path(folder), Accelerator(cpu=True)).eval()
    torch.save(logits_on_random_tokens(model), Path(folder) / "logits.pt")
"""


def test_a_fresh_process_gives_the_same_logits_for_every_mode(bases, fused, accelerator):
    cases = {mode: _settings(bases["llama"], mode, in_4bit=mode != "merge16") for mode in fused}
    arguments = json.dumps([(cases[mode].resolved(), str(folder)) for mode, (folder, _) in fused.items()])
    subprocess.run([sys.executable, "-c", RELOAD, arguments], check=True)
    for mode, (folder, told) in fused.items():
        found = torch.load(folder / "logits.pt", weights_only=True)
        here = logits_on_random_tokens(load_fused(cases[mode], folder, accelerator).eval())
        torch.testing.assert_close(found, here, atol=1e-6, rtol=1e-6)
        stacked = torch.load(fused["stack"][0] / "logits.pt", weights_only=True)
        if mode in EXACT:
            assert difference(found, stacked) <= told["parity"]["tolerance"]


def test_what_is_not_the_stack_is_not_written_as_if_it_were(bases, sources, accelerator, tmp_path, monkeypatch):
    def wrong(parts):
        right = side_by_side(parts)
        return Updates({layer: (0.9 * a, b) for layer, (a, b) in right.pairs.items()}, right.others, right.config)

    monkeypatch.setattr(fusing, "side_by_side", wrong)
    with pytest.raises(InputError, match="differs from the stacked adapters by"):
        fuse(_settings(bases["llama"]), sources, tmp_path / "out", accelerator)
    assert not (tmp_path / "out").exists()


def test_nothing_is_merged_into_a_4_bit_base(bases, sources, accelerator, tmp_path, fused):
    with pytest.raises(InputError, match="merged into a 4-bit base"):
        fuse(_settings(bases["llama"], "merge16"), sources, tmp_path / "out", accelerator)
    settings = _settings(bases["llama"])
    with pytest.raises(InputError, match="merged into a 4-bit base"):
        merge(backend_for("peft").attach(load_base(settings, accelerator), CLINICAL, settings.lora, 0))
    with pytest.raises(InputError, match="would be rounded to 4 bits"):
        load_fused(settings, fused["merge16"][0], accelerator)
    assert not (tmp_path / "out").exists()


def test_one_adapter_is_nothing_to_fuse(bases, sources, accelerator, tmp_path):
    with pytest.raises(InputError, match="1 adapter to fuse"):
        fuse(_settings(bases["llama"]), {CLINICAL: sources[CLINICAL]}, tmp_path / "out", accelerator)


def test_two_heads_do_not_make_one(bases, sources, accelerator, tmp_path):
    twice = {"adapter_1": sources[CLINICAL], "adapter_2": sources[CLINICAL]}
    with pytest.raises(InputError, match="2 of the adapters have embeddings or an output layer"):
        fuse(_settings(bases["llama"]), twice, tmp_path / "out", accelerator)


def test_an_adapter_of_another_base_is_not_fused(bases, sources, accelerator, tmp_path):
    torch.manual_seed(1)
    other = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(bases["llama"]))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="another base"):
        fuse(_settings(tmp_path / "other"), sources, tmp_path / "out", accelerator)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "ADALORA"}, "kind ADALORA"),
        ({"bias": "all"}, "trains biases"),
        ({"init_lora_weights": "pissa"}, "began as pissa"),
    ],
)
def test_what_does_not_simply_add_is_refused(sources, tmp_path, change, expected):
    config = json.loads((sources[DOWNSTREAM] / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, **change}))
    (tmp_path / WEIGHTS).write_bytes((sources[DOWNSTREAM] / WEIGHTS).read_bytes())
    with pytest.raises(InputError, match=expected):
        read_updates(tmp_path)


def _adapter(folder: Path, rank: int, alpha: float, rslora: bool, alphas: dict[str, float], layers, seed: int) -> Path:
    folder.mkdir()
    config = LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora, alpha_pattern=alphas, target_modules=["x"])
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        tensors[f"base_model.model.{layer}.lora_A.weight"] = torch.randn(rank, 5, generator=generator)
        tensors[f"base_model.model.{layer}.lora_B.weight"] = torch.randn(3, rank, generator=generator)
    save_file(tensors, folder / WEIGHTS)
    return folder


ADAPTER = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 4),
        "alpha": st.integers(1, 9),
        "rslora": st.booleans(),
        "alphas": st.sampled_from([{}, {"x": 3}, {"0.x": 7}]),
        "layers": st.sampled_from([["0.x"], ["1.x"], ["0.x", "1.x"]]),
    }
)


@given(adapters=st.lists(ADAPTER, min_size=1, max_size=3))
@hypothesis_settings(max_examples=40, deadline=None)
def test_side_by_side_adds_what_each_adapter_adds(tmp_path_factory, adapters):
    folder = tmp_path_factory.mktemp("adapters")
    parts, expected = [], {}
    for number, adapter in enumerate(adapters):
        place = _adapter(folder / str(number), **adapter, seed=number)
        parts.append(read_updates(place))
        tensors = load_file(place / WEIGHTS)
        for layer in adapter["layers"]:
            pattern = adapter["alphas"]
            alpha = pattern.get("x", pattern.get(layer, adapter["alpha"]))
            scale = alpha / (math.sqrt(adapter["rank"]) if adapter["rslora"] else adapter["rank"])
            first, second = (tensors[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
            expected[layer] = expected.get(layer, 0) + scale * second @ first
    together = side_by_side(parts)
    assert together.pairs.keys() == expected.keys()
    for layer, (first, second) in together.pairs.items():
        assert len(first) == sum(adapter["rank"] for adapter in adapters)
        torch.testing.assert_close(second @ first, expected[layer], atol=1e-4, rtol=1e-4)


def test_new_tokens_travel_with_the_fused_adapter(bases, accelerator, tmp_path):
    csv = tmp_path / "codes.csv"
    csv.write_text("token,description\nAsthma,Cough\n")
    clinical = _settings(bases["llama"], new_code_tokens=str(csv))
    model = _filled(backend_for("peft").attach(load_base(clinical, accelerator), CLINICAL, clinical.lora, 0), CLINICAL)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".trainable_tokens_delta." in key:
                parameter.add_(0.5)
    save_adapter(model, CLINICAL, tmp_path / CLINICAL, "llama")
    plain = _settings(bases["llama"])
    base = load_base(plain, accelerator, tmp_path / CLINICAL / "new_tokens.csv")
    model = stack(base, tmp_path / CLINICAL, plain.lora, clinical_trainable=False, seed=1)
    save_adapter(_filled(model, DOWNSTREAM), DOWNSTREAM, tmp_path / DOWNSTREAM, "llama")
    sources = {name: tmp_path / name for name in (CLINICAL, DOWNSTREAM)}
    wanted = logits_on_random_tokens(model.eval())
    for mode, in_4bit in (("cat", True), ("merge16", False)):
        settings = _settings(bases["llama"], mode, in_4bit=in_4bit)
        told = fuse(settings, sources, tmp_path / mode, accelerator)
        found = logits_on_random_tokens(load_fused(settings, tmp_path / mode, accelerator).eval())
        assert found.shape == wanted.shape
        if mode == "cat":
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        assert told["parity"]["adapters_effect"] > 0.1
