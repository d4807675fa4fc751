"""A patient's visible history as text: codes become words, words phrases, phrases a narrative."""

from epicrisis.narrative.assembly import Assembly
from epicrisis.narrative.book import Book
from epicrisis.narrative.coverage import coverage, reads_as_words, unresolved, write_coverage
from epicrisis.narrative.lookups import Lookups, load_lookups
from epicrisis.narrative.narrator import Narrator, known_codes, make_narrator
from epicrisis.narrative.parse import parse
from epicrisis.narrative.render import Told, render, tell
from epicrisis.narrative.shipped import shipped_lookup
from epicrisis.narrative.styles import STYLES, Style, get_style

__all__ = [
    "STYLES",
    "Assembly",
    "Book",
    "Lookups",
    "Narrator",
    "Style",
    "Told",
    "coverage",
    "get_style",
    "known_codes",
    "load_lookups",
    "make_narrator",
    "parse",
    "reads_as_words",
    "render",
    "shipped_lookup",
    "tell",
    "unresolved",
    "write_coverage",
]
