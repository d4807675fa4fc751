"""Which characters one match of a tokenizer's splitting pattern can hold, one before the other.

A pattern is taken apart into the atoms that match one character each. If no atom that matches `b` can come
after one that matches `a` in any alternative, then no match holds `a` before `b`, and no attempt at one reads
beyond `b` once it has read `a`: where `a` stands before `b`, what precedes is split as if nothing followed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache

from tokenizers import Regex, pre_tokenizers

_ESCAPE = re.compile(r"\\(?:[pP]\{\^?\w+\}|[sSdDwWnrtfv]|x\{[0-9a-fA-F]+\}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^\w\s])")
_QUANTIFIER = re.compile(r"(?:[?*+]|\{(\d*)(,?)(\d*)\})[?+]?")
_GROUP = re.compile(r"\((?:\?(i)?:|(?!\?))")
_END_OF_SPACE = r"(?!\S)"
_ANY_CASE = "(?i:"
_EMPTY_SET = re.compile(r"\[\^?\]")


class NotUnderstood(ValueError):
    """A pattern uses what this reader does not know, so nothing can be said about its matches."""


@dataclass
class _Path:
    """Atoms in the order of their matching; those within a loop may come again after one another."""

    atoms: list[str] = field(default_factory=list)
    loops: list[tuple[int, int]] = field(default_factory=list)
    shortest: int = 0

    def add(self, other: _Path, least: int, repeats: bool) -> None:
        start = len(self.atoms)
        self.atoms += other.atoms
        self.loops += [(first + start, last + start) for first, last in other.loops]
        self.shortest += other.shortest * least
        if repeats:
            self.loops.append((start, len(self.atoms)))

    def after(self, place: int) -> set[int]:
        """The atoms that may match after the one at this place has."""
        again = {i for first, last in self.loops if first <= place < last for i in range(first, last)}
        return again | set(range(place + 1, len(self.atoms)))


class SplitPattern:
    """What a regular expression's matches can hold. Raises NotUnderstood where it looks around or back."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._paths = _Reader(pattern).alternatives("")
        if any(path.shortest == 0 for path in self._paths):
            raise NotUnderstood("a pattern that matches nothing at all cuts anywhere")

    def may_hold(self, left: str, right: str) -> bool:
        """True if one match might hold the character `left` and, later, the character `right`."""
        for path in self._paths:
            rights = {i for i, atom in enumerate(path.atoms) if _may_match(atom, right)}
            lefts = (i for i, atom in enumerate(path.atoms) if rights and _may_match(atom, left))
            if any(path.after(i) & rights for i in lefts):
                return True
        return False

    def covers(self, left: str, right: str) -> bool:
        """True if `left`, before `right`, belongs to some match. Holds only if no match may hold both."""
        rest = pre_tokenizers.Split(Regex(self.pattern), "removed").pre_tokenize_str(left + right)
        return all(start > 0 for _, (start, _) in rest)


@cache
def _may_match(atom: str, character: str) -> bool:
    if atom.startswith(_ANY_CASE) and character.isalpha():
        return True  # a letter may fold to several, so that two atoms share it
    return not pre_tokenizers.Split(Regex(atom), "removed").pre_tokenize_str(character)


class _Reader:
    """Reads the subset of regular expressions that tokenizers split with."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0

    def alternatives(self, closing: str, ignore_case: bool = False) -> list[_Path]:
        """The alternatives up to the closing bracket, or to the end of the pattern."""
        paths = [_Path()]
        while (following := self._text[self._at : self._at + 1]) != closing:
            if not following or following == ")":
                raise NotUnderstood(f"unbalanced brackets at {self._at}")
            if following == "|":
                self._at += 1
                paths.append(_Path())
            elif self._text.startswith(_END_OF_SPACE, self._at):
                self._at += len(_END_OF_SPACE)
            else:
                part = self._part(ignore_case)
                paths[-1].add(part, *self._quantity())
        self._at += len(closing)
        return paths

    def _part(self, ignore_case: bool) -> _Path:
        if group := _GROUP.match(self._text, self._at):
            self._at = group.end()
            return _one_of(self.alternatives(")", ignore_case or bool(group[1])))
        atom = self._atom()
        return _Path([f"{_ANY_CASE}{atom})" if ignore_case else atom], [], 1)

    def _atom(self) -> str:
        start, first = self._at, self._text[self._at]
        if first == "\\":
            self._escape()
        elif first == "[":
            self._set()
        elif first in "(?*+{^$":
            raise NotUnderstood(f"{first!r} at {start}")
        else:
            self._at += 1
        return self._text[start : self._at]

    def _escape(self) -> None:
        escape = _ESCAPE.match(self._text, self._at)
        if not escape:
            raise NotUnderstood(f"an escape at {self._at}")
        self._at = escape.end()

    def _set(self) -> None:
        if _EMPTY_SET.match(self._text, self._at):
            raise NotUnderstood(f"a set that begins with its end at {self._at}")
        depth = 0
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "\\":
                self._escape()
                continue
            depth += {"[": 1, "]": -1}.get(character, 0)
            self._at += 1
            if depth == 0:
                return
        raise NotUnderstood("a set without an end")

    def _quantity(self) -> tuple[int, bool]:
        """How often the part before matches at least, and whether it can match again after itself."""
        quantifier = _QUANTIFIER.match(self._text, self._at)
        if not quantifier:
            return 1, False
        self._at = quantifier.end()
        if _QUANTIFIER.match(self._text, self._at):
            raise NotUnderstood(f"a quantifier of a quantifier at {self._at}")
        sign = quantifier[0][0]
        least = int(quantifier[1] or 0) if sign == "{" else int(sign == "+")
        # Whether `{2}+` repeats the two depends on the syntax; taken as repeating, it is right under both.
        return least, quantifier[0] not in ("?", "??")


def _one_of(paths: list[_Path]) -> _Path:
    """The alternatives of a group in one path: every order that they allow is an order of it."""
    whole = _Path()
    for path in paths:
        whole.add(path, 1, False)
    whole.shortest = min(path.shortest for path in paths)
    return whole
