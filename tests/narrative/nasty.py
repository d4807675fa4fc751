"""Codes, terms, texts and units that look like one another, like values and like what stands between events."""

from __future__ import annotations

from hypothesis import strategies as st

from epicrisis.narrative import Lookups, load_lookups
from epicrisis.narrative.times import GapLabel, read_gap_labels
from tests.narrative.histories import SHIPPED, codes_table

GAPS: tuple[GapLabel, ...] = read_gap_labels(SHIPPED / "time_lookup.csv")

WORDS = [
    "a", "A", "b", "é", "a:", ":", ": ", "%", '"', "9", "-5", "+.5", "1e5", "1e39", "<0.5", "> 60", "110/70", "12.5.",
    "[c]", "[c 9]", "[a]", "[", "]", "(c)", "c]", "[c", "{", ";", "\n", "\t", "\u00a0", "  ", "%3B", "[%3B]",
    "Patient:", "Patient: ", "last hour", "last hour: ", "3 days later", "3 days before: ", "less than", "1 hour later",
    "2020-03-02: ", "2020-03-02", "woman", "63 years old", "63-year-old woman", "Demographic Age", "no history",
    "unnamed code", "high", "decile 3", "None", "nan", "___", "term", ". ", "E. coli",
]  # fmt: skip

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).flatmap(
    lambda words: st.sampled_from(["", " ", ": "]).map(lambda glue: glue.join(words))
)
float32s = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 9.0, -5.0, 0.5, 1e5, 1e-7, 3e38, float("nan")]),
)
vocabularies = st.dictionaries(
    st.one_of(st.sampled_from(["c", "a", "9", "c 9", "c: 9", ";", "[", "%", "%3B", "LAB//RESULT//1//mg/dL"]), texts),
    texts,
    min_size=1,
    max_size=8,
)
"""code → description."""


def described(vocabulary: dict[str, str]) -> Lookups:
    """Lookups in which each code has its description, with the shipped words for gaps."""
    table = codes_table(*((code, words, None) for code, words in vocabulary.items()))
    return load_lookups(codes=table, time=SHIPPED / "time_lookup.csv")
