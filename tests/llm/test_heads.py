"""Answers of one token or several score as the whole vocabulary's logits say, and every part of a head learns."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from epicrisis.corpus.packing import pack
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.llm.answer_tree import answer_tree
from epicrisis.llm.heads import LabelTokens, ScoreHead
from epicrisis.settings import InputError
from tests.llm.conftest import NARRATIVES

ONE_TOKEN = [[7], [9], [11]]
ALIKE = [[7, 20, 21], [7, 20, 22], [9], [7, 23]]


@pytest.fixture(params=["sdpa", "eager"])
def model(request, bases):
    return AutoModelForCausalLM.from_pretrained(bases["llama"], attn_implementation=request.param).eval()


@pytest.fixture
def documents(tokenizer):
    return encode_narratives(tokenizer, NARRATIVES)


def naive(model, documents, answers):
    """Each answer read behind each document by itself, over the whole vocabulary; [n_documents, n_answers]."""
    table = torch.zeros(len(documents), len(answers))
    for row, document in enumerate(documents):
        for column, answer in enumerate(answers):
            logits = model(input_ids=torch.tensor([document + answer])).logits[0].log_softmax(-1)
            places = range(len(document) - 1, len(document) + len(answer) - 1)
            table[row, column] = sum(logits[place, token] for place, token in zip(places, answer, strict=True))
    return table


@pytest.mark.parametrize("answers", [ONE_TOKEN, ALIKE], ids=["one token", "alike"])
def test_label_tokens_are_the_answers_log_probabilities(model, documents, tokenizer, answers):
    head = LabelTokens(model, answers)
    batch = pack(documents, [[3, 0, 5], [1], [4, 2]], tokenizer.pad_token_id)
    with torch.no_grad():
        expected = naive(model, documents, answers)
        torch.testing.assert_close(head.log_probabilities(batch), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(head(batch).softmax(-1), expected.softmax(-1), atol=1e-5, rtol=1e-5)


def test_the_gradient_through_branches_is_that_of_the_naive_way(bases, documents, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"]).eval()
    gradients = []
    for scores in (
        lambda: LabelTokens(model, ALIKE)(pack(documents[:2], [[0, 1]], tokenizer.pad_token_id)),
        lambda: naive(model, documents[:2], ALIKE),
    ):
        model.zero_grad()
        scores().log_softmax(-1)[:, 1].sum().backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_what_answers_begin_with_alike_is_read_once():
    tree = answer_tree(ALIKE)
    assert tree.tokens == (7, 20)
    assert tree.parents == (0, 1)
    assert tree.edges == (((0, 7), (1, 20), (2, 21)), ((0, 7), (1, 20), (2, 22)), ((0, 9),), ((0, 7), (1, 23)))
    assert answer_tree([[7, 1], [9, 2]]).n_nodes == 0  # the first tokens tell them apart


@pytest.mark.parametrize("answers", [[[7], [7, 8]], [[7, 8], [7, 8]]])
def test_an_answer_that_begins_another_is_refused(answers):
    with pytest.raises(InputError, match="the beginning of another's"):
        answer_tree(answers)


def test_answers_alike_are_refused_where_branches_cannot_be_kept_apart(bases, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"])
    fork = [[7, 20], [7, 21], [9, 20], [9, 21]]
    assert LabelTokens(model, fork).tree.n_nodes == 2  # SDPA can
    monkeypatch.setattr("epicrisis.llm.heads.as_mask", lambda _, seen: torch.ones_like(seen).tril()[:, None])
    with pytest.raises(InputError, match="cannot tell such apart"):
        LabelTokens(model, fork)


@pytest.mark.parametrize("answers", [ONE_TOKEN, ALIKE], ids=["one token", "alike"])
def test_an_adapter_on_the_output_layer_takes_part_and_learns(bases, documents, tokenizer, answers):
    base = AutoModelForCausalLM.from_pretrained(bases["llama"])
    model = get_peft_model(base, LoraConfig(target_modules=["lm_head"], r=2, task_type="CAUSAL_LM")).eval()
    head = LabelTokens(model, answers)
    batch = pack(documents, [[i] for i in range(6)], tokenizer.pad_token_id)
    before = head(batch)
    before.softmax(-1)[:, 0].sum().backward()
    layer = base.lm_head
    assert layer.lora_B["default"].weight.grad.abs().sum() > 0
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    assert not torch.allclose(head(batch).softmax(-1), before.softmax(-1), atol=1e-3)
    torch.testing.assert_close(
        head(batch).softmax(-1), naive(model, documents, answers).softmax(-1), atol=1e-5, rtol=1e-4
    )


def test_the_score_head_has_a_logit_for_each_class_and_learns(bases, documents, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"]).requires_grad_(False)
    head = ScoreHead(model, 5, seed=0)
    logits = head(pack(documents, [[0, 1, 2, 3, 4, 5]], tokenizer.pad_token_id))
    assert logits.shape == (6, 5)
    logits[:, 3].sum().backward()
    assert head.score.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [3]
