"""Unsloth instead of PEFT: the same numbers, the same files, and packed documents that stay apart.

Unsloth changes transformers, TRL and the environment when it is imported, so all that needs it runs in a process
of its own; what PEFT makes of the same settings comes from this one.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from epicrisis.corpus.packing import pack
from epicrisis.corpus.tokens import answer_token_ids, encode_narratives
from epicrisis.llm.adapters import CLINICAL, load_stacked, save_adapter, stack
from epicrisis.llm.backends import backend_for
from epicrisis.llm.backends.unsloth import (
    VERSION,
    check_length,
    check_precision,
    documents_are_apart,
    keep_documents_apart,
)
from epicrisis.llm.base import load_base
from epicrisis.llm.classify import QuestionLesson
from epicrisis.llm.heads import LabelTokens, NextToken, hidden_states
from epicrisis.llm.pretrain import NarrativeLesson
from epicrisis.settings import InputError, settings_from
from epicrisis.training.checkpoints import Checkpoints, trained_weights
from epicrisis.training.device import make_accelerator
from epicrisis.training.loop import train
from tests.llm.conftest import NARRATIVES, QUESTION

HAS_UNSLOTH = importlib.util.find_spec("unsloth") is not None
NEEDS_UNSLOTH = pytest.mark.skipif(
    not HAS_UNSLOTH, reason=f"not installed: pip install --no-deps unsloth=={VERSION} unsloth_zoo=={VERSION}"
)
BASES = pytest.mark.parametrize("base", ["llama", "mistral"])
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def pretrain_and_stack(tree: dict, folder: Path) -> None:
    """Pretrain with the framework of `tree`, stack over that adapter, and leave all the numbers in `folder`."""
    settings = settings_from(tree, check_files=False)
    accelerator = make_accelerator(settings.training)
    tokenizer = AutoTokenizer.from_pretrained(settings.model.model_name)
    documents = encode_narratives(tokenizer, NARRATIVES)
    tokens = datasets.Dataset.from_dict({"input_ids": documents, "n_tokens": [len(d) for d in documents]})
    base = load_base(settings, accelerator)
    batch = pack(documents, [[0, 1, 2], [3, 4, 5]], tokenizer.pad_token_id)
    numbers = {"packed": hidden_states(base, batch.to(accelerator.device))}
    for i, document in enumerate(documents):
        alone = pack([document], [[0]], tokenizer.pad_token_id)
        numbers[f"alone {i}"] = hidden_states(base, alone.to(accelerator.device))[0]
    model = backend_for(settings.training.framework).attach(base, CLINICAL, settings.lora, 0)
    lesson = NarrativeLesson(tokens, tokenizer, 128)
    numbers["token losses"], module = _losses(NextToken(model), lesson, settings, accelerator, folder / "a")
    numbers |= {f"weight {name}": weight for name, weight in trained_weights(module).items()}
    save_adapter(model, CLINICAL, folder / CLINICAL, "test")
    stacked = _answers(load_base(settings, accelerator), folder, tokenizer, settings)
    lesson = QuestionLesson(tokens, tokenizer, QUESTION, 128, np.array([0, 1, 0, 1, 0, 1]))
    numbers["answer losses"], module = _losses(stacked, lesson, settings, accelerator, folder / "b")
    numbers["answers"] = module.eval()(batch.to(accelerator.device)).detach()
    torch.save({name: number.cpu() for name, number in numbers.items()}, folder / "numbers.pt")


def _answers(base, folder, tokenizer, settings):
    model = stack(base, folder / CLINICAL, settings.lora, clinical_trainable=False, seed=0)
    return LabelTokens(model, answer_token_ids(tokenizer, QUESTION, ["no", "yes"]))


def _losses(module, lesson, settings, accelerator, folder):
    torch.manual_seed(5)  # what dropout drops
    logged = []
    checkpoints = Checkpoints(folder, 1, accelerator)
    options = {"title": "test", "evaluate": lambda m: {"loss": 1.0}, "log": lambda **fields: logged.append(fields)}
    train(module, lesson, settings.training, accelerator, checkpoints, **options)
    return torch.tensor([fields["train/loss"] for fields in logged if "train/loss" in fields]), module


@pytest.fixture(scope="module")
def runs(bases, tmp_path_factory):
    """{(framework, base): folder} of the same training by either library."""
    folders = {}
    for base, path in bases.items():
        for framework in ("peft", "unsloth"):
            folders[framework, base] = folder = tmp_path_factory.mktemp(f"{framework}-{base}")
            tree = {
                "model": {"model_name": str(path), "max_length": 128, "question": QUESTION},
                "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
                "training": {"framework": framework, "bf16": False, "batch_size": 2, "learning_rate": 1e-2},
            }
            tree["training"] |= {"epochs": 4, "logging_steps": 1, "keep_best": False}
            if framework == "peft":
                pretrain_and_stack(tree, folder)
            else:
                call = "import sys, json; from pathlib import Path; "
                call += "from tests.llm.test_unsloth import pretrain_and_stack as run; "
                call += "run(json.loads(sys.argv[1]), Path(sys.argv[2]))"
                subprocess.run([sys.executable, "-c", call, json.dumps(tree), str(folder)], check=True)
    return folders


def _numbers(folder):
    return torch.load(folder / "numbers.pt", weights_only=True)


@NEEDS_UNSLOTH
@BASES
def test_packed_hidden_states_equal_unpacked_ones(runs, base):
    numbers = _numbers(runs["unsloth", base])
    starts = [0, 0]
    for i in range(len(NARRATIVES)):
        alone, row = numbers[f"alone {i}"], i // 3
        together = numbers["packed"][row, starts[row] : starts[row] + len(alone)]
        torch.testing.assert_close(together, alone, **TOLERANCE)
        starts[row] += len(alone)


@NEEDS_UNSLOTH
@BASES
def test_both_libraries_learn_the_same(runs, base):
    ours, theirs = (_numbers(runs[framework, base]) for framework in ("peft", "unsloth"))
    assert ours.keys() == theirs.keys()
    for name, number in ours.items():
        torch.testing.assert_close(theirs[name], number, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


@NEEDS_UNSLOTH
@BASES
def test_both_stages_learn(runs, base):
    numbers = _numbers(runs["unsloth", base])
    for losses in (numbers["token losses"], numbers["answer losses"]):
        assert losses[-1] < 0.9 * losses[0]
    trained = [weight for name, weight in numbers.items() if name.startswith("weight ") and "lora_B" in name]
    assert len(trained) == 2 * 7
    assert all(weight.abs().max() > 0 for weight in trained), "an adapter that no gradient has reached"


@NEEDS_UNSLOTH
def test_an_adapter_of_one_library_loads_in_the_other(runs, bases, tmp_path):
    """Unsloth reads what PEFT has saved, and PEFT what Unsloth has, to the same hidden states."""
    base, ours, theirs = (str(path) for path in (bases["llama"], runs["peft", "llama"], runs["unsloth", "llama"]))
    expected = states("peft", base, ours)
    torch.testing.assert_close(states("peft", base, theirs), expected, **TOLERANCE)
    read = (
        "import sys, torch; from tests.llm.test_unsloth import states; torch.save(states(*sys.argv[1:4]), sys.argv[4])"
    )
    subprocess.run([sys.executable, "-c", read, "unsloth", base, ours, str(tmp_path / "read.pt")], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "read.pt", weights_only=True), expected, **TOLERANCE)


def states(framework: str, base: str, folder: str) -> torch.Tensor:
    """Hidden states of a base with the saved adapter on it."""
    tree = {"model": {"model_name": base, "max_length": 128}, "training": {"framework": framework, "bf16": False}}
    settings = settings_from(tree, check_files=False)
    accelerator = make_accelerator(settings.training)
    model = load_stacked(load_base(settings, accelerator), Path(folder)).eval()
    assert isinstance(model, PeftModel)
    tokenizer = AutoTokenizer.from_pretrained(base)
    batch = pack(encode_narratives(tokenizer, NARRATIVES), [[0, 1, 2], [3, 4, 5]], tokenizer.pad_token_id)
    with torch.no_grad():
        return hidden_states(model, batch.to(accelerator.device)).cpu()


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


def test_another_precision_than_asked_for_is_refused(bases):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"], dtype=torch.float32)
    check_precision(model, load_in_4bit=False, dtype=torch.float32)
    with pytest.raises(InputError) as refused:
        check_precision(model, load_in_4bit=True, dtype=torch.bfloat16)
    assert [problem.where for problem in refused.value.problems] == ["training.load_in_4bit", "training.bf16"]


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
