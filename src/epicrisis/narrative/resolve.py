"""How a code finds its words: user's tables → dataset's description → parents → words inside it → raw."""

from __future__ import annotations

import polars as pl

from epicrisis.narrative.patterns import MISSING, TERM, Pattern, match_codes

MOST_LEVELS = 8
"""How far up `parent_codes` are followed; a hierarchy deeper than that is taken for a cycle."""


def resolve_codes(
    codes: pl.Series, terms: pl.DataFrame, described: pl.DataFrame, patterns: tuple[Pattern, ...]
) -> pl.DataFrame:
    """code · phrase · unit? · source · vocabulary · role per distinct code; see `Lookups.resolve`.

    A term that a user's table gives for the whole code is the phrase, word for word. A term found by the
    bare code inside it, a description or a parent's term is laid into the pattern's template.
    """
    distinct = codes.cast(pl.String).drop_nulls().unique(maintain_order=True).rename("code")
    chain = _Chain(terms, described, patterns)
    matched = match_codes(distinct, patterns)
    known = pl.concat([found := chain.known(matched), chain.inherited(matched, found)])
    told = matched.join(known, on="code", how="left").with_columns(_phrase_and_source())
    ordered = distinct.to_frame().join(told, on="code", how="left", maintain_order="left")
    return ordered.select("code", one_line("phrase"), one_line("unit"), "source", "vocabulary", "role")


def _phrase_and_source() -> list[pl.Expr]:
    fixed = ~pl.col("frame").str.contains(TERM, literal=True)
    filling = pl.coalesce("term", "readable")
    framed = pl.col("frame").str.replace(TERM, filling, literal=True)
    phrase = (
        pl.when(pl.col("whole"))
        .then("term")
        .when(fixed)
        .then("frame")
        .when(filling.is_not_null())
        .then(pl.coalesce(framed, filling))
        .otherwise(_told_parts())
    )
    readable = fixed | pl.col("readable").is_not_null()
    source = (
        pl.when(pl.col("source").is_not_null() & (~fixed | pl.col("whole")))
        .then("source")
        .when(readable)
        .then(pl.lit("readable"))
        .otherwise(pl.lit("raw"))
    )
    return [phrase.alias("phrase"), source.alias("source")]


def _told_parts() -> pl.Expr:
    """The raw code without the parts that say nothing: `LAB//RESULT//53153//UNK` → `LAB//RESULT//53153`."""
    parts = pl.col("code").str.split("//").list.filter(~pl.element().is_in(MISSING)).list.join("//")
    return pl.when(parts != "").then(parts).otherwise("code")


def one_line(column: str) -> pl.Expr:
    """Text that can stand between separators: no `;`, no line break, no two spaces; null if empty."""
    text = pl.col(column).str.replace_all(";", ",", literal=True)
    text = text.str.replace_all(r"[\s\p{C}]+", " ").str.strip_chars()
    return pl.when(text != "").then(text).alias(column)


class _Chain:
    """The tables, and the three ways in which a code itself, or a parent of it, is known to them."""

    def __init__(self, terms: pl.DataFrame, described: pl.DataFrame, patterns: tuple[Pattern, ...]):
        self.terms, self.described, self.patterns = terms, described, patterns

    def known(self, matched: pl.DataFrame) -> pl.DataFrame:
        """code · term · source · whole, for those of the codes that a table or the dataset has words for."""
        tables = self.terms.filter(pl.col("table") != "region")
        whole = tables.unique(["code"], keep="first", maintain_order=True)
        described = self.described.select("code", description="description")
        names = matched.select("code", "table", bare="key", plain=_undotted(), full=_qualified())
        found = names.join(whole.select("code", whole_term="term"), on="code", how="left")
        found = found.join(whole.select(full="code", full_term="term"), on="full", how="left")
        for name in ("bare", "plain"):
            bare = self.terms.select("table", pl.col("code").alias(name), term=pl.col("term"))
            bare = bare.rename({"term": f"{name}_term"})
            found = found.join(bare, on=["table", name], how="left")
        found = found.join(described, on="code", how="left")
        by_table = pl.coalesce("whole_term", "full_term", "bare_term", "plain_term")
        return found.select(
            "code",
            term=pl.coalesce(by_table, "description"),
            source=pl.when(by_table.is_not_null()).then(pl.lit("lookup")).otherwise(pl.lit("description")),
            whole=pl.col("whole_term").is_not_null(),
        ).drop_nulls("term")

    def inherited(self, matched: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
        """code · term · source · whole, from the nearest parent that is known, for codes not in `found`."""
        orphans = matched.join(found, on="code", how="anti")
        by_parents = self._up_the_parents(orphans)
        orphans = orphans.join(by_parents, on="code", how="anti")
        by_truncation = self._nearest(_truncations(orphans))
        parts = [part.select("code", "term") for part in (by_parents, by_truncation)]
        return pl.concat(parts).with_columns(source=pl.lit("parent"), whole=pl.lit(False))

    def _up_the_parents(self, orphans: pl.DataFrame) -> pl.DataFrame:
        links = self.described.select("code", parent="parent_codes").explode("parent").drop_nulls()
        frontier = orphans.select("code").join(links, on="code", how="inner", maintain_order="left")
        reached = []
        for _ in range(MOST_LEVELS):
            if frontier.is_empty():
                break
            near = self._nearest(frontier.with_columns(distance=pl.int_range(pl.len())))
            reached.append(near)
            frontier = frontier.join(near, on="code", how="anti", maintain_order="left")
            higher = links.rename({"code": "parent", "parent": "grandparent"})
            frontier = frontier.join(higher, on="parent", how="inner", maintain_order="left")
            frontier = frontier.select("code", parent="grandparent").unique(maintain_order=True)
        return pl.concat(reached) if reached else pl.DataFrame(schema={"code": pl.String, "term": pl.String})

    def _nearest(self, parents: pl.DataFrame) -> pl.DataFrame:
        names = parents["parent"].unique(maintain_order=True).rename("code")
        terms = self.known(match_codes(names, self.patterns)).select(parent="code", term="term")
        told = parents.join(terms, on="parent", how="inner").sort("code", "distance")
        return told.unique(["code"], keep="first", maintain_order=True).select("code", "term")


def _undotted() -> pl.Expr:
    """ICD codes are written with and without their dot; tables may have either."""
    return pl.when(pl.col("hierarchy") == "icd").then(pl.col("key").str.replace(".", "", literal=True))


def _qualified() -> pl.Expr:
    return pl.col("vocabulary") + "//" + pl.col("key")


def _truncations(matched: pl.DataFrame) -> pl.DataFrame:
    """code · parent · distance: E11.65 → E11.6, E11 and N02BE01 → N02BE, N02B, N02, N."""
    coded = matched.filter((pl.col("hierarchy") != "") & pl.col("key").is_not_null())
    parts = [_shortened(coded, "icd", dropped, 3) for dropped in range(1, 6)]
    parts += [_shortened(coded, "atc", dropped, 1) for dropped in range(1, 7)]
    return pl.concat(parts)


def _shortened(coded: pl.DataFrame, hierarchy: str, dropped: int, shortest: int) -> pl.DataFrame:
    ours = coded.filter(pl.col("hierarchy") == hierarchy)
    long = ours.filter(pl.col("key").str.len_chars() >= shortest + dropped)
    short = pl.col("key").str.head(-dropped).str.strip_chars_end(".")
    # ATC levels end after 1, 3, 4, 5 and 7 characters: nothing is called N0 or N02BE0.
    length = short.str.len_chars()
    is_level = length.is_in([1, 3, 4, 5]) if hierarchy == "atc" else length >= shortest
    parent = pl.col("vocabulary") + "//" + short
    return long.filter(is_level).select("code", parent=parent, distance=pl.lit(dropped))
