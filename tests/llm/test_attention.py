"""Documents of a row do not see each other whatever computes attention, and what cannot run here is refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from epicrisis.corpus.packing import pack
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.llm import attention
from epicrisis.llm.attention import choose_attention, documents_are_apart, read_rows
from epicrisis.llm.heads import LabelTokens, hidden_states
from epicrisis.settings import InputError
from tests.llm.conftest import NARRATIVES

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ALIKE = [[7, 20], [7, 21], [9]]


@pytest.fixture(autouse=True)
def uncompiled():
    """Flex attention's own arithmetic without a compiler, which would take a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(params=["sdpa", "eager", "flex_attention"])
def model(request, bases):
    return AutoModelForCausalLM.from_pretrained(bases["llama"], attn_implementation=request.param).eval()


@torch.no_grad()
def test_changing_one_document_changes_nothing_of_the_other(model, tokenizer):
    a, b, c = encode_narratives(tokenizer, NARRATIVES[:3])
    heads = {"last": LabelTokens(model, [5, 6]), "branches": LabelTokens(model, ALIKE)}
    for head in heads.values():
        with_b, with_c, alone = (
            head(pack(documents, [order], tokenizer.pad_token_id)).softmax(-1)[0]
            for documents, order in (([a, b], [1, 0]), ([a, c], [1, 0]), ([a], [0]))
        )
        torch.testing.assert_close(with_b, with_c, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(with_b, alone, atol=1e-5, rtol=1e-4)
    assert documents_are_apart(model)


@torch.no_grad()
def test_every_implementation_gives_the_same_states(model, bases, tokenizer):
    batch = pack(encode_narratives(tokenizer, NARRATIVES), [[0, 1, 2], [3, 4], [5]], tokenizer.pad_token_id)
    reference = AutoModelForCausalLM.from_pretrained(bases["llama"], attn_implementation="sdpa").eval()
    torch.testing.assert_close(hidden_states(model, batch), hidden_states(reference, batch), atol=1e-5, rtol=1e-4)


def test_a_base_that_lets_documents_see_each_other_is_found_out(bases):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"]).eval()
    forward = model.model.forward
    model.model.forward = lambda position_ids=None, **others: forward(**others)  # forgets where documents begin
    assert not documents_are_apart(model)


def test_flash_attention_gets_one_row_end_to_end(bases, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"]).eval()
    seen = []
    forward = model.model.forward
    model.model.forward = lambda input_ids, **others: (seen.append(input_ids.shape), forward(input_ids, **others))[1]
    ids, positions = torch.arange(12).reshape(2, 6), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    expected = read_rows(model, ids, positions)
    monkeypatch.setattr(attention, "attention_of", lambda _: "flash_attention_2")
    torch.testing.assert_close(read_rows(model, ids, positions), expected, atol=1e-5, rtol=1e-4)
    assert seen == [(2, 6), (1, 12)]


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "installed", "found"),
    [
        ("auto", CPU, torch.float32, True, "sdpa"),
        ("auto", GPU, torch.bfloat16, False, "sdpa"),
        ("auto", GPU, torch.bfloat16, True, "flash_attention_2"),
        ("auto", GPU, torch.float32, True, "sdpa"),
        ("eager", CPU, torch.float32, False, "eager"),
        ("flex_attention", GPU, torch.float32, False, "flex_attention"),
    ],
)
def test_what_is_asked_for_is_had(monkeypatch, asked, device, dtype, installed, found):
    monkeypatch.setattr(attention, "find_spec", lambda _: object() if installed else None)
    assert choose_attention(asked, device, dtype) == found


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "why"),
    [
        (CPU, torch.bfloat16, True, "needs a GPU"),
        (GPU, torch.bfloat16, False, "pip install flash-attn"),
        (GPU, torch.float32, True, "cannot compute in torch.float32"),
    ],
)
def test_flash_attention_is_refused_with_the_reason(monkeypatch, device, dtype, installed, why):
    monkeypatch.setattr(attention, "find_spec", lambda _: object() if installed else None)
    with pytest.raises(InputError, match=why):
        choose_attention("flash_attention_2", device, dtype)


def test_flex_attention_reads_on_a_cpu_and_does_not_learn_there():
    assert choose_attention("flex_attention", CPU, torch.float32) == "flex_attention"
    with pytest.raises(InputError, match="no gradient on a CPU"):
        choose_attention("flex_attention", CPU, torch.float32, learning=True)
