"""Unsloth instead of PEFT: the same numbers, the same files, and what it would do otherwise is refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from epicrisis.corpus.packing import pack
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.llm.backends import Loading
from epicrisis.llm.backends.unsloth import (
    VERSION,
    attention_for,
    check_length,
    check_loaded,
    check_method,
    documents_are_apart,
    keep_documents_apart,
)
from epicrisis.llm.base_model import load_base
from epicrisis.llm.heads import hidden_states
from epicrisis.settings import InputError, settings_from
from tests.llm import unsloth_run
from tests.llm.conftest import NARRATIVES
from tests.llm.unsloth_run import ATTENTIONS, CLASSIFIED, PRETRAINED, read, settings_of

HAS_UNSLOTH = importlib.util.find_spec("unsloth") is not None
NEEDS_UNSLOTH = pytest.mark.skipif(
    not HAS_UNSLOTH, reason=f"not installed: pip install --no-deps unsloth=={VERSION} unsloth_zoo=={VERSION}"
)
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def inputs(bases, tmp_path_factory) -> dict[str, str]:
    """Where the bases and the new tokens are."""
    csv = tmp_path_factory.mktemp("tokens") / "codes.csv"
    pl.DataFrame({"token": ["Asthma"], "description": ["Cough pain"]}).write_csv(csv)
    return {**{name: str(folder) for name, folder in bases.items()}, "codes.csv": str(csv)}


@pytest.fixture(scope="module")
def folders(inputs, tmp_path_factory) -> dict[str, Path]:
    """What either framework has left of all cases; Unsloth, in a process of its own, has read PEFT's adapters too."""
    places = {framework: tmp_path_factory.mktemp(framework) for framework in ("peft", "unsloth")}
    ours, theirs = (str(places[framework]) for framework in ("peft", "unsloth"))
    unsloth_run.run("peft", inputs, ours)
    told = json.dumps({"framework": "unsloth", "inputs": inputs, "folder": theirs, "reads": ours})
    subprocess.run([sys.executable, "-m", unsloth_run.__name__, told], check=True)
    return places


def _numbers(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "numbers.pt", weights_only=True)


def _assert_equal(found: Any, expected: Any, where: str) -> None:
    """Numbers within TOLERANCE, everything else exactly."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected:
            _assert_equal(found[name], expected[name], f"{where}, {name}")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, **TOLERANCE, msg=lambda text: f"{where}: {text}")
    elif expected and isinstance(expected, list) and isinstance(expected[0], torch.Tensor):
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            _assert_equal(one, other, f"{where}, {place}")
    else:
        assert found == expected, where


@NEEDS_UNSLOTH
@pytest.mark.parametrize("case", [*PRETRAINED, *CLASSIFIED, "fused", "packed"])
def test_both_libraries_give_the_same_numbers(folders, case):
    """Losses of every step, what was learnt, what is read, scored and written."""
    ours, theirs = (_numbers(folders[framework] / case) for framework in ("peft", "unsloth"))
    _assert_equal(theirs, ours, case)


@NEEDS_UNSLOTH
@pytest.mark.parametrize("case", [*PRETRAINED, *CLASSIFIED])
def test_every_case_learns(folders, case):
    numbers = _numbers(folders["unsloth"] / case)
    assert len(numbers["losses"]) == unsloth_run.N_STEPS
    assert numbers["loss after"] < numbers["loss before"]
    assert all(weight.abs().max() > 0 for weight in numbers["weights"].values()), "no gradient has reached it"


@NEEDS_UNSLOTH
@pytest.mark.parametrize("case", PRETRAINED)
def test_an_adapter_of_one_library_loads_in_the_other(folders, inputs, case):
    """Unsloth reads what PEFT has saved, and PEFT what Unsloth has, to the same logits."""
    ours, theirs = (_numbers(folders[framework] / case)["read"] for framework in ("peft", "unsloth"))
    torch.testing.assert_close(_numbers(folders["unsloth"] / case / "other")["read"], ours, **TOLERANCE)
    settings = settings_of("peft", inputs, "pretrain", PRETRAINED[case])
    torch.testing.assert_close(read(settings, folders["unsloth"] / case), theirs, **TOLERANCE)


@NEEDS_UNSLOTH
def test_a_run_that_was_broken_off_goes_on_as_if_it_had_not_been(folders):
    numbers = _numbers(folders["unsloth"] / "nf4")
    assert numbers["resumed"].keys() == numbers["weights"].keys()
    assert all(torch.equal(numbers["resumed"][name], weight) for name, weight in numbers["weights"].items())


@NEEDS_UNSLOTH
@pytest.mark.parametrize("case", CLASSIFIED)
def test_the_clinical_adapter_moves_only_where_it_may(folders, case):
    assert _numbers(folders["unsloth"] / case)["clinical moved"] == (case == "clinical trainable")


@NEEDS_UNSLOTH
@pytest.mark.parametrize(("base", "attention"), ATTENTIONS)
def test_packed_documents_do_not_see_each_other(folders, base, attention):
    numbers = _numbers(folders["unsloth"] / "packed")[f"{base}, {attention}"]
    assert numbers["attention"] == attention
    for row, documents in zip(numbers["together"], (numbers["alone"][:3], numbers["alone"][3:]), strict=True):
        alone = torch.cat(documents)
        torch.testing.assert_close(row[: len(alone)], alone, **TOLERANCE)
    torch.testing.assert_close(numbers["loss in pieces"], numbers["loss whole"])


def test_without_unsloth_the_install_line_is_given(settings, accelerator, monkeypatch):
    monkeypatch.setitem(sys.modules, "unsloth", None)
    monkeypatch.setenv("UNSLOTH_DISABLE_STATISTICS", "1")
    monkeypatch.setenv("UNSLOTH_COMPILE_LOCATION", "unused")
    with pytest.raises(InputError, match=r"not installed[\s\S]*pip install .*unsloth=="):
        load_base(settings("llama", **{"training.framework": "unsloth"}), accelerator)


def test_positions_are_not_stretched(bases):
    check_length(str(bases["llama"]), 512)
    with pytest.raises(InputError, match="513 is more than this base was trained for"):
        check_length(str(bases["llama"]), 513)


@pytest.fixture
def loading(bases) -> Loading:
    """A base in float32 on the CPU."""
    tree = {"model": {"model_name": str(bases["llama"])}, "training": {"load_in_4bit": False, "bf16": False}}
    return Loading.of(settings_from(tree, check_files=False), str(bases["llama"]), torch.device("cpu"))


def test_another_base_or_precision_than_asked_for_is_refused(loading):
    model = AutoModelForCausalLM.from_pretrained(loading.source, dtype=torch.float32)
    check_loaded(model, loading)
    with pytest.raises(InputError) as refused:
        check_loaded(model, replace(loading, source="another", load_in_4bit=True, dtype=torch.bfloat16))
    found = [problem.where for problem in refused.value.problems]
    assert found == ["model.model_name", "training.load_in_4bit", "training.bf16"]


@pytest.mark.parametrize("asked", ["sdpa", "eager", "flex_attention"])
def test_on_a_gpu_attention_cannot_be_chosen(loading, asked):
    on_gpu = replace(loading, device=torch.device("cuda"))
    assert attention_for(replace(loading, attention=asked)) == asked
    assert attention_for(on_gpu) == "sdpa"
    with pytest.raises(InputError, match=f"would pass over {asked}"):
        attention_for(replace(on_gpu, attention=asked))


@pytest.mark.parametrize("method", ["prefix", "prompt", "p_tuning"])
def test_what_lies_before_the_text_is_refused_on_a_gpu(method):
    check_method(method, torch.device("cpu"))
    check_method("lora", torch.device("cuda"))
    with pytest.raises(InputError, match="not been tried with Unsloth's own forward"):
        check_method(method, torch.device("cuda"))


def _leaking(bases, *, only_where_rows_are_many):
    """A base that forgets, as Unsloth's GPU forward does, that position_ids bound documents."""
    model = AutoModelForCausalLM.from_pretrained(bases["llama"]).eval()
    decoder = model.get_decoder()
    forward = decoder.forward

    def leaks(input_ids, position_ids, **others):
        if len(input_ids) > 1 or not only_where_rows_are_many:
            others["attention_mask"] = torch.ones_like(input_ids)  # transformers then looks for no bounds
        return forward(input_ids=input_ids, position_ids=position_ids, **others)

    decoder.forward = leaks
    return model


def test_documents_that_leak_across_rows_are_kept_apart(bases, tokenizer):
    sound = AutoModelForCausalLM.from_pretrained(bases["llama"]).eval()
    leaking = _leaking(bases, only_where_rows_are_many=True)
    assert documents_are_apart(sound)
    assert not documents_are_apart(leaking)
    keep_documents_apart(leaking)
    assert documents_are_apart(leaking)
    batch = pack(encode_narratives(tokenizer, NARRATIVES), [[0, 1, 2], [3, 4, 5]], tokenizer.pad_token_id)
    torch.testing.assert_close(hidden_states(leaking, batch), hidden_states(sound, batch), **TOLERANCE)


def test_documents_that_cannot_be_kept_apart_are_refused(bases):
    with pytest.raises(InputError, match="would see each other"):
        keep_documents_apart(_leaking(bases, only_where_rows_are_many=False))
