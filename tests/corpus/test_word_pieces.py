"""WordPiece models are a function of their texts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from epicrisis.corpus.word_pieces import UNKNOWN, train_word_pieces

SPECIALS = ["[PAD]", UNKNOWN, "[CLS]"]
TEXTS = ["63-year-old woman. Essential hypertension; Hämoglobin 13.1 g/dL", "Chest pain; type 2 diabetes, asthma"] * 5


def tokens(model: Tokenizer) -> list[str]:
    return sorted(model.get_vocab(), key=model.token_to_id)


@pytest.mark.parametrize("size", [10, 80, 120])
def test_the_same_texts_in_any_order_give_the_same_model(size: int) -> None:
    first = tokens(train_word_pieces(TEXTS, size, SPECIALS))
    assert first[:3] == SPECIALS
    for _ in range(5):
        assert tokens(train_word_pieces(TEXTS[::-1], size, SPECIALS)) == first
    assert len(first) <= size or size == 10, "only the single letters may be more"


def test_words_that_come_often_become_tokens_and_letters_suffice_for_the_others() -> None:
    model = train_word_pieces(TEXTS, 200, SPECIALS)
    assert model.encode("CHEST  pain").tokens == ["chest", "pain"]
    assert model.encode("hamoglobin").tokens == ["hamoglobin"], "accents are no letters of their own"
    assert UNKNOWN not in model.encode("nephro").tokens
    assert model.encode("ж").tokens == [UNKNOWN]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text("abcABC 1,.é", max_size=30), min_size=1, max_size=6), st.integers(1, 60))
def test_every_trained_text_is_read_without_unknowns(texts: list[str], size: int) -> None:
    model = train_word_pieces(texts, size, SPECIALS)
    assert not [text for text in texts if UNKNOWN in model.encode(text).tokens]
    assert tokens(model) == tokens(train_word_pieces(texts, size, SPECIALS))
