"""How a code finds its words.

The user's tables → the vocabulary download's name → the dataset's description → the ICD-10-CM library → parents, each
by the same ways (`parent_codes`, then the download's hierarchy, then the code cut short) → words inside it → raw.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from epicrisis.narrative.athena import Concepts, concept_names
from epicrisis.narrative.icd10cm import VOCABULARIES, icd10cm_terms
from epicrisis.narrative.patterns import MISSING, TERM, Pattern, match_codes

MOST_LEVELS = 8
"""How far up `parent_codes` are followed; a hierarchy deeper than that is taken for a cycle."""


WAYS = ("lookup", "concept", "description", "icd10cm")
"""How a code itself may be known, best first: a user's table, the download, the dataset, the library."""


@dataclass(frozen=True)
class Known:
    """All that has words for codes."""

    terms: pl.DataFrame
    """table · code · term: the user's."""
    concepts: Concepts
    """The vocabulary download's."""
    described: pl.DataFrame
    """code · description · parent_codes: the dataset's."""
    icd10cm: bool
    """Whether the ICD-10-CM library may be asked."""
    patterns: tuple[Pattern, ...]


def resolve_codes(codes: pl.Series, known: Known) -> pl.DataFrame:
    """code · phrase · unit? · source · vocabulary · role per distinct code; see `Lookups.resolve`.

    A term that a user's table gives for the whole code is the phrase, word for word. A term found by the
    bare code inside it, a name, a description or a parent's term is laid into the pattern's template.
    """
    distinct = codes.cast(pl.String).drop_nulls().unique(maintain_order=True).rename("code")
    chain = _Chain(known)
    matched = match_codes(distinct, known.patterns)
    worded = pl.concat([found := chain.known(matched), chain.inherited(matched, found)])
    told = matched.join(worded, on="code", how="left").with_columns(_phrase_and_source())
    ordered = distinct.to_frame().join(told, on="code", how="left", maintain_order="left")
    return ordered.select("code", one_line("phrase"), one_line("unit"), "source", "vocabulary", "role")


def concepts_of_interest(codes: pl.Series, described: pl.DataFrame, patterns: tuple[Pattern, ...]) -> pl.Series:
    """The names under which a vocabulary download may know these codes and their parents."""
    parents = described["parent_codes"].explode().drop_nulls()
    named = pl.concat([codes.cast(pl.String), parents]).drop_nulls().unique().rename("code")
    matched = match_codes(named, patterns)
    shortened = _truncations(matched)["parent"].unique().rename("code")
    whole = [concept_names(matched), concept_names(match_codes(shortened, patterns))]
    return pl.concat(whole)["concept"].unique()


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
    """What is known, and the ways in which a code itself, or a parent of it, is known to it."""

    def __init__(self, known: Known):
        self.terms, self.concepts, self.described = known.terms, known.concepts, known.described
        self.icd10cm, self.patterns = known.icd10cm, known.patterns

    def known(self, matched: pl.DataFrame) -> pl.DataFrame:
        """code · term · source · whole, for those of the codes that something has words for."""
        tables = self.terms.filter(pl.col("table") != "region")
        whole = tables.unique(["code"], keep="first", maintain_order=True)
        names = matched.select("code", "table", "vocabulary", bare="key", plain=_undotted(), full=_qualified())
        found = names.join(whole.select("code", whole_term="term"), on="code", how="left")
        found = found.join(whole.select(full="code", full_term="term"), on="full", how="left")
        for name in ("bare", "plain"):
            bare = self.terms.select("table", pl.col("code").alias(name), term=pl.col("term"))
            bare = bare.rename({"term": f"{name}_term"})
            found = found.join(bare, on=["table", name], how="left")
        found = found.with_columns(lookup=pl.coalesce("whole_term", "full_term", "bare_term", "plain_term"))
        concepts = _by_concept(matched, self.concepts.names).rename({"term": "concept"})
        found = found.join(concepts, on="code", how="left")
        found = found.join(self.described.select("code", "description"), on="code", how="left")
        found = found.join(self._in_library(found), on="code", how="left")
        source = [pl.when(pl.col(way).is_not_null()).then(pl.lit(way)) for way in WAYS]
        return found.select(
            "code",
            term=pl.coalesce(WAYS),
            source=pl.coalesce(source),
            whole=pl.col("whole_term").is_not_null(),
        ).drop_nulls("term")

    def inherited(self, matched: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
        """code · term · source · whole, from the nearest parent that is known, for codes not in `found`."""
        orphans = matched.join(found, on="code", how="anti")
        parts = []
        for climb in (self._up_the_parents, self._up_the_concepts, self._up_the_code):
            parts.append(climb(orphans).select("code", "term"))
            orphans = orphans.join(parts[-1], on="code", how="anti")
        return pl.concat(parts).with_columns(source=pl.lit("parent"), whole=pl.lit(False))

    def _in_library(self, found: pl.DataFrame) -> pl.DataFrame:
        """code · icd10cm: the library's descriptions of the ICD-10-CM codes that nothing else knows."""
        unknown = pl.all_horizontal(pl.col("lookup", "concept", "description").is_null())
        asked = found.filter(unknown & pl.col("vocabulary").is_in(VOCABULARIES)).drop_nulls("bare")
        described = icd10cm_terms(asked["bare"].unique() if self.icd10cm else asked["bare"].clear())
        return asked.join(described.rename({"code": "bare", "term": "icd10cm"}), on="bare").select("code", "icd10cm")

    def _up_the_concepts(self, orphans: pl.DataFrame) -> pl.DataFrame:
        return _by_concept(orphans, self.concepts.ancestors)

    def _up_the_code(self, orphans: pl.DataFrame) -> pl.DataFrame:
        return self._nearest(_truncations(orphans))

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


def _by_concept(matched: pl.DataFrame, names: pl.DataFrame) -> pl.DataFrame:
    """code · term of the codes that the names (concept · term) know."""
    if names.is_empty():
        return pl.DataFrame(schema={"code": pl.String, "term": pl.String})
    found = concept_names(matched).join(names, on="concept", how="inner").sort("rank", maintain_order=True)
    return found.unique(["code"], keep="first", maintain_order=True).select("code", "term")


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
