"""Every way of adapting a base does something, leaves the rest alone, and comes back from disk as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from epicrisis.corpus.packing import best_fit, pack
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.llm.adalora import is_adalora, sharing_ranks
from epicrisis.llm.adapters import CLINICAL, lora_layers, save_adapter, stack
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base_model import load_base, load_tokenizer
from epicrisis.llm.fuse import difference, logits_on_random_tokens
from epicrisis.llm.heads import LabelTokens, NextToken, hidden_states
from epicrisis.llm.new_tokens import new_token_ids
from epicrisis.llm.pretrain import NarrativeLesson
from epicrisis.settings import InputError, settings_from
from epicrisis.training.checkpoints import Checkpoints, trained_weights
from epicrisis.training.loop import train
from epicrisis.training.parameters import parameter_groups
from tests.llm.conftest import NARRATIVES, SHAPE

METHODS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "loftq": {"init_lora_weights": "loftq"},
    "embeddings": {"modules_to_train": ["embeddings"]},
    "head": {"modules_to_train": ["head"]},
    "both": {"modules_to_train": ["embeddings", "head"]},
    "tied": {"modules_to_train": ["embeddings", "head"]},
    "new_tokens": {},
    "new_tokens_tied": {},
    "adalora": {"method": "adalora", "initial_r": 6},
    "prefix": {"method": "prefix", "virtual_tokens": 3},
    "prompt": {"method": "prompt", "virtual_tokens": 3},
    "p_tuning": {"method": "p_tuning", "virtual_tokens": 3, "encoder_hidden_size": 16},
}
N_STEPS = 6
NEW_TOKENS = pl.DataFrame({"token": ["Asthma", "hypertension"], "description": ["Cough pain", "high  blood pressure"]})


@pytest.fixture(scope="module")
def tied(tmp_path_factory, tokenizer):
    """The folder of an untrained Llama whose embedding is its output layer."""
    folder = tmp_path_factory.mktemp("tied")
    torch.manual_seed(0)
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **SHAPE, **ids)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    """A file of new tokens."""
    path = tmp_path_factory.mktemp("tokens") / "codes.csv"
    NEW_TOKENS.write_csv(path)
    return path


def _settings(name, bases, tied, csv, **training):
    lora = {"r": 4, "lora_alpha": 8, **METHODS[name]}
    if name.startswith("new_tokens"):
        lora["new_code_tokens"] = str(csv)
    base = tied if name.endswith("tied") else bases["llama"]
    tree = {
        "model": {"model_name": str(base), "max_length": 128},
        "lora": lora,
        "training": {
            "learning_rate": 1e-2,
            "max_steps": N_STEPS,
            "epochs": N_STEPS,
            "batch_size": 4,
            "logging_steps": 100,
            "eval_steps": 100,
            "bf16": False,
            "keep_best": False,
            **training,
        },
    }
    return settings_from(tree, check_files=False)


def _adapted(settings, accelerator):
    return backend_for("peft").attach(load_base(settings, accelerator), CLINICAL, settings.lora, 0)


def _tokenized(settings, accelerator):
    import datasets

    tokenizer = load_tokenizer(settings.model, accelerator, settings.lora.new_code_tokens)
    ids = encode_narratives(tokenizer, NARRATIVES)
    return tokenizer, datasets.Dataset.from_dict({"input_ids": ids, "n_tokens": [len(i) for i in ids]})


def batch_of(tokenizer):
    documents = encode_narratives(tokenizer, NARRATIVES)
    return pack(documents, best_fit([len(d) for d in documents], 128), tokenizer.pad_token_id)


def states_at_ends(model, tokenizer):
    """Hidden states of each document's last token, and logits of them: what every head reads."""
    batch = batch_of(tokenizer)
    with torch.no_grad():
        hidden = hidden_states(model, batch)[batch.ends[:, 0], batch.ends[:, 1]]
        return model.get_base_model().get_output_embeddings()(hidden).float()


@pytest.fixture(scope="module")
def trained(bases, tied, csv, accelerator, tmp_path_factory):
    """Every method trained for a few steps and saved: {name: its module, what it was before, its folder, settings}."""
    results = {}
    for name in METHODS:
        settings = _settings(name, bases, tied, csv)
        module = NextToken(_adapted(settings, accelerator))
        before = {key: p.detach().clone() for key, p in module.named_parameters()}
        tokenizer, tokens = _tokenized(settings, accelerator)
        folder = tmp_path_factory.mktemp(name)
        with sharing_ranks(module.model, N_STEPS):
            train(
                module,
                NarrativeLesson(tokens, tokenizer, 128),
                settings.training,
                accelerator,
                Checkpoints(folder / "checkpoints", 1, accelerator),
                title="test",
                evaluate=lambda m: {"loss": 1.0},
                log=lambda **_: None,
            )
        save_adapter(module.eval().model, CLINICAL, folder / CLINICAL, name)
        results[name] = SimpleNamespace(
            module=module, before=before, folder=folder, settings=settings, tokenizer=tokenizer
        )
    return results


def _meant_to_learn(name, key):
    if "lora_" in key:
        return True
    if name in ("prefix", "prompt", "p_tuning"):
        return "prompt_encoder" in key
    return ".modules_to_save." in key or ".trainable_tokens_delta." in key


@pytest.mark.parametrize("name", METHODS)
def test_exactly_what_is_meant_to_learn_has_moved(trained, name):
    case = trained[name]
    learnt = [key for key in case.before if _meant_to_learn(name, key)]
    assert learnt
    for key, parameter in case.module.named_parameters():
        moved = not torch.equal(parameter, case.before[key])
        assert moved == (key in learnt), f"{key} {'moved' if moved else 'did not move'}"


@pytest.mark.parametrize("name", METHODS)
def test_what_was_learnt_is_read(trained, name):
    """Each kind of trained tensor, shaken, changes what every head reads."""
    case = trained[name]
    before = states_at_ends(case.module.model, case.tokenizer)
    parameters = {key: p for key, p in case.module.named_parameters() if _meant_to_learn(name, key)}
    kinds = {key.replace("layers.0.", "").replace("layers.1.", "") for key in parameters}
    for kind in sorted(kinds):
        chosen = [p for key, p in parameters.items() if key.replace("layers.0.", "").replace("layers.1.", "") == kind]
        kept = [p.detach().clone() for p in chosen]
        with torch.no_grad():
            for parameter in chosen:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
            shaken = states_at_ends(case.module.model, case.tokenizer)
            for parameter, values in zip(chosen, kept, strict=True):
                parameter.copy_(values)
        assert difference(before, shaken) > 1e-4, kind


RELOAD = """
import json, sys, torch
from pathlib import Path
from accelerate import Accelerator
from epicrisis.llm.adapters import load_stacked
from epicrisis.llm.base_model import load_base, load_tokenizer
from epicrisis.llm.fuse import new_tokens_file
from epicrisis.settings import settings_from
from tests.llm.test_methods import states_at_ends
accelerator = Accelerator(cpu=True)
for name, (tree, folder) in json.loads(sys.argv[1]).items():
    tree["lora"]["new_code_tokens"] = None  # what is beside the adapter must do
    settings = settings_from(tree, check_files=False)
    folder = Path(folder)
    tokens = new_tokens_file([folder / "clinical"])
    model = load_stacked(load_base(settings, accelerator, tokens), folder).eval()
    assert not any(parameter.requires_grad for parameter in model.parameters()), name
    torch.save(states_at_ends(model, load_tokenizer(settings.model, accelerator, tokens)), folder / "logits.pt")
"""


@pytest.fixture(scope="module")
def reloaded(trained):
    """The logits that each method's folder gives in a fresh process."""
    cases = {name: (case.settings.resolved(), str(case.folder)) for name, case in trained.items()}
    subprocess.run([sys.executable, "-c", RELOAD, json.dumps(cases)], check=True)
    return {name: torch.load(case.folder / "logits.pt", weights_only=True) for name, case in trained.items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_fresh_process_gives_the_same_logits(trained, reloaded, name):
    case = trained[name]
    torch.testing.assert_close(reloaded[name], states_at_ends(case.module.model, case.tokenizer), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["prefix", "prompt", "p_tuning"])
def test_every_document_of_a_row_has_the_prompt_and_sees_no_other(trained, name):
    """Packed, each document reads as it does alone; alone it reads as PEFT's own forward has it."""
    model, tokenizer = trained[name].module.model, trained[name].tokenizer
    packed = states_at_ends(model, tokenizer)
    for number, ids in enumerate(encode_narratives(tokenizer, NARRATIVES)):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(packed[number], alone, atol=1e-4, rtol=1e-4)


def test_adalora_ends_with_the_ranks_it_was_to_have(trained):
    layers = lora_layers(trained["adalora"].module.model)
    left = sum(int((layer.lora_E[CLINICAL] != 0).sum()) for layer in layers)
    assert is_adalora(trained["adalora"].module.model)
    assert left == 4 * len(layers)  # of 6 each


@pytest.mark.parametrize("cut_at", [2, 5], ids=["while ranks are taken away", "after"])
def test_a_resumed_adalora_run_is_the_uninterrupted_one_bit_for_bit(bases, tied, csv, accelerator, tmp_path, cut_at):
    def learn(folder, stop_at=None, resume=False):
        changes = {"max_steps": 10, "epochs": 10, "save_steps": 1, "resume": resume}
        settings = _settings("adalora", bases, tied, csv, **changes)
        module = NextToken(_adapted(settings, accelerator))
        tokenizer, tokens = _tokenized(settings, accelerator)
        with sharing_ranks(module.model, 10) as sharing:

            def evaluate(_):
                if sharing.state_dict()["done"] == stop_at:
                    raise KeyboardInterrupt
                return {"loss": 1.0}

            checkpoints = Checkpoints(folder, 1, accelerator, sharing)
            training = settings.training.model_copy(update={"eval_steps": 1})
            lesson = NarrativeLesson(tokens, tokenizer, 128)
            train(
                *(module, lesson, training, accelerator, checkpoints),
                title="test",
                evaluate=evaluate,
                log=lambda **_: None,
            )
        return trained_weights(module)

    whole = learn(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", stop_at=cut_at + 1)
    assert (tmp_path / "cut" / f"step-000000{cut_at}").is_dir()
    resumed = learn(tmp_path / "cut", resume=True)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_an_adalora_adapter_whose_ranks_were_not_shared_out_is_not_saved(bases, tied, csv, accelerator, tmp_path):
    model = _adapted(_settings("adalora", bases, tied, csv), accelerator)
    with pytest.raises(RuntimeError, match="without sharing out its ranks"):
        save_adapter(model, CLINICAL, tmp_path, "x")
    with pytest.raises(InputError, match="cannot share out its ranks in 2 steps"), sharing_ranks(model, 2):
        pass


def test_loftq_brings_the_4_bit_base_nearer_to_the_unrounded_one(bases, tied, csv, accelerator):
    """Also where alpha is not r, which PEFT's own function takes no account of."""
    settings = _settings("loftq", bases, tied, csv)
    whole = settings_from(
        {"model": {"model_name": str(bases["llama"])}, "training": {"load_in_4bit": False, "bf16": False}},
        check_files=False,
    )
    wanted = logits_on_random_tokens(load_base(whole, accelerator))
    rounded = logits_on_random_tokens(load_base(settings, accelerator))
    mended = logits_on_random_tokens(_adapted(settings, accelerator))
    assert torch.linalg.norm(mended - wanted) < 0.95 * torch.linalg.norm(rounded - wanted)


def test_loftq_mends_all_of_the_rounding_where_the_rank_is_full(bases, accelerator):
    tree = {
        "model": {"model_name": str(bases["llama"])},
        "lora": {"r": 128, "lora_alpha": 32, "init_lora_weights": "loftq"},
        "training": {"bf16": False},
    }
    mended = logits_on_random_tokens(_adapted(settings_from(tree, check_files=False), accelerator))
    tree = {"model": tree["model"], "training": {"load_in_4bit": False, "bf16": False}}
    wanted = logits_on_random_tokens(load_base(settings_from(tree, check_files=False), accelerator))
    torch.testing.assert_close(mended, wanted, atol=1e-3, rtol=1e-3)


def test_new_tokens_begin_as_the_mean_of_their_descriptions_tokens(bases, tied, csv, accelerator):
    settings = _settings("new_tokens", bases, tied, csv)
    base = load_base(settings, accelerator)
    tokenizer = load_tokenizer(settings.model, accelerator, csv)
    for matrix in (base.get_input_embeddings().weight, base.get_output_embeddings().weight):
        for token, description in NEW_TOKENS.rows():
            parts = tokenizer(description, add_special_tokens=False)["input_ids"]
            expected = matrix[parts].mean(dim=0)
            torch.testing.assert_close(matrix[tokenizer.convert_tokens_to_ids(token)], expected)
    assert tokenizer.tokenize("Asthma") == ["Asthma"]
    assert "Asthma" not in tokenizer.tokenize("Asthmatic"), "only words of their own are read as new tokens"


def test_only_the_rows_of_new_tokens_learn_and_both_matrices_do(trained):
    model = trained["new_tokens"].module.model
    ids = new_token_ids(model.get_base_model())
    deltas = [p for key, p in model.named_parameters() if ".trainable_tokens_delta." in key]
    assert [tuple(delta.shape) for delta in deltas] == [(len(ids), SHAPE["hidden_size"])] * 2
    adapted = [model.get_base_model().get_input_embeddings(), model.get_base_model().get_output_embeddings()]
    for module in adapted:
        changed = (module.weight != module.original_module.weight).any(dim=1).nonzero().flatten().tolist()
        assert changed == ids


def test_tied_matrices_stay_one(trained):
    base = trained["tied"].module.model.get_base_model()
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight


def test_half_of_a_tied_pair_is_refused(tied, accelerator):
    tree = {"model": {"model_name": str(tied)}, "lora": {"modules_to_train": ["head"]}, "training": {"bf16": False}}
    with pytest.raises(InputError, match="are one matrix, and only head"):
        _adapted(settings_from(tree, check_files=False), accelerator)


def test_whole_modules_learn_and_come_back_in_float32_on_a_bfloat16_base(bases, accelerator, tmp_path, tokenizer):
    tree = {
        "model": {"model_name": str(bases["llama"])},
        "lora": {"modules_to_train": ["embeddings", "head"]},
        "training": {"bf16": True},
    }
    settings = settings_from(tree, check_files=False)
    model = _adapted(settings, accelerator).eval()
    whole = {key: p for key, p in model.named_parameters() if ".modules_to_save." in key}
    assert [p.dtype for p in whole.values()] == [torch.float32] * 2
    with torch.no_grad():
        for parameter in whole.values():
            parameter.add_(1e-5)  # bfloat16 would round it away
    save_adapter(model, CLINICAL, tmp_path, "x")
    again = stack(
        load_base(settings, accelerator),
        tmp_path,
        settings.lora.model_copy(update={"modules_to_train": ()}),
        clinical_trainable=False,
        seed=0,
    ).eval()
    for key, parameter in again.named_parameters():
        if ".modules_to_save." in key:
            assert torch.equal(parameter, whole[key])
            assert not parameter.requires_grad
    answers = [LabelTokens(m, [5, 9]).eval()(batch_of(tokenizer)) for m in (model, again)]
    torch.testing.assert_close(answers[0], answers[1])


def test_two_adapters_with_an_embedding_each_are_refused(trained, accelerator):
    case = trained["embeddings"]
    with pytest.raises(InputError, match="the clinical adapter has an embedding"):
        stack(
            load_base(case.settings, accelerator),
            case.folder / CLINICAL,
            case.settings.lora,
            clinical_trainable=False,
            seed=0,
        )


@pytest.mark.parametrize("name", ["adalora", "prefix", "prompt", "p_tuning"])
def test_nothing_is_stacked_over_what_is_no_lora_adapter(trained, accelerator, name):
    case = trained[name]
    lora = case.settings.lora.model_copy(update={"method": "lora"})
    with pytest.raises(InputError, match="can be added to LoRA's only"):
        stack(load_base(case.settings, accelerator), case.folder / CLINICAL, lora, clinical_trainable=False, seed=0)


def test_a_dora_adapter_lies_under_a_downstream_one(trained, accelerator):
    """Stacked with an untrained adapter, which adds nothing, it answers as it did alone."""
    case = trained["dora"]
    lora = case.settings.lora.model_copy(update={"use_dora": False})
    base = load_base(case.settings, accelerator)
    stacked = stack(base, case.folder / CLINICAL, lora, clinical_trainable=False, seed=0).eval()
    alone = states_at_ends(case.module.model, case.tokenizer)
    torch.testing.assert_close(states_at_ends(stacked, case.tokenizer), alone, atol=1e-5, rtol=1e-5)


def test_embeddings_have_a_learning_rate_of_their_own(trained):
    case = trained["both"]
    training = case.settings.training.model_copy(update={"embedding_learning_rate": 1e-5})
    adapters, embeddings = parameter_groups(case.module, training)
    assert (adapters["lr"], embeddings["lr"]) == (1e-2, 1e-5)
    whole = {id(p) for key, p in case.module.named_parameters() if ".modules_to_save." in key}
    assert {id(p) for p in embeddings["params"]} == whole
    everything = {id(p) for p in case.module.parameters() if p.requires_grad}
    assert {id(p) for p in adapters["params"]} == everything - whole


def test_without_trained_embeddings_there_is_one_group(trained):
    groups = parameter_groups(trained["rslora"].module, trained["rslora"].settings.training)
    assert [group["lr"] for group in groups] == [1e-2]
    assert len(groups[0]["params"]) == 2 * 2 * 7  # A and B, 2 layers, 7 linear layers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("token\nI10\n", "has no column description"),
        ("token,description\n", "names no token"),
        ("token,description\nI10,\n", "1 lines"),
        ("token,description\nI10,a\nI10,b\n", "1 tokens stand in"),
    ],
)
def test_a_file_of_new_tokens_is_checked(bases, tied, accelerator, tmp_path: Path, text, expected):
    path = tmp_path / "codes.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=expected):
        load_base(_settings("new_tokens", bases, tied, path), accelerator)


def test_tokens_that_are_there_already_are_refused(bases, tied, accelerator, tmp_path: Path):
    path = tmp_path / "codes.csv"
    path.write_text("token,description\nQuestion,a word\n")
    settings = _settings("new_tokens", bases, tied, path)
    assert "Question" in load_tokenizer(settings.model, accelerator).get_vocab()
    with pytest.raises(InputError, match="vocabulary already"):
        load_tokenizer(settings.model, accelerator, path)
