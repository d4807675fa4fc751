"""A patient's visible history as text: codes become words, words phrases, phrases a narrative."""

from epicrisis.narrative.coverage import coverage, reads_as_words, unresolved, write_csv
from epicrisis.narrative.lookups import Lookups, load_lookups
from epicrisis.narrative.phrases import phrase_table
from epicrisis.narrative.render import render
from epicrisis.narrative.shipped import shipped_lookup
from epicrisis.narrative.styles import STYLES, Style, get_style

__all__ = [
    "STYLES",
    "Lookups",
    "Style",
    "coverage",
    "get_style",
    "load_lookups",
    "phrase_table",
    "reads_as_words",
    "render",
    "shipped_lookup",
    "unresolved",
    "write_csv",
]
