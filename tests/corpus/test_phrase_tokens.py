"""Ids laid end to end are the ids of the whole narrative, for every tokenizer and every text."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.corpus.phrase_tokens import PhraseTokens
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.narrative.assembly import Assembly
from tests.corpus.tokenizer_families import OTHERS, STANDARD, tokenizer_of

FAMILIES = [*STANDARD, *OTHERS]
NARRATIVES = [
    ["Patient: 63-year-old woman.", " Race: White.\n", "3 months before:", " Haemoglobin", " 11.2;", " Asthma\n"],
    ["Patient: 5-year-old boy.\n", "Last hour:", " Asthma;", " Glucose", " 5.5", " mmol/L;", " the patient's"],
    ["Asthma"],
    [],
]

PLAIN = [
    "Asthma",
    "patient's",
    "'s",
    "'S",
    "12",
    "3.5",
    "-1e-05",
    "per",
    "110/70",
    "x",
    "(a)",
    "%",
    "_",
    "½",
    "e\u0301",
]
ODD = ["/", "\u0301", "👍🏽", "\u200d", "糖尿病", "سكري", "\u200f", "हिन्दी", "İ", "ß"]
WORDS = st.sampled_from(PLAIN + ODD)
SPECIAL = st.sampled_from(["</s>", "[SEP]", "[UNK]", "<unk>", "<mask>", "<0x0A>", "▁", "; x"])
WHITE = st.sampled_from([" ", "  ", "\n", "\n\n", "\t", "\r\n", " \n", "\u00a0", "\u2028"])
ENDS = st.sampled_from(["", ";", ".", ":", "\n", ";\n"])
PHRASES = st.tuples(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), ENDS).map("".join)
PLAIN_PHRASES = st.tuples(st.sampled_from(PLAIN), ENDS).map("".join)


def cut(phrases):
    """Pieces as narratives are cut: a space before each, but for the first and what follows a line break."""
    opens = [True, *(phrase.endswith("\n") for phrase in phrases)]
    return [phrase if opening else f" {phrase}" for opening, phrase in zip(opens, phrases, strict=False)]


def narratives_of(phrases):
    return st.lists(st.lists(phrases, max_size=8).map(cut), max_size=4)


ADVERSARIAL = st.lists(
    st.lists(st.lists(WORDS | SPECIAL | WHITE, max_size=4).map("".join) | PHRASES, max_size=6), max_size=4
)


def assemble(narratives):
    texts = list(dict.fromkeys(piece for pieces in narratives for piece in pieces))
    place = {text: i for i, text in enumerate(texts)}
    pieces = [place[piece] for narrative in narratives for piece in narrative]
    bounds = np.cumsum([0, *map(len, narratives)], dtype=np.int64)
    return Assembly(pa.array(texts, type=pa.large_string()), np.array(pieces, dtype=np.int32), bounds)


def whole(tokenizer, narratives):
    return encode_narratives(tokenizer, ["".join(pieces) for pieces in narratives])


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def remembering(family):
    return PhraseTokens(tokenizer_of(family), most_pieces=200)


@given(narratives=narratives_of(PHRASES))
@settings(max_examples=25, deadline=None)
def test_pieces_of_narratives(family, remembering, narratives):
    ids = remembering.encode(assemble(narratives))
    assert ids.to_pylist() == whole(tokenizer_of(family), narratives)
    assert ids.type == pa.large_list(pa.uint32())


@given(narratives=ADVERSARIAL)
@settings(max_examples=60, deadline=None)
def test_pieces_cut_anywhere(family, remembering, narratives):
    assert remembering.encode(assemble(narratives)).to_pylist() == whole(tokenizer_of(family), narratives)


@pytest.mark.parametrize("standard", STANDARD)
@given(narratives=narratives_of(PLAIN_PHRASES))
@settings(max_examples=15, deadline=None)
def test_standard_families_never_fall_back(standard, narratives):
    phrase_tokens = PhraseTokens(tokenizer_of(standard))
    ids = phrase_tokens.encode(assemble([*narratives, *NARRATIVES]))
    assert ids.to_pylist() == whole(tokenizer_of(standard), [*narratives, *NARRATIVES])
    assert phrase_tokens.joint_runs == 0


@pytest.mark.parametrize("other", ["across words", "bytes across words", "looks back", "in Python"])
def test_pieces_that_tokens_reach_across_are_tokenised_together(other):
    phrase_tokens = PhraseTokens(tokenizer_of(other))
    assert phrase_tokens.encode(assemble(NARRATIVES)).to_pylist() == whole(tokenizer_of(other), NARRATIVES)
    assert phrase_tokens.joint_runs >= 2


@pytest.mark.parametrize("name", ["Llama 2", "Mistral 0.3", "across words", "Unigram"])
def test_pieces_tokenised_by_themselves_would_be_wrong(name):
    tokenizer = tokenizer_of(name)
    naive = [[tokenizer.bos_token_id, *(i for ids in encode_pieces(tokenizer, n) for i in ids)] for n in NARRATIVES]
    assert naive != whole(tokenizer, NARRATIVES)


def encode_pieces(tokenizer, pieces):
    return tokenizer(pieces, add_special_tokens=False)["input_ids"] if pieces else []


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("two words at once", ["cells", " per", " field"]),
        ("two words at once", ["cells\n", "3 months"]),
        ("added tokens", ["Asthma;", " xyz"]),
        ("added tokens", ["Asthma\n", "12 months"]),
        ("added tokens", ["Asthma", " <mask>", " Asthma\n", "<mask>"]),
        ("an added word after a space", ["Asthma;", " x"]),
        ("Llama 2", ["Asthma </s>", " Asthma;", " </s>\n", "Asthma"]),
        ("GPT-4o", ["Asthma;\n", "/ Asthma"]),
        ("embedded", ["Asthma;\n\n\n", "3 months", " a\n\n\n", "Asthma"]),
    ],
)
def test_seams_that_this_tokenizer_reaches_across(name, pieces):
    phrase_tokens = PhraseTokens(tokenizer_of(name))
    assert phrase_tokens.encode(assemble([pieces])).to_pylist() == whole(tokenizer_of(name), [pieces])
    assert phrase_tokens.joint_runs >= 1


def test_no_narratives_and_narratives_of_nothing(remembering, family):
    assert remembering.encode(assemble([])).to_pylist() == []
    assert remembering.encode(assemble([[], []])).to_pylist() == whole(tokenizer_of(family), [[], []])


@pytest.mark.parametrize("standard", STANDARD)
def test_lengths_add_up_to_those_of_the_narratives(standard):
    tokenizer, assembly = tokenizer_of(standard), assemble(NARRATIVES[:3])
    phrase_tokens = PhraseTokens(tokenizer)
    inside = phrase_tokens.lengths(assembly.texts)
    at_start = phrase_tokens.lengths(assembly.texts, np.ones(len(assembly.texts), dtype=bool))
    lengths = inside[assembly.pieces]
    lengths[assembly.bounds[:-1]] = at_start[assembly.pieces[assembly.bounds[:-1]]]
    bos = int(tokenizer.bos_token_id is not None)
    expected = [len(ids) - bos for ids in whole(tokenizer, NARRATIVES[:3])]
    assert np.add.reduceat(lengths, assembly.bounds[:-1]).tolist() == expected
    assert inside.dtype == np.int32


def test_a_first_piece_counts_the_space_that_is_put_before_it():
    texts = pa.array(["q;", " q;"], type=pa.large_string())
    phrase_tokens = PhraseTokens(tokenizer_of("Llama 2"))
    assert phrase_tokens.lengths(texts, np.array([True, False])).tolist() == [3, 3]  # ▁ q ;
    assert phrase_tokens.lengths(texts).tolist() == [2, 3]


def test_lengths_of_pieces_that_are_only_tokenised_together():
    tokenizer = tokenizer_of("in Python")
    assert PhraseTokens(tokenizer).lengths(pa.array([" a;", "b"], type=pa.large_string())).tolist() == [3, 1]


def test_each_piece_is_tokenised_once_as_long_as_it_is_remembered(monkeypatch):
    tokenizer, seen = tokenizer_of("Llama 3"), []
    call = type(tokenizer).__call__

    def counting(self, texts, *args, **options):
        seen.extend(texts)
        return call(self, texts, *args, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counting)
    phrase_tokens = PhraseTokens(tokenizer, most_pieces=8)
    few, many = assemble([["Asthma;", " Glucose"]]), assemble([[f"{number};" for number in range(8)]])
    phrase_tokens.encode(few)
    assert seen
    seen.clear()
    phrase_tokens.encode(few)
    assert not seen
    phrase_tokens.encode(many)
    assert phrase_tokens.encode(few).to_pylist() == whole(tokenizer, [["Asthma;", " Glucose"]])
    assert [text for text in seen if "Glucose" in text]


def test_truncation_and_padding_left_on_do_not_matter():
    tokenizer = STANDARD["BERT"]()
    expected = whole(tokenizer, NARRATIVES)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert PhraseTokens(tokenizer).encode(assemble(NARRATIVES)).to_pylist() == expected


def test_special_tokens_read_as_text_where_the_tokenizer_is_told_so():
    tokenizer = STANDARD["Llama 3"]()
    pieces = [["Asthma;", " </s>;", " </s>"]]
    read = PhraseTokens(tokenizer).encode(assemble(pieces)).to_pylist()
    assert read[0].count(tokenizer.eos_token_id) == 2
    tokenizer.split_special_tokens = True
    split = PhraseTokens(tokenizer).encode(assemble(pieces)).to_pylist()
    assert split == whole(tokenizer, pieces)
    assert tokenizer.eos_token_id not in split[0]


def test_the_audit_finds_a_single_other_id_and_tells_no_text():
    phrase_tokens, assembly = PhraseTokens(tokenizer_of("GPT-2")), assemble(NARRATIVES)
    ids = phrase_tokens.encode(assembly)
    phrase_tokens.audit(assembly, ids, sample=10, seed=0)
    phrase_tokens.audit(assemble([]), phrase_tokens.encode(assemble([])), sample=10, seed=0)
    other = ids.to_pylist()
    other[1][3] += 1
    with pytest.raises(RuntimeError, match="1 of 4 narratives") as error:
        phrase_tokens.audit(assembly, pa.array(other, type=ids.type), sample=10, seed=0)
    assert "Asthma" not in str(error.value)
