"""Packed patients do not see each other: the same numbers come out as for each patient alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from epicrisis.corpus.packing import pack
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.llm.heads import LabelTokens, NextToken, hidden_states, mean_hidden
from tests.llm.conftest import NARRATIVES


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_packed_hidden_states_equal_unpacked_ones(bases, tokenizer, name):
    model = AutoModelForCausalLM.from_pretrained(bases[name]).eval()
    documents = encode_narratives(tokenizer, NARRATIVES)
    packed = hidden_states(model, pack(documents, [[0, 1, 2], [3, 4, 5]], tokenizer.pad_token_id))
    for row, members in ((0, [0, 1, 2]), (1, [3, 4, 5])):
        start = 0
        for i in members:
            alone = model.get_decoder()(torch.tensor([documents[i]])).last_hidden_state[0]
            together = packed[row, start : start + len(documents[i])]
            torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
            start += len(documents[i])


def test_a_neighbour_in_the_row_changes_nothing(bases, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"]).eval()
    head = LabelTokens(model, [5, 6])
    a, b, c = encode_narratives(tokenizer, NARRATIVES[:3])
    with_b = head(pack([a, b], [[1, 0]], tokenizer.pad_token_id))[0]
    with_c = head(pack([a, c], [[1, 0]], tokenizer.pad_token_id))[0]
    torch.testing.assert_close(with_b, with_c, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(head(pack([b], [[0]], 0))[0], with_b, atol=1e-3)


def test_the_loss_is_transformers_own(bases, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"]).eval()
    ids = encode_narratives(tokenizer, NARRATIVES[:1])[0]
    own = NextToken(model)(pack([ids], [[0]], tokenizer.pad_token_id)) / (len(ids) - 1)
    theirs = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
    torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)


def test_label_token_scores_are_the_full_vocabulary_logits_at_the_answer(bases, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(bases["mistral"]).eval()
    ids = encode_narratives(tokenizer, NARRATIVES[:1])[0]
    full = model(input_ids=torch.tensor([ids])).logits[0, -1, [7, 9]]
    torch.testing.assert_close(LabelTokens(model, [7, 9])(pack([ids], [[0]], 0))[0], full, atol=1e-5, rtol=1e-5)


def test_mean_pooling_is_the_mean_over_each_documents_own_tokens(bases, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"]).eval()
    documents = encode_narratives(tokenizer, NARRATIVES)
    pooled = mean_hidden(model, pack(documents, [[2, 0], [1, 5, 4], [3]], tokenizer.pad_token_id, width=256))
    for i, ids in enumerate(documents):
        alone = model.get_decoder()(torch.tensor([ids])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(pooled[i], alone, atol=1e-4, rtol=1e-3)
