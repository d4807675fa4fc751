"""What stands around a narrative when it is asked about: one prompt for training, scoring, generation and explanation.

A template is text with `{narrative}` and `{question}` in it. What stands before the narrative, the narrative and what
stands after it are tokenised each by itself and laid end to end, so that the narrative's ids are those it is prepared
with, and the question's are the same behind every narrative. Narratives are cut to a budget of their own beforehand
(see `Telling`); nothing of the prompt ever is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from epicrisis.corpus.tokens import continuation_ids, opening_ids
from epicrisis.settings import refuse

NARRATIVE, QUESTION = "{narrative}", "{question}"
DEFAULT_TEMPLATE = "{narrative}\n\nQuestion: {question}\nAnswer:"
_PLACE = "<<<the narrative goes here>>>"


@dataclass(frozen=True)
class Prompt:
    """Token ids around a narrative. before: with BOS; after: the question; text_after: what `after` spells.

    n_opening: how many ids a prepared narrative begins with (BOS) that `before` has already.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    text_after: str
    n_opening: int

    def lay(self, narrative: Sequence[int]) -> list[int]:
        """The whole prompt's ids for a prepared narrative's."""
        return [*self.before, *narrative[self.n_opening :], *self.after]

    @property
    def n_tokens(self) -> int:
        """Tokens that the prompt adds to a prepared narrative's."""
        return len(self.before) + len(self.after) - self.n_opening


def make_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, template: str = DEFAULT_TEMPLATE, chat_template: bool = False
) -> Prompt:
    """The prompt of a template that holds `{narrative}` once; chat_template: as a user's turn in a chat.

    Raises InputError where the tokenizer has no chat template, or one that does not keep the text as it is.
    """
    text = template.replace(NARRATIVE, _PLACE).replace(QUESTION, question)
    before, _, after = (_as_chat(tokenizer, text) if chat_template else text).partition(_PLACE)
    opening = opening_ids(tokenizer)
    own_opening = [] if chat_template else opening  # a chat template writes its own BOS, or wants none
    return Prompt((*own_opening, *_encode(tokenizer, before)), tuple(_encode(tokenizer, after)), after, len(opening))


def answer_sequences(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answers: Sequence[str]) -> list[list[int]]:
    """Each answer's token ids as it follows the prompt.

    Raises InputError for an answer that would change how the prompt before it is tokenised.
    """
    return [continuation_ids(tokenizer, list(prompt.after), prompt.text_after, answer) for answer in answers]


def _as_chat(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    where = "model.chat_template"
    if not tokenizer.chat_template:
        raise refuse(where, "this tokenizer has no chat template", "set it to false, or take an instruction-tuned base")
    turn = [{"role": "user", "content": text}]
    try:
        chat = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise refuse(where, f"the tokenizer's chat template fails ({error})", "set it to false") from error
    if chat.count(_PLACE) != 1:
        raise refuse(where, "the tokenizer's chat template does not keep the text as it is", "set it to false")
    return chat


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
