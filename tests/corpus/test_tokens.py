"""One way of tokenising: BOS once, no EOS until pretraining adds it, a question that is never cut."""

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from epicrisis.corpus.tokens import encode_narratives, prompt_text
from epicrisis.llm.base_model import with_own_pad
from epicrisis.llm.classify import QuestionLesson
from epicrisis.llm.pretrain import NarrativeLesson
from epicrisis.llm.tiny_models import train_tokenizer
from epicrisis.settings import InputError

QUESTION = "Will it happen?"


@pytest.fixture(scope="module")
def tokenizer():
    texts = [prompt_text(QUESTION) + f" {word}" for word in ("no", "yes", "none")] * 30
    return train_tokenizer([*texts, "Haemoglobin 11.2 g/dL; Asthma"] * 5)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    ids = encode_narratives(tokenizer, ["Asthma; Haemoglobin 11.2 g/dL", "Haemoglobin"])
    return datasets.Dataset.from_dict({"input_ids": ids, "n_tokens": [len(i) for i in ids]})


def test_bos_once_and_no_eos(tokenizer, tokens):
    for ids in tokens["input_ids"]:
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.eos_token_id not in ids


def test_pretraining_supervises_eos_exactly_once_per_document(tokenizer, tokens):
    lesson = NarrativeLesson(tokens, tokenizer, 64)
    batch = lesson.collate(range(lesson.n_items))
    assert int((batch.labels == tokenizer.eos_token_id).sum()) == len(tokens)
    assert batch.supervised_tokens == lesson.units(range(lesson.n_items))


def test_classification_reads_the_same_ids_and_ends_with_the_question(tokenizer, tokens):
    lesson = QuestionLesson(tokens, tokenizer, QUESTION, 64)
    batch = lesson.collate([0])
    length = int(batch.ends[0, 1]) + 1
    question = tokenizer(prompt_text(QUESTION), add_special_tokens=False)["input_ids"]
    assert batch.input_ids[0, :length].tolist() == tokens[0]["input_ids"] + question


def test_padding_is_never_the_end_of_sequence(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "word": 3}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    llama_like = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>", pad_token="</s>")
    assert with_own_pad(llama_like).pad_token == "<unk>"
    stubborn = Tokenizer(models.WordLevel({"</s>": 0, "word": 1}, unk_token="word"))
    with pytest.raises(InputError, match="end of sequence"):
        with_own_pad(PreTrainedTokenizerFast(tokenizer_object=stubborn, eos_token="</s>"))
