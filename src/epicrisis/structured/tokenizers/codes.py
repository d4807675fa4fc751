"""Codes by the names that tokens can have: the whole code, or its levels, or the nearest parent that is known."""

from __future__ import annotations

import polars as pl

from epicrisis.narrative.patterns import Pattern, match_codes
from epicrisis.structured.vocabulary import UNKNOWN

MOST_LEVELS = 8
"""How far up `parent_codes` are followed; a hierarchy deeper than that is taken for a cycle."""

PARENTS: dict[str, pl.DataType | type[pl.DataType]] = {"code": pl.String, "name": pl.String}

_ICD10 = r"^[A-Z]\d[0-9A-Z]\.?[0-9A-Z]*$"
_ATC = r"^[A-Z]\d\d[A-Z]"


def names_of(matched: pl.DataFrame, levels: bool) -> pl.DataFrame:
    """code · vocabulary · names, the tokens by which a code is told, broadest first.

    matched: as `match_codes` returns them. With `levels`, ICD-10 codes become category and rest (`ICD10CM//I25`,
    `ICD10CM//+10`), ATC codes therapeutic group, next letter and rest; any other code is one name, itself.
    """
    key, vocabulary = pl.col("key"), pl.col("vocabulary")
    whole = pl.concat_list("code")
    if not levels:
        return matched.select("code", "vocabulary", names=whole)
    is_icd = (pl.col("hierarchy") == "icd") & key.str.contains(_ICD10) & ~vocabulary.str.contains(r"(?i)icd-?9")
    is_atc = (pl.col("hierarchy") == "atc") & key.str.contains(_ATC)
    icd = _levels(key.str.slice(0, 3), key.str.slice(3).str.strip_chars_start("."))
    atc = _levels(key.str.slice(0, 3), key.str.slice(3, 1), key.str.slice(4))
    names = pl.when(is_icd.fill_null(False)).then(icd).when(is_atc.fill_null(False)).then(atc).otherwise(whole)
    return matched.select("code", "vocabulary", names=names)


def _levels(first: pl.Expr, *others: pl.Expr) -> pl.Expr:
    vocabulary = pl.col("vocabulary")
    named = [vocabulary + "//" + first]
    named += [pl.when(other != "").then(vocabulary + "//+" + other) for other in others]
    return pl.concat_list(named).list.drop_nulls()


def canonical(codes: pl.Series, patterns: tuple[Pattern, ...]) -> pl.DataFrame:
    """code · same, by which a code is recognised however it is written: `ICD10CM/E11.9` is `ICD10CM//E11.9`."""
    matched = match_codes(codes.drop_nulls().unique(maintain_order=True).rename("code"), patterns)
    same = pl.coalesce(pl.col("vocabulary") + "//" + pl.col("key"), "code")
    return matched.select("code", same=same)


def parent_links(codes: pl.DataFrame | None, patterns: tuple[Pattern, ...]) -> pl.DataFrame:
    """code · same · parent, one row per code and parent that the dataset names; same and parent are `canonical`."""
    if codes is None or "parent_codes" not in codes.columns or codes.schema["parent_codes"] == pl.Null:
        return pl.DataFrame(schema={"code": pl.String, "same": pl.String, "parent": pl.String})
    links = codes.select("code", parent="parent_codes").explode("parent").drop_nulls()
    written = canonical(pl.concat([links["code"], links["parent"].rename("code")]), patterns)
    links = links.join(written, on="code", how="left", maintain_order="left")
    known = links.join(written.select(parent="code", to="same"), on="parent", how="left", maintain_order="left")
    # A code is no parent of itself, however it is written.
    return known.select("code", "same", parent="to").filter(pl.col("same") != pl.col("parent"))


def climb(orphans: pl.Series, links: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """code · name: the nearest parent of each orphan among the known names (same · name), if there is any.

    Among parents equally near, the first that the dataset lists.
    """
    above = links.select(parent="same", grandparent="parent").unique(maintain_order=True)
    frontier = links.filter(pl.col("code").is_in(orphans.implode())).select("code", "parent")
    found = [pl.DataFrame(schema=PARENTS)]
    for _ in range(MOST_LEVELS):
        if frontier.is_empty():
            break
        near = frontier.join(known.rename({"same": "parent"}), on="parent", how="inner", maintain_order="left")
        found.append(near.unique("code", keep="first", maintain_order=True).select("code", "name"))
        frontier = frontier.join(found[-1], on="code", how="anti", maintain_order="left")
        frontier = frontier.join(above, on="parent", how="inner", maintain_order="left")
        frontier = frontier.select("code", parent="grandparent").unique(maintain_order=True)
    return pl.concat(found)


def gathered_parents(pairs: pl.DataFrame, links: pl.DataFrame, known: pl.DataFrame, min_subjects: int) -> pl.Series:
    """Parents that become names because rare codes below them have enough train subjects together.

    pairs: subject_id · code of the codes that have no name. Nearest first: a code whose parent has become a name
    counts for none above it.
    """
    above = links.select(parent="same", grandparent="parent").unique(maintain_order=True)
    frontier = pairs.join(links.select("code", "parent"), on="code", how="inner")
    made = [pl.Series("parent", [], dtype=pl.String)]
    for _ in range(MOST_LEVELS):
        if frontier.is_empty():
            break
        counted = frontier.group_by("parent").agg(pl.col("subject_id").n_unique().alias("n"))
        is_known = pl.col("parent").is_in(known["same"].implode())
        made.append(counted.filter(~is_known & (pl.col("n") >= min_subjects))["parent"].sort())
        settled = pl.concat([known["same"].rename("parent"), *made])
        done = frontier.filter(pl.col("parent").is_in(settled.implode()))["code"].unique()
        frontier = frontier.filter(~pl.col("code").is_in(done.implode()))
        frontier = frontier.join(above, on="parent", how="inner")
        frontier = frontier.select("subject_id", "code", parent="grandparent").unique()
    return pl.concat(made).unique(maintain_order=True)


def tokens_of_names(table: pl.DataFrame, ids: pl.DataFrame, parents: pl.DataFrame) -> pl.DataFrame:
    """code · tokens · source, in the order of `table`.

    table: code · names. ids: name · id. parents: code · name. A code is told by its names up to the first unknown
    one, else by its parent's, else by [UNK]. source: known, parent (some name missing, or the parent's) or unknown.
    """
    placed = table.select("code", "names").with_row_index("place")
    exploded = placed.explode("names").join(
        ids.rename({"name": "names"}), on="names", how="left", maintain_order="left"
    )
    leading = pl.col("id").is_not_null().cast(pl.Int8).cum_min().over("place") == 1
    told = exploded.filter(leading).group_by("place", maintain_order=True).agg(tokens=pl.col("id"))
    inherited = parents.join(ids, on="name", how="inner").select("code", parent="id")
    found = placed.join(told, on="place", how="left", maintain_order="left")
    found = found.join(inherited, on="code", how="left", maintain_order="left")
    whole = pl.col("tokens").list.len() == pl.col("names").list.len()
    some = pl.col("tokens").is_not_null() | pl.col("parent").is_not_null()
    source = pl.when(whole).then(pl.lit("known")).when(some).then(pl.lit("parent")).otherwise(pl.lit("unknown"))
    fallback = pl.concat_list(pl.col("parent").fill_null(UNKNOWN).cast(pl.Int32))
    return found.select("code", tokens=pl.coalesce(pl.col("tokens").cast(pl.List(pl.Int32)), fallback), source=source)


def wholly_named(table: pl.DataFrame, known: pl.Series) -> pl.Series:
    """The codes of the table (code · names) whose names are all known."""
    strangers = table.select("code", "names").explode("names").filter(~pl.col("names").is_in(known.implode()))
    return table.join(strangers, on="code", how="anti", maintain_order="left")["code"]
