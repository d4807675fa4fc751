"""Each event in the words of its code: sub-words of a WordPiece model trained on the train codes' descriptions."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from epicrisis.structured.tokenizers.manner import Manner
from epicrisis.structured.vocabulary import SPECIALS

DESCRIPTION = Manner("description", 1, values="separate", demographics=("age", "sex", "static"), words=True)


def train_word_pieces(descriptions: Sequence[str], size: int) -> Tokenizer:
    """A lower-casing WordPiece model of at most `size` tokens, the specials first; each description counts once.

    All single letters are among the tokens, however small `size` is. The same descriptions give the same model.
    """
    model = _word_piece_model({})
    # The trainer numbers letters within words as it meets them, in no order, and breaks ties by number: they are
    # numbered beforehand, as specials, which the model that is returned does not know as such.
    inside = [f"##{letter}" for letter in sorted(_letters_inside(model, descriptions))]
    trainer = WordPieceTrainer(vocab_size=size, special_tokens=[*SPECIALS, *inside], show_progress=False)
    model.train_from_iterator(sorted(descriptions), trainer)
    return _word_piece_model(model.get_vocab())


def _word_piece_model(vocabulary: dict[str, int]) -> Tokenizer:
    model = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    model.normalizer = BertNormalizer(lowercase=True)
    model.pre_tokenizer = BertPreTokenizer()
    return model


def _letters_inside(model: Tokenizer, descriptions: Sequence[str]) -> set[str]:
    """The letters that stand in words, but for first ones."""
    told = (model.normalizer.normalize_str(text) for text in descriptions)
    return {letter for text in told for word, _ in model.pre_tokenizer.pre_tokenize_str(text) for letter in word[1:]}


def tokens_of(model: Tokenizer) -> list[str]:
    """The model's tokens in the order of their ids."""
    numbers = model.get_vocab()
    return sorted(numbers, key=numbers.__getitem__)


def word_piece_ids(model: Tokenizer, descriptions: Sequence[str], most: int) -> list[list[int]]:
    """The first `most` ids of each description."""
    encoded = model.encode_batch(list(descriptions), add_special_tokens=False)
    return [encoding.ids[:most] for encoding in encoded]
