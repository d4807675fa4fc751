"""One prompt for all stages: a narrative's ids stay as prepared, and the question's are the same behind each."""

import pytest

from epicrisis.corpus.prompt import DEFAULT_TEMPLATE, answer_sequences, make_prompt
from epicrisis.corpus.tokens import encode_narratives, prompt_text
from epicrisis.llm.tiny_models import train_tokenizer
from epicrisis.settings import InputError
from epicrisis.settings.schema import ModelSettings

QUESTION = "Will it happen {soon}?"
NARRATIVE = "63-year-old woman.\nsame day: Migraine"
CHAT = "{% for m in messages %}<|user|>\n{{ m['content'] | trim }}</s>\n{% endfor %}{{ '<|assistant|>\n' }}"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"{NARRATIVE}\n\nQuestion: {QUESTION}\nAnswer: {word}" for word in ("no", "yes")] * 30)


@pytest.fixture
def chatty(tokenizer):
    tokenizer.chat_template = CHAT
    yield tokenizer
    tokenizer.chat_template = None


def test_the_usual_prompt_is_the_narrative_and_then_the_question(tokenizer):
    (narrative,) = encode_narratives(tokenizer, [NARRATIVE])
    prompt = make_prompt(tokenizer, QUESTION)
    question = tokenizer(prompt_text(QUESTION), add_special_tokens=False)["input_ids"]
    assert prompt.lay(narrative) == narrative + question
    assert prompt.n_tokens == len(question)
    assert tokenizer.decode(prompt.lay(narrative)) == f"<s>{NARRATIVE}\n\nQuestion: {QUESTION}\nAnswer:"
    assert ModelSettings().prompt == DEFAULT_TEMPLATE


def test_text_before_the_narrative_comes_after_the_only_bos(tokenizer):
    (narrative,) = encode_narratives(tokenizer, [NARRATIVE])
    prompt = make_prompt(tokenizer, QUESTION, "{question} Read this.\n{narrative}\nSo:")
    laid = prompt.lay(narrative)
    assert tokenizer.decode(laid) == f"<s>{QUESTION} Read this.\n{NARRATIVE}\nSo:"
    assert laid.count(tokenizer.bos_token_id) == 1
    assert len(laid) == len(narrative) + prompt.n_tokens
    inside = laid[len(prompt.before) : len(laid) - len(prompt.after)]
    assert inside == narrative[1:]


def test_a_chat_template_wraps_the_prompt_and_brings_its_own_opening(chatty):
    (narrative,) = encode_narratives(chatty, [NARRATIVE])
    prompt = make_prompt(chatty, QUESTION, chat_template=True)
    turn = [{"role": "user", "content": f"{NARRATIVE}\n\nQuestion: {QUESTION}\nAnswer:"}]
    assert chatty.decode(prompt.lay(narrative)) == chatty.apply_chat_template(turn, tokenize=False)
    assert chatty.bos_token_id not in prompt.lay(narrative)
    assert len(prompt.lay(narrative)) == len(narrative) + prompt.n_tokens


def test_chat_templates_that_are_missing_or_lose_the_text_are_refused(tokenizer, chatty):
    chatty.chat_template = "{{ messages[0]['content'][:5] }}"
    with pytest.raises(InputError, match="does not keep the text"):
        make_prompt(chatty, QUESTION, chat_template=True)
    chatty.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(InputError, match="no users here"):
        make_prompt(chatty, QUESTION, chat_template=True)
    chatty.chat_template = None
    with pytest.raises(InputError, match="has no chat template"):
        make_prompt(chatty, QUESTION, chat_template=True)


def test_answers_follow_after_a_space_but_where_the_prompt_ends_in_one(chatty):
    usual, chat = make_prompt(chatty, QUESTION), make_prompt(chatty, QUESTION, chat_template=True)
    assert [chatty.decode(ids) for ids in answer_sequences(chatty, usual, ["no", "yes"])] == [" no", " yes"]
    assert [chatty.decode(ids) for ids in answer_sequences(chatty, chat, ["no", "yes"])] == ["no", "yes"]
