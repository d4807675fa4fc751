"""Narratives → events: the way back, for texts that were rendered and for those that a model wrote."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from epicrisis.narrative.book import NUMBER, Book, match_terms
from epicrisis.narrative.narrator import Dates
from epicrisis.narrative.phrases import MEASURE
from epicrisis.narrative.styles import HEADER, Style
from epicrisis.narrative.times import GapLabel, told_before, told_gaps
from epicrisis.settings.problems import refuse

EVENT_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "narrative": pl.UInt32,
    "position": pl.UInt32,
    "section": pl.String,
    "group": pl.UInt32,
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
    "value_class": pl.Int16,
    "unit": pl.String,
    "at_least": pl.Duration("us"),
    "below": pl.Duration("us"),
    "date": pl.Date,
    "phrase": pl.String,
}

_NOUNS = {"woman": "female", "girl": "female", "man": "male", "boy": "male"}
_PERSON = rf"^(?:(?P<age>\d{{1,4}})-(?P<unit>month|year)-old )?(?P<noun>{'|'.join(_NOUNS)})$"
_AGED = r"^(?P<age>\d{1,4}) (?P<unit>month|year)s? old$"
_AGE_FACT = r"^Demographic Age (?P<age>\d{1,4})(?P<months> months)?$"
_HEADER_ROLES = ("birth", "female", "male", "demographic")


def parse(
    narratives: pl.DataFrame | Sequence[str] | pl.Series,
    book: Book,
    style: Style,
    *,
    dates: Dates = "relative",
    gaps: tuple[GapLabel, ...] = (),
    class_words: Sequence[str] = (),
) -> pl.DataFrame:
    """The events that narratives tell, in the order of telling.

    narratives: texts, or a table with a column `narrative`. book, style, dates, gaps, class_words: what they
        were told with (gaps: the labels of the time table; class_words: the classes of values, lowest first).

    Returns one row per event: narrative (the place of its text) · position (0, 1, … within it) · section
    (header or body) · group (0, 1, … of body events that were told under one heading; null in the header) ·
    code? · numeric_value? · text_value? · value_class? (index into class_words) · unit? · at_least? · below? ·
    date? · phrase (as it stands in the text). A phrase that no term of the book begins has no code and no
    value. Nothing in a text raises an error.

    Declared precision, for texts that `render` wrote of codes in the book:

    - exactly: codes, their order, duplicates; numbers as float32 (minus zero as zero); texts, and units as they
      are told, after white space was folded and `;` made a comma; classes. A number hides the text beside it,
      a class the number; units are told after numbers and texts like `<0.01` only, and the code's own unit
      where the event has none.
    - coarsely: times. Distances from the prediction time, or gaps between the event before the group and its
      first event, lie in [at_least, below); `below` is null where it has no end. Without a gap told, as for the
      first group, both are null. With calendar dates there is the date alone.
    - persons: the birth is a row with the age as its numeric_value and `year` or `month` as its unit; in a
      sentence (`63-year-old woman`) the sex is another. Their code is that of the book for the role if there
      is just one, and null otherwise.
    - the header: a fact of a header whose facts are parted by `.` is cut at each `. ` inside it, and loses
      full stops at its end. In a style that tells header and body alike (flat) the header is taken to end
      before the first event that is neither a person nor demographic.
    - what was never told (events cut by a token budget, further births) is not here either.

    Raises InputError for a style that does not claim to be invertible, and for a book of another style.
    """
    if not style.invertible:
        fix = "use timeline or flat"
        raise refuse("narrative.style", f"{style.label} tells several codes alike and cannot be read back", fix)
    if book.style.label != style.label:
        raise refuse("narrative.style", f"the code book is one of {book.style.label}, not of {style.label}", "use its")
    texts = _texts(narratives, style)
    if style.person == "sentence":
        lines = _lines(texts, style)
        header, body = lines.filter("opens"), lines.filter(~pl.col("opens"))
        items = pl.concat([_sentences(header, style), _grouped_lines(body, style, dates, gaps)], how="diagonal")
        items = items.sort("narrative", maintain_order=True)
    else:
        items = _facts_and_groups(texts, style, dates, gaps)
    told = _read_phrases(items["phrase"].unique(), book, class_words)
    events = items.join(told, on="phrase", how="left", maintain_order="left")
    events = _with_persons(events, book)
    if style.person == "facts":
        events = _with_sections(events)
    events = events.with_columns(position=pl.int_range(pl.len()).over("narrative"))
    return events.select(pl.col(name).cast(kind) for name, kind in EVENT_SCHEMA.items())


def _texts(narratives: pl.DataFrame | Sequence[str] | pl.Series, style: Style) -> pl.DataFrame:
    """narrative · text of those that tell anything."""
    texts = narratives["narrative"] if isinstance(narratives, pl.DataFrame) else narratives
    numbered = pl.Series("text", texts, dtype=pl.String).to_frame().with_row_index("narrative")
    return numbered.filter(~pl.col("text").is_in([style.empty, style.cut]))


def _items(table: pl.DataFrame, text: str, separator: str) -> pl.DataFrame:
    """The table with one row per phrase: what stands between the separators."""
    # Without its text: exploded along, each narrative would be copied for each of its events.
    parts = table.select(pl.exclude(text), phrase=pl.col(text).str.split(separator)).explode("phrase")
    return parts.with_columns(pl.col("phrase").str.strip_chars()).filter(pl.col("phrase") != "")


def _lines(texts: pl.DataFrame, style: Style) -> pl.DataFrame:
    """narrative · line · opens (the line is the header), without empty lines."""
    first = pl.col("narrative") != pl.col("narrative").shift()
    lines = texts.select("narrative", line=pl.col("text").str.split("\n")).explode("line")
    opens = first.fill_null(True) & pl.col("line").str.starts_with(_title(style))
    return lines.with_columns(opens=opens).filter(pl.col("line").str.strip_chars() != "")


def _title(style: Style) -> str:
    return style.sections[HEADER].title


def _sentences(lines: pl.DataFrame, style: Style) -> pl.DataFrame:
    """The facts of the header lines; a person as two facts, age and sex."""
    text = pl.col("line").str.strip_prefix(_title(style)).str.strip_chars().str.strip_suffix(".")
    facts = _items(lines.select("narrative", text=text), "text", f"{style.sections[HEADER].separator} ")
    facts = facts.select("narrative", "phrase", section=pl.lit("header"))
    first = pl.col("narrative").is_first_distinct()
    one, other = (pl.col("phrase").str.extract_groups(pattern).struct for pattern in (_PERSON, _AGED))
    people = facts.with_columns(
        age=pl.when(first).then(pl.coalesce(one.field("age"), other.field("age"))),
        age_unit=pl.when(first).then(pl.coalesce(one.field("unit"), other.field("unit"))),
        person=pl.when(first).then(one.field("noun").replace_strict(_NOUNS, return_dtype=pl.String)),
    )
    aged = people.filter(pl.col("age").is_not_null()).with_columns(person=pl.lit("birth"))
    sexed = people.filter(pl.col("person").is_not_null()).with_columns(age=None, age_unit=None)
    others = people.filter(pl.col("age").is_null() & pl.col("person").is_null())
    return pl.concat([aged, sexed, others], how="vertical_relaxed").sort("narrative", maintain_order=True)


def _grouped_lines(lines: pl.DataFrame, style: Style, dates: Dates, gaps: tuple[GapLabel, ...]) -> pl.DataFrame:
    """The events of the lines that are groups: `3 months before: …; …`."""
    halves = (pl.col("line") + " ").str.splitn(": ", 2).struct
    split = lines.with_columns(words=halves.field("field_0"), after=halves.field("field_1"))
    split = split.with_columns(group=pl.int_range(pl.len()).over("narrative"))
    split = split.join(_when(split["words"], style, dates, gaps), on="words", how="left", maintain_order="left")
    # The first group after a header has no heading where gaps are told.
    text = pl.when("heads").then("after").otherwise("line")
    items = _items(split.select("narrative", "group", "at_least", "below", "date", text=text), "text", ";")
    return items.with_columns(section=pl.lit("body"))


def _facts_and_groups(texts: pl.DataFrame, style: Style, dates: Dates, gaps: tuple[GapLabel, ...]) -> pl.DataFrame:
    """The events of narratives in one line, where headings stand between events as if they were some."""
    items = _items(texts, "text", ";").select("narrative", "phrase")
    when = _when(items["phrase"], style, dates, gaps)
    items = items.join(when, left_on="phrase", right_on="words", how="left", maintain_order="left")
    heads = pl.col("heads").fill_null(False)
    items = items.with_columns(group=heads.cast(pl.UInt32).cum_sum().over("narrative"))
    headings = items.filter(heads).select("narrative", "group", "at_least", "below", "date")
    found = pl.col("phrase").str.extract_groups(_AGE_FACT).struct
    unit = pl.when(found.field("months").is_null()).then(pl.lit("year")).otherwise(pl.lit("month"))
    events = items.filter(~heads).select(
        "narrative",
        "phrase",
        "group",
        age=found.field("age"),
        age_unit=pl.when(found.field("age").is_not_null()).then(unit),
        person=pl.when(found.field("age").is_not_null()).then(pl.lit("birth")),
    )
    return events.join(headings, on=["narrative", "group"], how="left", maintain_order="left")


def _when(words: pl.Series, style: Style, dates: Dates, gaps: tuple[GapLabel, ...]) -> pl.DataFrame:
    """words · at_least? · below? · date? · heads (always true) of those that head a group."""
    distinct = words.drop_nulls().unique().rename("words")
    if dates == "calendar":
        date = pl.when(pl.col("words").str.contains(r"^\d{4}-\d\d-\d\d$")).then("words")
        table = distinct.to_frame().with_columns(date=date.str.to_date("%Y-%m-%d", strict=False))
        return table.drop_nulls("date").with_columns(
            at_least=pl.lit(None, pl.Duration("us")), below=pl.lit(None, pl.Duration("us")), heads=True
        )
    by_gaps = dates == "gap" or style.times == "gap"
    table = told_gaps(distinct, gaps) if by_gaps else told_before(distinct)
    return table.drop_nulls("at_least").with_columns(date=pl.lit(None, pl.Date), heads=True)


def _read_phrases(phrases: pl.Series, book: Book, class_words: Sequence[str]) -> pl.DataFrame:
    """phrase · code? · role? · numeric_value? · text_value? · value_class? · unit? of distinct phrases."""
    matched = match_terms(phrases, book.terms)
    after = pl.when("colon").then(pl.col("rest").str.strip_prefix(":")).otherwise("rest")
    measured = after.str.extract_groups(rf"^ (?P<number>{NUMBER})(?: (?P<unit>.*))?$").struct
    number = measured.field("number").cast(pl.Float32, strict=False)
    numbered = matched.with_columns(
        numeric_value=pl.when(number.is_finite()).then(number),
        unit=pl.when(number.is_finite()).then(measured.field("unit")),
    )
    text = pl.when(pl.col("numeric_value").is_null()).then(pl.col("rest").str.replace("^: ", ""))
    read = numbered.with_columns(text=pl.when(text != "").then(text)).with_columns(_read_text(class_words))
    roles = book.terms.select("code", "role")
    return read.join(roles, on="code", how="left").select(
        "phrase", "code", "role", "numeric_value", "text_value", "value_class", "unit"
    )


def _read_text(class_words: Sequence[str]) -> list[pl.Expr]:
    """text_value · value_class · unit of the column `text`, beside the unit of a number."""
    text = pl.col("text")
    value_class = text.replace_strict(
        list(class_words), list(range(len(class_words))), default=None, return_dtype=pl.Int16
    )
    whole = text.str.extract(r'^"(.*)"$', 1)
    parts = text.str.extract_groups(rf'^(?:"(?P<quoted>{MEASURE})"|(?P<plain>{MEASURE})) (?P<unit>.+)$').struct
    with_unit = whole.is_null() & parts.field("unit").is_not_null()
    bare = pl.when(with_unit).then(pl.coalesce(parts.field("quoted"), parts.field("plain"))).otherwise("text")
    return [
        pl.when(value_class.is_null()).then(pl.coalesce(whole, bare)).alias("text_value"),
        value_class.alias("value_class"),
        pl.when(with_unit).then(parts.field("unit")).otherwise("unit").alias("unit"),
    ]


def _with_persons(events: pl.DataFrame, book: Book) -> pl.DataFrame:
    """Ages and sexes with the code that tells them, where the book has just one."""
    alone = book.terms.group_by(person="role").agg(pl.col("code").first(), n=pl.len()).filter(n=1)
    told = events.join(alone.select("person", person_code="code"), on="person", how="left", maintain_order="left")
    return told.with_columns(
        code=pl.coalesce("code", "person_code"),
        numeric_value=pl.coalesce("numeric_value", pl.col("age").cast(pl.Float32)),
        unit=pl.coalesce("unit", "age_unit"),
    )


def _with_sections(events: pl.DataFrame) -> pl.DataFrame:
    """Where nothing parts header and body: the header ends before the first event that is no personal fact."""
    personal = pl.col("role").is_in(_HEADER_ROLES).fill_null(False) | pl.col("person").is_not_null()
    leads = (personal & (pl.col("group") == 0)).cast(pl.UInt8).cum_min().over("narrative") == 1
    section = pl.when(leads).then(pl.lit("header")).otherwise(pl.lit("body"))
    told = events.with_columns(section=section, group=pl.when(~leads).then("group"))
    return told.with_columns(group=pl.col("group") - pl.col("group").min().over("narrative"))
