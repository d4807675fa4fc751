"""Tokens per event by style and tokenizer family, over the same synthetic records.

    python benchmarks/styles.py

Two figures per style and family: `record`, all tokens over the events of the record, which says how much of a
record a window of tokens can hold; and `told`, over the events that stand in the text, which differs where a style
leaves events out by design. The tokenizers are trained on other records told in all four styles, so they
know the phrases better than a published one does: the figures compare styles, not models. The ratio is that of
`flat` to `timeline`, for the family in which timeline gains least.
"""

from __future__ import annotations

import polars as pl

from epicrisis.corpus.phrase_tokens import PhraseTokens
from epicrisis.narrative import tell
from epicrisis.narrative.assembly import Assembly
from epicrisis.narrative.styles import STYLES
from families import FAMILIES
from records import make_events, narrator_for, rows_of
from timing import finish

EVENTS, PER_SUBJECT = 150_000, 300


def main() -> None:
    events, lesson = make_events(EVENTS, PER_SUBJECT), make_events(30_000, PER_SUBJECT, seed=1)
    told = {style: _assembly(style, events) for style in STYLES}
    lesson_texts = [text for style in STYLES for text in _assembly(style, lesson).narratives().to_pylist()]
    n_told = {style: _n_told(style, events) for style in STYLES}
    figures: dict[str, float] = {"events_per_record": PER_SUBJECT}
    figures |= {f"{style}_share_told": n / events.height for style, n in n_told.items()}
    for family, train in FAMILIES.items():
        tokens = PhraseTokens(train(lesson_texts))
        for style, assembly in told.items():
            n_tokens = len(tokens.encode(assembly).values)
            record, shown = n_tokens / events.height, n_tokens / n_told[style]
            figures |= {f"{style}_{family}_record": record, f"{style}_{family}_told": shown}
            print(f"{style:14s} {family:20s} {record:6.2f} tokens per event of the record, {shown:6.2f} per event told")
    gains = [figures[f"flat_{family}_record"] / figures[f"timeline_{family}_record"] for family in FAMILIES]
    finish("styles", min(gains), 1, figures)


def _assembly(style: str, events: pl.DataFrame) -> Assembly:
    return tell(events, rows_of(events), narrator_for(style)).assembly


def _n_told(style: str, events: pl.DataFrame) -> int:
    """Events that stand in the text: all, the latest of each code, or that for those with a value."""
    header = pl.col("code").str.starts_with("GENDER//") | (pl.col("code") == "MEDS_BIRTH")
    once = {"recent_unique": pl.lit(True), "visits": pl.col("numeric_value").is_not_null()}.get(style, pl.lit(False))
    latest = events.filter(once & ~header).unique(["subject_id", "code"]).height
    return latest + events.filter(~once | header).height


if __name__ == "__main__":
    main()
