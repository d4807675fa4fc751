"""WordPiece models that are the same whenever they are trained on the same texts."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

UNKNOWN = "[UNK]"


def train_word_pieces(texts: Sequence[str], size: int, specials: Sequence[str]) -> Tokenizer:
    """A WordPiece model of lower-cased words, at most `size` tokens, the specials (UNKNOWN among them) first.

    As BERT's uncased models have it (Devlin et al. 2019, arXiv:1810.04805). All single letters are among the
    tokens, however small `size` is. The same texts, in any order, give the same model.
    """
    model = _word_piece_model({})
    # The trainer numbers letters within words as it meets them, in no order, and breaks ties by number: they are
    # numbered beforehand, as specials, which the model that is returned does not know as such.
    inside = [f"##{letter}" for letter in sorted(_letters_inside(model, texts))]
    trainer = WordPieceTrainer(vocab_size=size, special_tokens=[*specials, *inside], show_progress=False)
    model.train_from_iterator(texts, trainer)
    return _word_piece_model(model.get_vocab())


def _word_piece_model(vocabulary: dict[str, int]) -> Tokenizer:
    model = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100))
    model.normalizer = BertNormalizer(lowercase=True)
    model.pre_tokenizer = BertPreTokenizer()
    return model


def _letters_inside(model: Tokenizer, texts: Sequence[str]) -> set[str]:
    """The letters that stand in words, but for first ones."""
    told = (model.normalizer.normalize_str(text) for text in texts)
    words = {word for text in told for word, _ in model.pre_tokenizer.pre_tokenize_str(text)}
    return {letter for word in words for letter in word[1:]}
