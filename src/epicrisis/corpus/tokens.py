"""The one way in which a narrative becomes token ids, for pretraining, classification and generation alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from epicrisis.settings import refuse


def encode_narratives(tokenizer: PreTrainedTokenizerBase, narratives: Sequence[str]) -> list[list[int]]:
    """Token ids per narrative: BOS where the tokenizer has one, then the text; no EOS, no padding."""
    if not narratives:
        return []
    bos = opening_ids(tokenizer)
    encoded = tokenizer(list(narratives), add_special_tokens=False)["input_ids"]
    return [bos + ids for ids in encoded]


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What stands before every narrative: BOS, or nothing where the tokenizer has none."""
    return [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []


def prompt_text(question: str) -> str:
    """What follows the narrative when an answer is asked for."""
    return f"\n\nQuestion: {question}\nAnswer:"


def continuation_ids(tokenizer: PreTrainedTokenizerBase, prompt: list[int], text: str, answer: str) -> list[int]:
    """The token ids of an answer right after a prompt, whose ids `prompt` and end `text` are the same.

    A space comes between them unless the prompt ends in one, or in a line break. Raises InputError for an answer
    that would change how the prompt before it is tokenised.
    """
    space = "" if not text or text[-1].isspace() else " "
    joint = tokenizer(f"{text}{space}{answer}", add_special_tokens=False)["input_ids"]
    if joint[: len(prompt)] != prompt or len(joint) == len(prompt):
        raise refuse(
            "model.answers",
            f"{answer!r} changes how the question before it is tokenised",
            "choose another word, or set model.head: score",
        )
    return joint[len(prompt) :]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that decides the ids: vocabulary, merges, normalisation, BOS."""
    text = tokenizer.backend_tokenizer.to_str() + repr(tokenizer.bos_token_id)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
