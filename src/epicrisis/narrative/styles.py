"""Styles as data: what stands where in a narrative. A change in how a style reads is a new version of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from epicrisis.settings.problems import refuse


@dataclass(frozen=True)
class Style:
    """How a history is laid out as text; name and version are stored with whatever is trained on it."""

    name: str
    version: int
    header: Literal["sentences", "list"]
    """`sentences`: Patient: 63-year-old woman. White British. · `list`: one phrase per fact."""
    times: Literal["distance", "gap"]
    """Relative times are distances back from the prediction time, or gaps between one event and the next."""
    opening: str
    """What opens a group of events; `{heading}` is when they were."""
    plain_opening: str
    """What opens a group that has no heading, as the first has where gaps are told."""
    separator: str
    """What stands between events of a group."""
    empty: str
    """The narrative of a history in which nothing is known."""
    cut: str
    """The narrative of a history without a header whose every event the budget left out."""
    prefixes: tuple[tuple[str, str], ...] = ()
    """Words in front of every phrase of a vocabulary: (vocabulary, words)."""
    shortenings: tuple[tuple[str, str], ...] = ()
    """What is cut from terms, as (regular expression, replacement): a token budget holds more events."""

    @property
    def label(self) -> str:
        """The style as it is stored: `timeline@1`."""
        return f"{self.name}@{self.version}"


_LOINC_SHORTENINGS = (
    (r" \[(?:Mass|Moles|Enzymatic activity|Units|#|Pure mass)/(?:volume|mass|time)\]", ""),
    (r" \[(?:Volume Fraction|Entitic (?:mass|volume)|Partial pressure|Presence|Ratio)\]", ""),
    (r" in Serum or Plasma\b| by Automated count\b", ""),
)
"""What LOINC names say that the unit says too, and the specimen that goes without saying."""

STYLES = {
    style.name: style
    for style in (
        Style(
            name="timeline",
            version=1,
            header="sentences",
            times="distance",
            opening="\n{heading}: ",
            plain_opening="\n",
            separator="; ",
            empty="Patient: no history.",
            cut="Patient: history left out.",
            shortenings=_LOINC_SHORTENINGS,
        ),
        Style(
            name="flat",
            version=1,
            header="list",
            times="gap",
            opening="; {heading}; ",
            plain_opening="; ",
            separator="; ",
            empty="No history",
            cut="History left out",
            prefixes=(
                ("GENDER", "Demographic Gender"),
                ("ETHNICITY", "Demographic Ethnicity"),
                ("RACE", "Demographic Race"),
                ("REGION", "Demographic Region"),
                ("LIFESTYLE", "Lifestyle"),
            ),
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
