"""A tiny BERT and its WordPiece tokenizer, of the architecture and the kind that hub encoders have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import decoders, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from epicrisis.corpus.word_pieces import UNKNOWN, train_word_pieces

VOCABULARY = 3000
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": UNKNOWN,
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def new_bert(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **shape: Any) -> BertForMaskedLM:
    """An untrained BERT with a masked-language head for this tokenizer; shape: in place of SHAPE's."""
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **{**SHAPE, **shape})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForMaskedLM(config)


def train_wordpiece(texts: Sequence[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """WordPiece over lower-cased words, as BERT's uncased models have it; the same texts give the same tokens."""
    tokenizer = train_word_pieces(texts, vocabulary, list(SPECIAL.values()))
    tokenizer.decoder = decoders.WordPiece()
    ends = [(name, tokenizer.token_to_id(name)) for name in (SPECIAL["cls_token"], SPECIAL["sep_token"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
