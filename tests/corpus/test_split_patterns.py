"""Which characters a splitting pattern's matches can hold, one before the other."""

import pytest

from epicrisis.corpus.split_patterns import NotUnderstood, SplitPattern
from tests.corpus.tokenizer_families import BLOOM, GPT_4O, LLAMA_3


@pytest.mark.parametrize(
    ("pattern", "left", "right", "held"),
    [
        (LLAMA_3, "a", " ", False),
        (LLAMA_3, ";", " ", False),
        (LLAMA_3, " ", " ", True),
        (LLAMA_3, ";", "\n", True),
        (LLAMA_3, "\n", "3", False),
        (LLAMA_3, "\n", "/", False),
        (GPT_4O, "\n", "/", True),
        (BLOOM, ".", " ", False),
        (BLOOM, "a", "b", True),
        (r"\w+ per", "7", " ", True),
        (r"\w+ per", ";", " ", False),
        (r"(?:[ab] ?)+", "a", " ", True),
        (r"(?:x|y)z", "y", "z", True),
        (r"(?:x|y)z", "z", "y", False),
        (r"[^\s&&[^a]]{2}", "a", "a", True),
        (r"a{1} ?", "a", " ", True),
        (r" ?a{1}", "a", " ", False),
        (r"(?i:s) ", "ß", " ", True),
    ],
)
def test_what_a_match_may_hold(pattern, left, right, held):
    assert SplitPattern(pattern).may_hold(left, right) is held


@pytest.mark.parametrize(
    "pattern",
    [r"(?<=a)b", r"\bword", "^a", r"(?=a)", r"a(?!b)", r"(a)\1", "a*", "(?i)a", "(a", "a)", "[a", "[]a]", "x{2}?+"],
)
def test_patterns_that_are_not_understood(pattern):
    with pytest.raises(NotUnderstood):
        SplitPattern(pattern)


def test_a_character_in_no_match_is_not_covered():
    assert SplitPattern(BLOOM).covers("a", " ")
    assert not SplitPattern(BLOOM).covers(".", " ")
    assert not SplitPattern(r"\s+(?!\S)").covers("\n", "a")
