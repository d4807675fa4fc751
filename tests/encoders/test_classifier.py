"""The narrative classifier: gradients, overfitting, padding, windows, options, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epicrisis.corpus.tokens import encode_narratives
from epicrisis.encoders.classifier import RecordClassifier, narrative_classifier
from epicrisis.encoders.lesson import NarrativeRows
from epicrisis.encoders.pooling import pool_tokens, pool_windows
from epicrisis.encoders.text_encoder import check_encoder, load_encoder, load_tokenizer, reading_of, weights_fingerprint
from epicrisis.encoders.windows import Frame, Reading, frame_of, lay
from epicrisis.settings import InputError
from epicrisis.training.class_weights import ClassWeights
from epicrisis.training.outcome import ClassOutcome
from tests.encoders.conftest import TEXTS

FRAME = Frame((1,), (2,), 0, 9)


@pytest.fixture
def made(settings, bert, accelerator):
    """made(classes, **changes) → the module, and a function that lays texts before it."""

    def make(n_classes: int = 2, **changes: Any):
        chosen = settings("encoder", **changes)
        tokenizer = load_tokenizer(str(bert))
        reading = reading_of(chosen, tokenizer, check_encoder(str(bert)))
        module = narrative_classifier(chosen, load_encoder(str(bert), chosen, accelerator), n_classes)
        ids = encode_narratives(tokenizer, ["; ".join(TEXTS[n:] + TEXTS[:n]) for n in range(3)])
        tokens = datasets.Dataset.from_dict({"input_ids": ids, "n_tokens": [len(one) for one in ids]})
        return module, tokens, reading

    return make


def lesson(tokens, reading, targets=None, n_classes=2, multilabel=False) -> NarrativeRows:
    weights = ClassWeights.even(n_classes, multilabel=multilabel)
    kind = "multilabel" if multilabel else "multiclass"
    return NarrativeRows(tokens, reading, ClassOutcome(kind, tuple("abc"[:n_classes]), weights), targets)


def trained(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def learn(module: RecordClassifier, rows: NarrativeRows, steps: int, rate: float) -> float:
    optimizer = torch.optim.AdamW(trained(module).values(), lr=rate)
    items = list(range(rows.n_items))
    for _ in range(steps):
        loss = rows.loss_sum(module, rows.collate(items), items)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


TASKS = {
    "binary": (2, np.array([0, 1, 1])),
    "multiclass": (3, np.array([2, 0, 1])),
    "multilabel": (2, np.array([[True, True], [False, True], [False, False]])),
}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_gradients_reach_every_trained_tensor_and_one_batch_is_overfitted(kind, finetune, made) -> None:
    n_classes, targets = TASKS[kind]
    module, tokens, reading = made(n_classes, **{"encoder.finetune": finetune, "lora.r": 8, "lora.lora_alpha": 8})
    rows = lesson(tokens, reading, targets, n_classes, multilabel=kind == "multilabel")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    moving = set(trained(module))
    assert learn(module.eval(), rows, 150, 5e-3) < 0.15
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    never = {name for name in moving - moved if "position_embeddings" not in name and "token_type" not in name}
    assert moved <= moving
    assert not never


def test_lora_trains_adapters_and_head_and_a_head_alone_only_the_head(made) -> None:
    module, *_ = made(2, **{"encoder.finetune": "lora"})
    assert {name.split(".")[0] for name in trained(module) if "lora_" not in name} == {"head"}
    assert len([name for name in trained(module) if "lora_" in name]) == 2 * 6 * 2  # A and B of six layers, twice
    module, tokens, reading = made(2, **{"encoder.finetune": "head"})
    assert set(trained(module)) == {"head.weight", "head.bias"}
    assert not module.train().body.encoder.training, "a frozen encoder drops nothing"
    base = weights_fingerprint(module.body)
    learn(module, lesson(tokens, reading, np.array([0, 1, 1])), 3, 0.1)
    assert weights_fingerprint(module.body) == base


def test_adapters_that_fit_no_module_are_refused(made) -> None:
    with pytest.raises(InputError, match=r"lora\.target_modules"):
        made(2, **{"encoder.finetune": "lora", "lora.target_modules": ["q_proj"]})


CHOICES = [
    {"encoder.pooling": "mean"},
    {"model.max_length": 32},
    {"model.max_length": 32, "encoder.long": "chunk"},
    {"model.max_length": 32, "encoder.long": "chunk", "encoder.chunk_pooling": "max"},
    {"model.max_length": 32, "encoder.long": "chunk", "encoder.max_chunks": 2},
]


def test_every_option_changes_what_is_computed(made) -> None:
    found = []
    for changes in [{}, *CHOICES]:
        module, tokens, reading = made(**changes)
        with torch.no_grad():
            found.append(module.eval()(lesson(tokens, reading).collate([0, 1, 2])))
    for one in range(len(found)):
        for other in range(one):
            assert not torch.allclose(found[one], found[other], atol=1e-5), (one, other)
    module, tokens, reading = made(**{"encoder.dropout": 0.5})
    batch = lesson(tokens, reading).collate([0])
    assert not torch.equal(module.train()(batch), module.eval()(batch))


@pytest.mark.parametrize("changes", [{}, {"encoder.pooling": "mean"}, CHOICES[2], CHOICES[3]])
def test_padding_and_other_documents_change_nothing(changes, made) -> None:
    module, tokens, reading = made(**changes)
    rows = lesson(tokens, reading)
    with torch.no_grad():
        together = module.eval()(rows.collate([0, 1, 2]))
        alone = torch.cat([module(rows.collate([item])) for item in (0, 1, 2)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_bfloat16_computes_and_does_not_store(made) -> None:
    exact, tokens, reading = made()
    lowered, *_ = made(**{"training.bf16": True})
    assert {p.dtype for p in lowered.parameters()} == {torch.float32}
    batch = lesson(tokens, reading).collate([0, 1, 2])
    one, other = exact.eval()(batch), lowered.eval()(batch)
    assert not torch.equal(one, other)
    assert torch.allclose(one, other, atol=2e-2)
    other.sum().backward()
    assert lowered.body.encoder.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_checkpointing_recomputes_the_same_gradients(finetune, made) -> None:
    gradients = []
    for checkpointing in (False, True):
        module, tokens, reading = made(
            **{"encoder.finetune": finetune, "training.gradient_checkpointing": checkpointing}
        )
        for part in module.train().modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        module(lesson(tokens, reading).collate([0, 1]))[:, 0].sum().backward()
        gradients.append({name: p.grad for name, p in trained(module).items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("chunk_pooling", ["mean", "max"])
def test_windows_of_records_that_fit_one_are_the_record_itself(pooling, chunk_pooling, made) -> None:
    whole, tokens, reading = made(**{"encoder.pooling": pooling})
    changes = {"encoder.pooling": pooling, "encoder.long": "chunk", "encoder.chunk_pooling": chunk_pooling}
    cut, _, windows = made(**changes)
    with torch.no_grad():
        expected = whole.eval()(lesson(tokens, reading).collate([0, 1, 2]))
        assert torch.equal(cut.eval()(lesson(tokens, windows).collate([0, 1, 2])), expected)


def test_gradients_flow_through_all_windows(made) -> None:
    module, tokens, reading = made(**{"model.max_length": 32, "encoder.long": "chunk"})
    batch = lesson(tokens, reading).collate([0])
    assert len(batch.input_ids) == 3
    embedding = module.body.encoder.get_input_embeddings()
    module.eval()(batch)[0, 0].backward()
    for window in batch.input_ids:
        middle = window[len(window) // 2]
        assert embedding.weight.grad[middle].abs().sum() > 0


def test_a_frame_is_what_the_tokenizer_lays_around_a_text(bert) -> None:
    tokenizer = load_tokenizer(str(bert))
    frame = frame_of(tokenizer)
    assert (frame.before, frame.after) == ((tokenizer.cls_token_id,), (tokenizer.sep_token_id,))
    ids = encode_narratives(tokenizer, TEXTS[:1])[0]
    assert Reading(frame, 100).cut(ids) == [tokenizer(TEXTS[0])["input_ids"]]


def test_windows_are_even_and_the_latest_tokens_stay() -> None:
    reading = Reading(FRAME, room=4, most=2)
    assert reading.cut([10, 11, 12]) == [[1, 10, 11, 12, 2]]
    assert reading.cut([10, 11, 12, 13, 14]) == [[1, 10, 11, 2], [1, 12, 13, 14, 2]]
    assert reading.cut(list(range(10, 20))) == [[1, 12, 13, 14, 15, 2], [1, 16, 17, 18, 19, 2]]
    assert reading.cut([]) == [[1, 2]]


@given(st.integers(0, 60), st.integers(1, 12), st.integers(1, 5), st.integers(0, 1))
def test_windows_hold_the_latest_tokens_once_and_none_is_too_long(n: int, room: int, most: int, opening: int) -> None:
    reading = Reading(Frame((1,), (2,), opening, 9), room, most)
    ids = list(range(100, 100 + n + opening))
    windows = reading.cut(ids)
    inner = [token for window in windows for token in window[1:-1]]
    assert inner == ids[opening:][-room * most :]
    assert len(windows) <= most
    assert max(map(len, windows)) <= room + 2
    assert reading.places(len(ids)) == sum(map(len, windows))


def test_pooling_by_hand() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert pool_tokens(states, mask, "cls").tolist() == [[1.0, 2.0]]
    assert pool_tokens(states, mask, "mean").tolist() == [[2.0, 3.0]]
    windows, document = torch.tensor([[1.0, 8.0], [3.0, 4.0], [-5.0, 0.0]]), torch.tensor([0, 0, 1])
    assert pool_windows(windows, document, 2, "mean").tolist() == [[2.0, 6.0], [-5.0, 0.0]]
    assert pool_windows(windows, document, 2, "max").tolist() == [[3.0, 8.0], [-5.0, 0.0]]


def test_a_batch_says_what_of_it_is_padding() -> None:
    batch = lay([[[1, 5, 2]], [[1, 2], [1, 6, 7, 2]]], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 5, 2, 9], [1, 2, 9, 9], [1, 6, 7, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.document.tolist() == [0, 1, 1]
    assert (batch.places, batch.useful_tokens, batch.n_documents) == (12, 9, 2)


def test_the_weights_fingerprint_is_of_the_weights(bert: Path, settings, accelerator) -> None:
    one, same = (load_encoder(str(bert), settings(), accelerator) for _ in range(2))
    assert weights_fingerprint(one) == weights_fingerprint(same)
    with torch.no_grad():
        next(one.parameters()).view(-1)[0] += 1
    assert weights_fingerprint(one) != weights_fingerprint(same)
