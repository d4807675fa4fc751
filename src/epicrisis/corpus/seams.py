"""Where two texts that meet can be tokenised apart from one another.

A seam is the join of two texts. Only two kinds are judged: a space begins the right text, or a line break ends
the left one. At both, whatever normalises text does so on either side alone. A seam is separable if

- the pre-tokenizer always cuts there, whatever else the two texts hold, and neither side's splits depend on
  the other side; or
- it splits neither side otherwise for it, and the model is a BPE whose vocabulary has no token that holds the
  two characters next to each other, so that no merge can join them.

All that is decided by the last character of the left text and the first of the right, as the normalizer leaves
them. Where a step of the tokenizer is not known here, no seam that it gets to see is separable: what cannot be
shown to be right is tokenised together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from epicrisis.corpus.split_patterns import NotUnderstood, SplitPattern

SPACE, LINE = 1, 2
"""The kinds of seam, as bits: the right text begins with a space; the left text ends in a line break."""

ANCHORS = {SPACE: ("a", " a"), LINE: ("a\n", "a")}
"""Per kind, a text to stand before such a seam and one to stand behind it."""

Json = dict[str, Any]

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_RUN_OF_SPACES = {"Regex": " {2,}"}
_BY_CHARACTER = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Nmt", "Precompiled")
_AT_STARTS = ("Prepend", "Strip")
_BY_PAIR = (
    "Whitespace",
    "WhitespaceSplit",
    "BertPreTokenizer",
    "Punctuation",
    "Digits",
    "CharDelimiterSplit",
    "Metaspace",
)
_APART = chr(0x10FFFF)


class Seams:
    """Which seams are separable for a tokenizer.

    guarded: ids of the added tokens beside which no seam is separable, because they take the white space next
    to them, or because what follows them is treated as the start of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.guarded: frozenset[int] = frozenset()
        self._cut: dict[tuple[str, str], bool] = {}
        self._kinds = 0
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return
        try:
            self._read(backend)
        except NotUnderstood:
            return
        self._kinds = SPACE | LINE
        self._kinds = sum(kind for kind, anchors in ANCHORS.items() if self._fit(kind, *anchors))

    def edges(self, texts: Sequence[str]) -> np.ndarray:
        """uint8 [n_texts, 2]: the kinds of seam that each text may begin with, and end with.

        The seam of two texts is separable if the left one's ends and the right one's beginnings have a kind
        in common.
        """
        edges = np.zeros((len(texts), 2), dtype=np.uint8)
        if self._kinds:
            for place, text in enumerate(texts):
                edges[place] = self._edges(text)
        return edges

    def _read(self, backend: Tokenizer) -> None:
        pipeline = json.loads(backend.to_str())
        normalizers = list(_flat(pipeline["normalizer"], "normalizers"))
        splitters = list(_flat(pipeline["pre_tokenizer"], "pretokenizers"))
        self._normalize = _normalizer([step for step in normalizers if step["type"] not in _AT_STARTS])
        self._space, self._line = self._normalize(" "), self._normalize("\n")
        self._steps = [_step(splitter) for splitter in splitters]
        self._vocabulary = _Vocabulary(pipeline["model"])
        added = list(backend.get_added_tokens_decoder().items())
        if any(token.single_word and not _has_word_ends(token.content, backend) for _, token in added):
            raise NotUnderstood("an added token with white space at its end that must stand alone as a word")
        self._held = set(_pairs_of(form(token.content) for _, token in added for form in (str, self._normalize)))
        starts_matter = any(step["type"] in _AT_STARTS for step in normalizers) or any(map(_minds_starts, splitters))
        self.guarded = frozenset(
            i for i, token in added if starts_matter or token.lstrip or token.rstrip or token.single_word
        )

    def _fit(self, kind: int, before: str, behind: str) -> bool:
        return bool(kind & self._edges(before)[1] & self._edges(behind)[0])

    def _edges(self, text: str) -> tuple[int, int]:
        told = self._normalize(text)
        if not _is_word(told):
            return 0, 0
        return self._head(text, told) & self._kinds, self._tail(text, told) & self._kinds

    def _head(self, text: str, told: str) -> int:
        if text[0] == " ":
            return SPACE if told.startswith(self._space) else 0
        return LINE if _is_word(told[0]) and self._separable(("\n", text[0]), (self._line, told[0])) else 0

    def _tail(self, text: str, told: str) -> int:
        if text[-1] == "\n":
            return LINE if told.endswith(self._line) else 0
        return SPACE if _is_word(told[-1]) and self._separable((text[-1], " "), (told[-1], self._space)) else 0

    def _separable(self, written: tuple[str, str], told: tuple[str, str]) -> bool:
        """Whether a seam between these two characters, as written and as normalised, is separable."""
        if told not in self._cut:
            self._cut[told] = self._cuts(*told)
        return self._cut[told] and self._held.isdisjoint((written, told))

    def _cuts(self, left: str, right: str) -> bool:
        for step in self._steps:
            if step.cuts(left, right):
                return True
            if not step.passes(left, right):
                return False
            left, right = step.told(left)[-1], step.told(right)[0]
        return self._vocabulary.never_joins(left, right)


def _is_word(text: str) -> bool:
    return bool(text.replace("▁", " ").strip())


def _has_word_ends(content: str, backend: Tokenizer) -> bool:
    forms = [content, backend.normalizer.normalize_str(content) if backend.normalizer else content]
    return all(form and _is_word(form[0]) and _is_word(form[-1]) for form in forms)


def _flat(step: Json | None, name: str) -> Iterator[Json]:
    if step is None:
        return
    if step["type"] == "Sequence":
        for part in step[name]:
            yield from _flat(part, name)
    else:
        yield step


def _pairs_of(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        yield from pairwise(text)


def _normalizer(steps: list[Json]) -> Callable[[str], str]:
    """Normalises text from the midst of a narrative. Raises NotUnderstood for a step that may look past a seam."""
    for step in steps:
        if step["type"] not in _BY_CHARACTER and not _replaces_one(step):
            raise NotUnderstood(f"the normalizer {step['type']}")
    if not steps:
        return str
    normalizer = _empty_tokenizer(normalizer={"type": "Sequence", "normalizers": steps}).normalizer
    if not all(normalizer.normalize_str(white) in (" ", "▁", "\n") for white in " \n"):
        raise NotUnderstood("a normalizer that makes something else of white space")
    return normalizer.normalize_str


def _replaces_one(step: Json) -> bool:
    """A replacement of one character, or of runs of spaces, which no seam of these kinds stands in."""
    if step["type"] != "Replace":
        return False
    return len(step["pattern"].get("String", "")) == 1 or step["pattern"] == _RUN_OF_SPACES


def _minds_starts(splitter: Json) -> bool:
    """True for a splitter that puts something before a text that begins without it."""
    return bool(splitter.get("add_prefix_space")) or splitter.get("prepend_scheme", "never") != "never"


def _empty_tokenizer(**parts: Json) -> Tokenizer:
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    rest = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], **rest, "model": empty, **parts}))


class _Step(Protocol):
    """One pre-tokenizer's part in a seam between two characters."""

    def cuts(self, left: str, right: str) -> bool:
        """It always splits there, and what it does to either side does not depend on what the other holds."""

    def passes(self, left: str, right: str) -> bool:
        """Even if it does not split there, what it does to either side does not depend on what the other holds."""

    def told(self, character: str) -> str:
        """The character as the next step sees it."""


def _step(splitter: Json) -> _Step:
    kind = splitter["type"]
    try:
        if kind == "ByteLevel":
            return _Bytes(splitter)
        if kind == "Split":
            return _Pattern(splitter["pattern"], splitter["behavior"], splitter["invert"])
    except NotUnderstood:
        return _Unknown()
    return _ByPair(splitter) if kind in _BY_PAIR else _Unknown()


class _Unknown:
    """May split anything for any reason, which is of no consequence once an earlier step has cut."""

    def cuts(self, left: str, right: str) -> bool:
        return False

    passes = cuts

    def told(self, character: str) -> str:
        return character


class _ByPair:
    """Splits between two characters, or does not, for what these two are and for nothing else."""

    def __init__(self, splitter: Json) -> None:
        self._splitter = _empty_tokenizer(pre_tokenizer=splitter).pre_tokenizer
        self._replacement = splitter.get("replacement", " ")

    def cuts(self, left: str, right: str) -> bool:
        return all(not start < 1 < end for _, (start, end) in self._splitter.pre_tokenize_str(left + right))

    def passes(self, left: str, right: str) -> bool:
        return True

    def told(self, character: str) -> str:
        return self._replacement if character == " " else character


class _Pattern:
    """Splits where a pattern matches."""

    def __init__(self, pattern: Json, behavior: str, invert: bool) -> None:
        literal = "".join(rf"\x{{{ord(character):x}}}" for character in pattern.get("String", ""))
        self._pattern = SplitPattern(pattern.get("Regex") or literal)
        self._parts_matches = behavior in ("Isolated", "Removed") or (behavior == "MergedWithPrevious" and not invert)

    def cuts(self, left: str, right: str) -> bool:
        return self._parts_matches and self.passes(left, right) and self._pattern.covers(left, right)

    def passes(self, left: str, right: str) -> bool:
        return not self._pattern.may_hold(left, right)

    def told(self, character: str) -> str:
        return character


class _Bytes:
    """Writes bytes as letters, after splitting as GPT-2 does, if it is to."""

    def __init__(self, splitter: Json) -> None:
        self._pattern = _Pattern({"Regex": _GPT2}, "Isolated", False) if splitter.get("use_regex", True) else None
        self._letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def cuts(self, left: str, right: str) -> bool:
        return self._pattern is not None and self._pattern.cuts(left, right)

    def passes(self, left: str, right: str) -> bool:
        return self._pattern is None or self._pattern.passes(left, right)

    def told(self, character: str) -> str:
        return self._letters.pre_tokenize_str(character)[0][0]


class _Vocabulary:
    """A model that reads on over a seam: only a BPE's vocabulary can tell that it joins nothing there."""

    def __init__(self, model: Json) -> None:
        if model.get("dropout"):
            raise NotUnderstood("a model that tokenises at random")
        self._vocabulary = model["vocab"] if model["type"] == "BPE" else {}
        self._whole_words = bool(model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
        in_bytes = bool(model.get("byte_fallback"))
        self._in_bytes = in_bytes and all(f"<0x{byte:02X}>" in self._vocabulary for byte in range(256))

    def never_joins(self, left: str, right: str) -> bool:
        if self._whole_words or not self._vocabulary:
            return False
        symbols = self._symbol(left, ">"), self._symbol(right, "<")
        return None not in symbols and symbols not in self._pairs

    def _symbol(self, character: str, of_bytes: str) -> str | None:
        """What stands at the seam for the character: itself, or the bracket of `<0x0A>`; None if it is unknown."""
        if character in self._vocabulary:
            return character
        return of_bytes if self._in_bytes else None

    @cached_property
    def _pairs(self) -> set[tuple[str, str]]:
        """The characters that stand next to each other in some token."""
        letters = np.frombuffer(_APART.join(self._vocabulary).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        pairs = np.unique(letters[:-1].astype(np.uint64) << np.uint64(32) | letters[1:])
        return {(chr(pair >> 32), chr(pair & 0xFFFFFFFF)) for pair in pairs.tolist()}
