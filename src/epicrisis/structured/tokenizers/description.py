"""Each event in the words of its code: sub-words of a WordPiece model trained on the train codes' descriptions."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from epicrisis.structured.tokenizers.manner import Manner

DESCRIPTION = Manner("description", 1, values="separate", demographics=("age", "sex", "static"), words=True)


def tokens_of(model: Tokenizer) -> list[str]:
    """The model's tokens in the order of their ids."""
    numbers = model.get_vocab()
    return sorted(numbers, key=numbers.__getitem__)


def word_piece_ids(model: Tokenizer, descriptions: Sequence[str], most: int) -> list[list[int]]:
    """The first `most` ids of each description."""
    encoded = model.encode_batch(list(descriptions), add_special_tokens=False)
    return [encoding.ids[:most] for encoding in encoded]
