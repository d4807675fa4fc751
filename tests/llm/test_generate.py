"""What is written is what the model would write: exactly, in any company, and only what is allowed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from epicrisis.corpus.prompt import make_prompt
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.llm.adapters import CLINICAL, causal_model, lora_layers, save_adapter, stack
from epicrisis.llm.answering import written_answers
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base_model import load_base
from epicrisis.llm.prefixes import ExpandedPrefix, SharedPrefix, attends_plainly
from epicrisis.llm.random_numbers import stream_keys, uniform
from epicrisis.llm.sampling import Decoding, log_probabilities, stop_at, texts_of, write
from epicrisis.llm.trie import make_trie, none_begins_another
from epicrisis.settings import InputError
from tests.llm.conftest import NARRATIVES, QUESTION, SHAPE

PLAIN = {"training.load_in_4bit": False, "training.bf16": False}
KEYS = np.arange(len(NARRATIVES), dtype=np.uint64)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    """Of unequal length; one of a single token."""
    return [*encode_narratives(tokenizer, NARRATIVES[:-1]), [tokenizer.bos_token_id]]


@pytest.fixture
def model(settings, accelerator):
    return load_base(settings("llama", **PLAIN), accelerator).eval()


@pytest.fixture
def sliding(tokenizer):
    """A model that no longer sees what lies eight tokens back."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), sliding_window=8, **SHAPE)).eval()


@pytest.fixture
def stacked(settings, accelerator, tmp_path):
    """Two adapters that both do something, on a base in float32."""
    s = settings("mistral", **PLAIN)
    clinical = backend_for("peft").attach(load_base(s, accelerator), CLINICAL, s.lora, 0)
    _disturb(clinical)
    save_adapter(clinical, CLINICAL, tmp_path, "mistral")
    model = stack(load_base(s, accelerator), tmp_path, s.lora, clinical_trainable=False, seed=0)
    _disturb(model)
    return model.eval()


def _disturb(model):
    torch.manual_seed(1)
    for layer in lora_layers(model):
        for weight in layer.lora_B.values():
            torch.nn.init.normal_(weight.weight, std=0.05)


def _greedy(model, prompt, n, end):
    """The likeliest token, again and again, with everything read anew each time."""
    ids = list(prompt)
    while len(ids) < len(prompt) + n and (len(ids) == len(prompt) or ids[-1] != end):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return [token for token in ids[len(prompt) :] if token != end]


@pytest.mark.parametrize("kind", [SharedPrefix, ExpandedPrefix])
@torch.inference_mode()
def test_a_prompt_that_was_read_once_gives_the_logits_of_reading_everything_anew(model, prompts, tokenizer, kind):
    prefix = kind(model, [prompt[:-1] for prompt in prompts], 3)
    tokens = torch.tensor([prompt[-1] for prompt in prompts for _ in range(3)])
    texts = [list(prompt) for prompt in prompts for _ in range(3)]
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        logits = prefix.step(tokens)
        anew = torch.stack([model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in texts])
        torch.testing.assert_close(logits, anew, atol=2e-5, rtol=1e-4)
        tokens = torch.randint(len(tokenizer), (len(texts),), generator=generator)
        for ids, token in zip(texts, tokens.tolist(), strict=True):
            ids.append(token)
        if step in (1, 3):  # a whole prompt goes, and one continuation of each other
            kept = torch.tensor([place for place in range(len(texts)) if place > 2 and place % 3 != 1])
            prefix.keep(kept)
            tokens, texts = tokens[kept], [texts[place] for place in kept]


@torch.inference_mode()
def test_a_sliding_window_slides_over_the_prompts_own_tokens(sliding, prompts, tokenizer):
    assert not attends_plainly(sliding)
    written = write(sliding, tokenizer, prompts, KEYS, 1, Decoding(12, temperature=0))
    assert written.ids == [_greedy(sliding, prompt, 12, tokenizer.eos_token_id) for prompt in prompts]


@pytest.mark.parametrize("which", ["model", "stacked"])
def test_greedy_is_what_transformers_generates(which, request, prompts, tokenizer):
    model = request.getfixturevalue(which)
    assert attends_plainly(causal_model(model))
    written = write(model, tokenizer, prompts, KEYS, 1, Decoding(20, temperature=0, batch_size=4))
    for prompt, ids in zip(prompts, written.ids, strict=True):
        expected = model.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        assert ids == [token for token in expected[0, len(prompt) :].tolist() if token != tokenizer.eos_token_id]


def test_adapters_change_what_is_written(stacked, prompts, tokenizer):
    ours = write(stacked, tokenizer, prompts, KEYS, 1, Decoding(20, temperature=0)).ids
    with stacked.disable_adapter():
        bases = write(stacked, tokenizer, prompts, KEYS, 1, Decoding(20, temperature=0)).ids
    assert ours != bases


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_samples_do_not_depend_on_their_company(model, prompts, tokenizer, batch_size):
    decoding = Decoding(15, seed=4, batch_size=64)
    whole = write(model, tokenizer, prompts, KEYS, 4, decoding)
    small = write(model, tokenizer, prompts, KEYS, 4, Decoding(15, seed=4, batch_size=batch_size))
    assert small.ids == whole.ids
    np.testing.assert_allclose(small.log_probability, whole.log_probability, atol=1e-3)
    some = write(model, tokenizer, prompts[3:1:-1], KEYS[3:1:-1], 2, decoding)
    assert some.ids == [whole.ids[place] for place in (12, 13, 8, 9)]


def test_seed_key_sample_and_temperature_each_change_what_is_drawn(model, prompts, tokenizer):
    def drawn(keys=KEYS, **changes):
        return write(model, tokenizer, prompts, keys, 2, Decoding(**{"max_new_tokens": 12, "seed": 1, **changes})).ids

    first = drawn()
    assert first == drawn()
    assert first[0::2] != first[1::2]
    assert first != drawn(seed=2)
    assert first != drawn(keys=KEYS + np.uint64(1))
    assert first != drawn(temperature=3.0)
    greedy = drawn(temperature=0)
    assert greedy[0::2] == greedy[1::2]
    assert drawn(top_k=1) == drawn(top_p=1e-6) == drawn(temperature=1e-4) == greedy


def test_tokens_are_drawn_as_often_as_they_are_likely(model, prompts, tokenizer):
    n = 4000
    written = write(model, tokenizer, prompts[:1], KEYS[:1], n, Decoding(1, temperature=1.5, batch_size=n))
    with torch.inference_mode():
        expected = torch.softmax(model(input_ids=torch.tensor(prompts[:1])).logits[0, -1] / 1.5, -1).double().numpy()
    tokens = [ids[0] if ids else tokenizer.eos_token_id for ids in written.ids]
    found = np.bincount(tokens, minlength=len(expected)) / n
    # Five standard errors, and room for the tokens that are hardly ever drawn.
    assert (np.abs(found - expected) < 5 * np.sqrt(expected / n) + 2 / n).all()


@given(
    seed=st.integers(-(2**31), 2**70),
    key=st.integers(0, 2**64 - 1),
    sample=st.integers(0, 10**6),
    step=st.integers(0, 10**4),
)
def test_random_numbers_are_splitmix64_at_a_place_of_its_own(seed, key, sample, step):
    def mix(bits):
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
        return bits ^ bits >> 31

    golden = 0x9E3779B97F4A7C15
    stream = mix((mix(mix(seed % 2**64) ^ key) + golden * (sample + 1)) % 2**64)
    begin = mix((stream + golden * (step + 1)) % 2**64)
    expected = [((mix((begin + golden * place) % 2**64) >> 12) + 0.5) / 2**52 for place in (1, 2, 3)]
    streams = stream_keys(seed, np.array([key], dtype=np.uint64), np.array([sample]), torch.device("cpu"))
    assert uniform(streams, step, 3)[0].tolist() == expected


def test_own_log_probability_is_that_of_all_tokens_written(model, prompts, tokenizer):
    """Of the model itself: what is forbidden or narrowed does not make the rest likelier."""
    decoding = Decoding(6, temperature=0.7, top_k=5, seed=3, forbidden=(tokenizer.eos_token_id,))
    written = write(model, tokenizer, prompts, KEYS, 1, decoding)
    for prompt, ids, found in zip(prompts, written.ids, written.log_probability, strict=True):
        with torch.inference_mode():
            scores = torch.log_softmax(model(input_ids=torch.tensor([prompt + ids])).logits[0].double(), -1)
        expected = sum(scores[len(prompt) - 1 + place, token].item() for place, token in enumerate(ids))
        assert found == pytest.approx(expected, abs=1e-4)


def test_log_probabilities_of_given_continuations(model, prompts):
    continuations = [[5], [5, 9, 7], [8, 3]]
    found = log_probabilities(model, prompts, continuations, batch_size=4)
    for row, prompt in enumerate(prompts):
        for column, ids in enumerate(continuations):
            with torch.inference_mode():
                scores = torch.log_softmax(model(input_ids=torch.tensor([prompt + ids])).logits[0].double(), -1)
            expected = sum(scores[len(prompt) - 1 + place, token].item() for place, token in enumerate(ids))
            assert found[row, column] == pytest.approx(expected, abs=1e-4)


def test_what_ends_a_continuation(model, prompts, tokenizer):
    free = write(model, tokenizer, prompts, KEYS, 8, Decoding(40, temperature=2.0, seed=1))
    texts = texts_of(tokenizer, free.ids)
    assert {"end", "length"} <= set(free.endings())
    lengths = np.array(list(map(len, free.ids)))
    assert all(lengths[free.ending == 2] == 40)
    assert all(lengths[free.ending == 0] < 40)
    stopped = write(
        model, tokenizer, prompts, KEYS, 8, Decoding(40, temperature=2.0, seed=1, stops=(stop_at(["an", ";"]),))
    )
    assert "stop" in stopped.endings()
    for ids, whole, ending in zip(stopped.ids, texts, stopped.endings(), strict=True):
        (text, before) = texts_of(tokenizer, [ids, ids[:-1]])
        assert whole.startswith(text)  # up to there, what is drawn is the same
        assert (ending == "stop") == ("an" in text or ";" in text)
        assert "an" not in before
        assert ";" not in before


def test_what_is_forbidden_is_never_written(model, prompts, tokenizer):
    end = tokenizer.eos_token_id
    written = write(model, tokenizer, prompts, KEYS, 8, Decoding(40, temperature=2.0, seed=1, forbidden=(end,)))
    assert set(written.endings()) == {"length"}


def test_constrained_writing_writes_the_labels_and_nothing_else(model, prompts, tokenizer):
    labels = none_begins_another([[5], [5, 9], [8, 3, 4]], tokenizer.eos_token_id)
    trie = make_trie(labels, len(tokenizer))
    decoding = Decoding(10, temperature=50.0, trie=trie, batch_size=16)
    written = write(model, tokenizer, prompts, KEYS, 30, decoding)
    assert {tuple(ids) for ids in written.ids} == {(5,), (5, 9), (8, 3, 4)}
    assert set(written.endings()) == {"end"}


def test_a_trie_refuses_labels_that_it_cannot_tell_apart():
    assert none_begins_another([[5], [5, 9], [8]], 2) == [[5, 2], [5, 9], [8]]
    for sequences in ([[5], [5, 9]], [[5], [5]], [[5], []]):
        with pytest.raises(ValueError, match="the beginning of another"):
            make_trie(sequences, 10)


def test_answers_are_tokenised_as_they_follow_the_question(tokenizer):
    question_and_answers = tokenizer(f"\n\nQuestion: {QUESTION}\nAnswer: yes", add_special_tokens=False)["input_ids"]
    (no, yes) = written_answers(tokenizer, make_prompt(tokenizer, QUESTION), ["no", "yes"])
    assert question_and_answers[-len(yes) :] == yes
    assert no != yes
    assert texts_of(tokenizer, [no, yes]) == [" no", " yes"]


def test_a_prompt_without_tokens_is_no_prompt(model, tokenizer):
    with pytest.raises(ValueError, match="without any token"):
        write(model, tokenizer, [[]], KEYS[:1], 1, Decoding(3))


def test_an_adapter_before_the_text_is_refused(settings, accelerator, prompts, tokenizer):
    s = settings("llama", **PLAIN)
    prompted = s.lora.model_copy(update={"method": "prompt"})
    model = backend_for("peft").attach(load_base(s, accelerator), CLINICAL, prompted, 0)
    with pytest.raises(InputError, match="lies before the text"):
        write(model, tokenizer, prompts, KEYS, 1, Decoding(3))


def test_bfloat16_writes_what_it_writes_one_by_one(settings, accelerator, prompts, tokenizer):
    """Rounding differs between batches, so it is near misses, not equality, that can be asked for."""
    s = settings("llama", **{"training.load_in_4bit": False, "training.bf16": True})
    model = load_base(s, accelerator).eval()
    assert next(model.parameters()).dtype == torch.bfloat16
    written = write(model, tokenizer, prompts, KEYS, 1, Decoding(1, temperature=0))
    for prompt, own in zip(prompts, written.log_probability, strict=True):
        with torch.inference_mode():
            scores = torch.log_softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1].float(), -1)
        assert own == pytest.approx(scores.max().item(), abs=0.1)
        assert math.isfinite(own)
