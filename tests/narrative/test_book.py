"""The code book: every code has words of its own, whatever the terms, and whatever value follows them."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.narrative import get_style
from epicrisis.narrative.book import Book, build_book, match_terms
from epicrisis.narrative.phrases import phrase_rows
from epicrisis.settings.problems import InputError
from tests.narrative.nasty import described, texts, vocabularies

TIMELINE, FLAT = get_style("timeline"), get_style("flat")

PLAIN = {"A//1": "Lactate", "B//1": "Ferritin"}


def book_of(vocabulary: dict[str, str], style: str = "timeline") -> Book:
    codes = pl.Series("code", sorted(vocabulary), dtype=pl.String)
    return build_book(codes, described(vocabulary), get_style(style))


def terms_of(vocabulary: dict[str, str], style: str = "timeline") -> dict[str, str]:
    return dict(book_of(vocabulary, style).terms.select("code", "term").iter_rows())


def test_a_term_of_its_own_stays_as_it_is():
    assert terms_of(PLAIN) == {"A//1": "Lactate", "B//1": "Ferritin"}


def test_of_codes_that_share_a_term_all_but_the_first_are_told_with_their_code():
    vocabulary = {"LOINC//2160-0": "Creatinine", "LAB//50912": "Creatinine", "A//1": "creatinine"}
    assert terms_of(vocabulary) == {
        "LAB//50912": "Creatinine",
        "LOINC//2160-0": "Creatinine [LOINC//2160-0]",
        "A//1": "creatinine",
    }


def test_terms_that_only_the_styles_shortenings_make_alike_are_told_apart_in_that_style():
    vocabulary = {"A//1": "Glucose [Mass/volume] in Blood", "A//2": "Glucose [Moles/volume] in Blood"}
    assert terms_of(vocabulary) == {"A//1": "Glucose in Blood", "A//2": "Glucose in Blood [A//2]"}
    assert terms_of(vocabulary, "flat") == vocabulary


def test_a_style_that_cannot_be_read_back_shows_no_codes():
    assert set(terms_of({"A//1": "Glucose", "A//2": "Glucose"}, "visits").values()) == {"Glucose"}


@pytest.mark.parametrize(
    ("code", "mark"),
    [
        ("LOINC//2160-0", "[LOINC//2160-0]"),
        ("Blood Pressure Lying", "[Blood Pressure Lying]"),
        ("a;b", "[a%3Bb]"),
        ("a%3Bb", "[a%253Bb]"),
        ("a[1]", "[a%5B1%5D]"),
        ("a\nb", "[a%0Ab]"),
        ("a  b ", "[a%20%20b%20]"),
        ("a: b:c", "[a%3A b:c]"),
        ("é", "[é]"),
        ("a\u00a0b", "[a%C2%A0b]"),
    ],
)
def test_codes_stand_in_brackets_on_one_line(code, mark):
    vocabulary = {"!other": "same", code: "same"}
    assert terms_of(vocabulary) == {"!other": "same", code: f"same {mark}"}


def test_a_term_that_another_continues_as_a_value_would_is_told_with_its_code():
    assert terms_of({"A//1": "race", "A//2": "race: White", "A//3": "racemose"}) == {
        "A//1": "race [A//1]",
        "A//2": "race: White",
        "A//3": "racemose",
    }


def test_to_mark_one_term_can_make_another_ambiguous():
    # "a: [A//3]" would read as the value "[A//3]" of "a".
    assert terms_of({"A//1": "a", "A//2": "a:", "A//3": "a:"}) == {
        "A//1": "a [A//1]",
        "A//2": "a:",
        "A//3": "a: [A//3]",
    }


def test_a_term_that_imitates_the_mark_of_a_code_loses_its_square_brackets():
    vocabulary = {"c": "Iron", "d": "Iron", "e": "Iron [c]", "f": "Iron [Mass]"}
    assert terms_of(vocabulary) == {"c": "Iron", "d": "Iron [d]", "e": "Iron (c)", "f": "Iron [Mass]"}


@pytest.mark.parametrize(
    "term",
    [
        "last hour",
        "3 days later",
        "1 month before",
        "1 to 5 hours later",
        "2020-03-02",
        "woman",
        "63-year-old woman",
        "8 months old",
        "Demographic Age 63",
        "Demographic Age 8 months",
        "no history",
        "Patient",
        "unnamed code",
    ],
)
def test_a_term_that_says_what_no_event_says_is_told_with_its_code(term):
    assert terms_of({"A//1": term}) == {"A//1": f"{term} [A//1]"}


@pytest.mark.parametrize(
    ("term", "told"),
    [
        ("Patient: moved", "Patient, moved"),
        ("3 days later: rash", "3 days later, rash"),
        ("1 to 5 hours later: rash", "1 to 5 hours later, rash"),
        ("last hour: rash", "last hour, rash"),
    ],
)
def test_a_term_that_begins_as_a_line_does_gets_a_comma(term, told):
    assert terms_of({"A//1": term}) == {"A//1": told}


@pytest.mark.parametrize(
    ("vocabulary", "colon"),
    [
        ({"A//1": "Anion gap"}, False),
        ({"A//1": "Anion gap", "A//2": "Anion gap 4"}, True),
        ({"A//1": "Anion gap", "A//2": "Anion gap, venous 4"}, False),
        ({"A//1": "Anion gap 4"}, True),
        ({"A//1": "Lymphocytes %"}, True),
        ({"A//1": "less than"}, True),  # "less than 1 hour later" is a gap
        ({"A//1": "Demographic Age"}, True),
    ],
)
def test_a_number_follows_after_a_colon_where_it_could_belong_to_the_term(vocabulary, colon):
    assert book_of(vocabulary).terms.filter(code="A//1")["colon"].item() is colon


def test_codes_that_the_book_does_not_know_leave_its_words_alone():
    known = {"A//1": "Lactate", "A//2": "race", "A//3": "Anion gap", "A//4": "sex: X"}
    others = {"B//1": "Lactate", "B//2": "race: White", "B//3": "Anion gap 4", "B//4": "sex", "B//5": "Ferritin"}
    book = build_book(pl.Series(list(known)), described(known | others), TIMELINE)
    looked_up = book.look_up(pl.Series([*others, "A//1", "B//1", None]))
    assert dict(looked_up.select("code", "term").iter_rows()) == {
        "B//1": "Lactate [B//1]",
        "B//2": "[B//2] race: White",
        "B//3": "[B//3] Anion gap 4",
        "B//4": "sex [B//4]",
        "B//5": "Ferritin",
        "A//1": "Lactate",
    }
    alone = pl.concat([book.look_up(pl.Series([code])) for code in looked_up["code"]])
    assert alone.equals(looked_up)


def test_the_first_of_several_codes_keeps_the_term():
    vocabulary = {"A//1": "same", "A//2": "same", "A//3": "other"}
    backwards = build_book(pl.Series(list(vocabulary)[::-1]), described(vocabulary), TIMELINE)
    assert dict(backwards.terms.select("code", "term").iter_rows()) == {
        "A//1": "same [A//1]",
        "A//2": "same",
        "A//3": "other",
    }


def test_fingerprint_tells_terms_and_styles_apart():
    prints = [book_of(PLAIN).fingerprint(), book_of(PLAIN, "flat").fingerprint()]
    prints += [book_of(PLAIN | {"A//1": "Lactat"}).fingerprint(), book_of(PLAIN | {"C//1": "Iron"}).fingerprint()]
    assert len(set(prints)) == 4


def test_a_book_comes_back_as_it_was_saved(tmp_path):
    book = book_of(PLAIN)
    book.save(tmp_path / "deep" / "book.parquet")
    again = Book.load(tmp_path / "deep" / "book.parquet", described(PLAIN), TIMELINE)
    assert again.terms.equals(book.terms)
    assert again.fingerprint() == book.fingerprint()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["book.parquet"]


def test_what_is_no_book_of_the_style_is_refused(tmp_path):
    path = tmp_path / "book.parquet"
    with pytest.raises(InputError, match="no code book"):
        Book.load(path, described(PLAIN), TIMELINE)
    path.write_text("code,term")
    with pytest.raises(InputError, match="not readable"):
        Book.load(path, described(PLAIN), TIMELINE)
    pl.DataFrame({"code": ["a"]}).write_parquet(path)
    with pytest.raises(InputError, match="its columns"):
        Book.load(path, described(PLAIN), TIMELINE)
    book_of(PLAIN).save(path)
    with pytest.raises(InputError, match="one of timeline@2, not of flat@2"):
        Book.load(path, described(PLAIN), FLAT)


def test_an_empty_book_tells_codes_and_matches_nothing():
    book = build_book(pl.Series([], dtype=pl.String), described(PLAIN), TIMELINE)
    assert book.look_up(pl.Series(["A//1"]))["term"].to_list() == ["Lactate"]
    assert match_terms(pl.Series(["Lactate", ""]), book.terms)["code"].to_list() == [None, None]


valued = st.one_of(
    st.just(" "),
    st.sampled_from([" 9", " -5 a", " 0.5 9 b", " 1e+22 a: b"]),
    texts.map(lambda text: " ".join(text.split())).filter(bool).map(": {}".format),
)


@settings(max_examples=60, deadline=None)
@given(vocabularies, st.sampled_from(["timeline", "flat"]), valued)
def test_the_longest_term_of_a_phrase_is_the_one_it_was_told_with(vocabulary, style, value):
    book = book_of(vocabulary, style)
    assert book.terms["term"].is_unique().all()
    codes, terms, colons = (book.terms[name] for name in ("code", "term", "colon"))
    numbered = value.startswith(" ") and value != " "
    told = [
        (term + (":" if colon and numbered else "") + value).strip() for term, colon in zip(terms, colons, strict=True)
    ]
    assert match_terms(pl.Series(told), book.terms)["code"].to_list() == codes.to_list()
    assert not {";", "\n"} & set("".join(terms))


@settings(max_examples=30, deadline=None)
@given(vocabularies, vocabularies, st.sampled_from(["timeline", "flat"]), st.booleans(), texts)
def test_no_phrase_of_an_unknown_code_reads_as_a_code_of_the_book(known, others, style, has_number, text):
    others = {f"unknown {code}": words for code, words in others.items()}
    book = build_book(pl.Series(list(known)), described(known | others), get_style(style))
    keys = pl.DataFrame(
        [(code, has_number, None, None if has_number else text, "9") for code in others],
        schema={"code": pl.String, "has_number": bool, "value_class": pl.Int16, "text_value": str, "unit": str},
        orient="row",
    )
    phrases = phrase_rows(keys, book)["before"] + (" 9 9" if has_number else "")
    assert match_terms(phrases.unique(), book.terms)["code"].null_count() == phrases.n_unique()
