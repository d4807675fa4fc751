"""Styles as data: what stands where in a narrative. A change in how a style reads is a new version of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from epicrisis.settings.problems import refuse

Picks = Literal["header", "latest_each", "latest_values", "unmeasured", "all"]
"""Which events a section tells: what belongs into the header; the latest event of each code; the latest of
each code that has a value; those without a number; or all. All but the first leave the header's out."""

HEADER = 0
"""The place of the header among a style's sections: it is the first of each."""

Groups = Literal["none", "when", "visit"]
"""What makes a group of events, which can open with a heading: nothing (every event is one), equal times as they
are told, or a visit."""


@dataclass(frozen=True)
class Section:
    """A part of a narrative: which events, in which order, and what stands between them.

    What ends an event is `separator` inside a group, `group_end` before the next group, `end` before the next
    section, and `close` at the end of the narrative. None of them ends in a space, so that every piece of
    text begins where tokenizers begin a word.
    """

    picks: Picks
    title: str = ""
    """Opens the section."""
    groups: Groups = "none"
    heading: str = ""
    """Opens a group; `{}` is when it was."""
    newest_first: bool = False
    """Latest group and event first; a visit is told forwards all the same."""
    notes: bool = False
    """Each event is followed by whether its value is normal, and when it was: ` (low, 3 days before)`."""
    separator: str = ";"
    group_end: str = ";"
    end: str = ";"
    close: str = ""
    priority: int = 0
    """Where tokens are short, sections of higher number lose events first; within one, the oldest go first."""


@dataclass(frozen=True)
class Style:
    """How a history is laid out as text; name and version are stored with whatever is trained on it."""

    name: str
    version: int
    sections: tuple[Section, ...]
    person: Literal["sentence", "facts"]
    """`sentence`: 63-year-old woman · `facts`: Demographic Gender Female; Demographic Age 63."""
    times: Literal["distance", "gap"]
    """Relative times are distances back from the prediction time, or gaps between one event and the next."""
    empty: str
    """The narrative of a history in which nothing is known."""
    cut: str
    """The narrative of a history of which the budget left nothing."""
    invertible: bool = False
    """Codes with the same words are told apart, so that `parse` recovers every event."""
    prefixes: tuple[tuple[str, str], ...] = ()
    """Words in front of every phrase of a vocabulary: (vocabulary, words)."""
    shortenings: tuple[tuple[str, str], ...] = ()
    """What is cut from terms, as (regular expression, replacement): a token budget holds more events."""

    @property
    def label(self) -> str:
        """The style as it is stored: `timeline@2`."""
        return f"{self.name}@{self.version}"


_LOINC_SHORTENINGS = (
    (r" \[(?:Mass|Moles|Enzymatic activity|Units|#|Pure mass)/(?:volume|mass|time)\]", ""),
    (r" \[(?:Volume Fraction|Entitic (?:mass|volume)|Partial pressure|Presence|Ratio)\]", ""),
    (r" in Serum or Plasma\b| by Automated count\b", ""),
)
"""What LOINC names say that the unit says too, and the specimen that goes without saying."""

_FIRST_LINE = Section("header", title="Patient:", end=".\n", close=".")

STYLES = {
    style.name: style
    for style in (
        Style(
            name="timeline",
            version=2,
            sections=(_FIRST_LINE, Section("all", groups="when", heading="{}:", group_end="\n", priority=1)),
            person="sentence",
            times="distance",
            empty="Patient: no history.",
            cut="Patient: history left out.",
            invertible=True,
            shortenings=_LOINC_SHORTENINGS,
        ),
        Style(
            name="flat",
            version=2,
            sections=(Section("header"), Section("all", groups="when", heading="{};", priority=1)),
            person="facts",
            times="gap",
            empty="No history",
            cut="History left out",
            invertible=True,
            prefixes=(
                ("GENDER", "Demographic Gender"),
                ("ETHNICITY", "Demographic Ethnicity"),
                ("RACE", "Demographic Race"),
                ("REGION", "Demographic Region"),
                ("LIFESTYLE", "Lifestyle"),
            ),
        ),
        Style(
            name="recent_unique",
            version=1,
            sections=(
                _FIRST_LINE,
                Section("latest_each", groups="when", heading="{}:", newest_first=True, group_end="\n", priority=1),
            ),
            person="sentence",
            times="distance",
            empty="Patient: no history.",
            cut="Patient: history left out.",
            shortenings=_LOINC_SHORTENINGS,
        ),
        Style(
            name="visits",
            version=1,
            sections=(
                Section("header", title="# Patient\n", end=".\n", close="."),
                Section(
                    "latest_values",
                    title="# Latest values\n",
                    newest_first=True,
                    notes=True,
                    group_end="\n",
                    end="\n",
                    priority=1,
                ),
                Section(
                    "unmeasured",
                    title="# Visits, latest first\n",
                    groups="visit",
                    heading="## {}\n",
                    newest_first=True,
                    group_end="\n",
                    priority=2,
                ),
            ),
            person="sentence",
            times="distance",
            empty="# Patient\nNo history.",
            cut="# Patient\nHistory left out.",
            shortenings=_LOINC_SHORTENINGS,
        ),
    )
}


def get_style(name: str) -> Style:
    """The style called `name`, or `name@version` where that is the version this program writes.

    Raises InputError for a style that is unknown, or known in another version only.
    """
    stem, _, version = name.partition("@")
    style = STYLES.get(stem)
    if style is None:
        raise refuse("narrative.style", f"no style is called {stem!r}", f"choose one of: {', '.join(STYLES)}")
    if version and version != str(style.version):
        what = f"{name} is asked for, but this version of epicrisis writes {style.label}"
        fix = "use the version of epicrisis that wrote it, or train anew with this one"
        raise refuse("narrative.style", what, fix)
    return style
