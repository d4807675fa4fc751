"""Names of codes from an OMOP vocabulary download (athena.ohdsi.org): CONCEPT.csv, and the hierarchy beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from epicrisis.settings.problems import InputError, refuse

CONCEPT = ("concept_id", "concept_name", "vocabulary_id", "concept_code", "standard_concept", "invalid_reason")
ANCESTOR = ("ancestor_concept_id", "descendant_concept_id", "min_levels_of_separation")
RELATIONSHIP = ("concept_id_1", "concept_id_2", "relationship_id", "invalid_reason")

OMOP = "omop//"
"""How a name by concept_id begins, as in the code `OMOP//201826`."""

NO_CONCEPT = "0"
"""OMOP's `No matching concept`, which is no name."""

MOST_LEVELS = 8
"""How many `Is a` links are followed upwards."""

NAMES_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {"concept": pl.String, "term": pl.String}


@dataclass(frozen=True)
class Concepts:
    """What a vocabulary download says of codes. `concept` names one as `concept_names` writes it."""

    names: pl.DataFrame
    """concept · term, unique per concept."""
    ancestors: pl.DataFrame
    """concept · term: the nearest ancestor that has a name, for concepts that have none of their own."""


def no_concepts() -> Concepts:
    """Without a download."""
    return Concepts(pl.DataFrame(schema=NAMES_SCHEMA), pl.DataFrame(schema=NAMES_SCHEMA))


def concept_names(matched: pl.DataFrame) -> pl.DataFrame:
    """code · concept · rank: how a download may know each code, best first.

    matched: code · key? · vocabulary, as `match_codes` gives them. A code is a vocabulary_id and a
    concept_code joined by `/` or `//`, alone or after other parts (`CONDITION//SNOMED//38341003`), or it is
    what its pattern says (`DIAGNOSIS//ICD//10//E1165`), or `OMOP//` with a concept_id. Vocabularies are
    compared without case, hyphens and underscores, ICD codes without their dot, all else exactly.
    """
    code, parts = pl.col("code"), pl.col("code").str.split("//")
    is_icd = pl.col("vocabulary").str.starts_with("ICD")
    forms = [
        (code.str.extract(r"^([^/]+)//?[^/]"), code.str.extract(r"^[^/]+//?([^/].*)$")),
        (
            pl.col("vocabulary").str.split("//").list.last(),
            pl.coalesce("key", pl.when(is_icd).then(parts.list.last())),
        ),
        (parts.list.get(-2, null_on_oob=True), parts.list.last()),
    ]
    named = [
        matched.select("code", concept=_name(vocabulary, concept_code), rank=pl.lit(rank))
        for rank, (vocabulary, concept_code) in enumerate(forms)
    ]
    return pl.concat(named).drop_nulls().unique(["code", "concept"], keep="first", maintain_order=True)


def read_concepts(path: Path, wanted: pl.Series | None = None) -> Concepts:
    """The names in a CONCEPT.csv, read lazily; only those that are wanted come into memory.

    path: CONCEPT.csv as downloaded: tab-separated, unquoted. Of a code's valid and invalid concepts the valid
    one counts, of those the standard one. wanted: `concept` as `concept_names` writes it; by default all. A
    wanted concept without a name takes that of its nearest ancestor, if CONCEPT_ANCESTOR.csv or else
    CONCEPT_RELATIONSHIP.csv (`Is a`) lies in the same folder.

    Raises InputError for a missing file, a missing column, or a file that is no UTF-8 text.
    """
    concepts = _scan(path, CONCEPT)
    hierarchy = _open_hierarchy(path.parent)
    found = _collect(path, _wanted(concepts.select(_row()), wanted))
    rows = pl.concat([found.select("concept", "id", "term"), found.select(_by_id(), "id", "term")])
    if wanted is not None:
        rows = rows.filter(pl.col("concept").is_in(wanted.implode()))
    rows = rows.unique(["concept"], keep="first", maintain_order=True)
    names = rows.drop_nulls("term").select("concept", "term")
    unnamed = pl.concat([rows.filter(pl.col("term").is_null()).select("concept", "id"), _ids_not_in(rows, wanted)])
    if hierarchy is None or unnamed.is_empty():
        return Concepts(names, no_concepts().ancestors)
    above = hierarchy.above(unnamed["id"].unique())
    told = _collect(path, concepts.select(_row()).filter(pl.col("id").is_in(above["parent"].implode())))
    return Concepts(names, _nearest(unnamed, above, told))


def _name(vocabulary: pl.Expr, code: pl.Expr) -> pl.Expr:
    plain = vocabulary.str.to_lowercase().str.replace_all("[-_ ]", "").str.replace("^snomedct$", "snomed")
    undotted = code.str.replace_all(".", "", literal=True)
    return plain + "//" + pl.when(plain.str.starts_with("icd")).then(undotted).otherwise(code)


def _by_id() -> pl.Expr:
    return (pl.lit(OMOP) + pl.col("id")).alias("concept")


def _row() -> list[pl.Expr]:
    term = pl.col("concept_name").str.strip_chars()
    return [
        _name(pl.col("vocabulary_id"), pl.col("concept_code")).alias("concept"),
        pl.col("concept_id").alias("id"),
        pl.when(term != "").then(term).alias("term"),
        (pl.col("invalid_reason").fill_null("") != "").alias("invalid"),
        (pl.col("standard_concept").fill_null("") != "S").alias("not_standard"),
    ]


def _wanted(rows: pl.LazyFrame, wanted: pl.Series | None) -> pl.LazyFrame:
    rows = rows.filter(pl.col("id") != NO_CONCEPT)
    if wanted is not None:
        ids = _ids(wanted)["id"]
        rows = rows.filter(pl.col("concept").is_in(wanted.implode()) | pl.col("id").is_in(ids.implode()))
    return rows.sort("invalid", "not_standard", pl.col("id").cast(pl.Int64, strict=False))


def _ids(wanted: pl.Series) -> pl.DataFrame:
    """concept · id of what is wanted by its concept_id."""
    named = wanted.rename("concept").to_frame().filter(pl.col("concept").str.contains(rf"^{OMOP}\d+$"))
    return named.select("concept", id=pl.col("concept").str.strip_prefix(OMOP)).filter(pl.col("id") != NO_CONCEPT)


def _ids_not_in(rows: pl.DataFrame, wanted: pl.Series | None) -> pl.DataFrame:
    ids = _ids(pl.Series([], dtype=pl.String) if wanted is None else wanted)
    return ids.join(rows, on="concept", how="anti")


def _nearest(unnamed: pl.DataFrame, above: pl.DataFrame, told: pl.DataFrame) -> pl.DataFrame:
    terms = told.drop_nulls("term").unique(["id"], keep="first").select(parent="id", term="term")
    order = ["concept", "distance", pl.col("parent").cast(pl.Int64, strict=False)]
    reached = unnamed.join(above, on="id", how="inner").join(terms, on="parent", how="inner").sort(order)
    return reached.unique(["concept"], keep="first", maintain_order=True).select("concept", "term")


@dataclass(frozen=True)
class _Hierarchy:
    path: Path
    table: pl.LazyFrame

    def above(self, ids: pl.Series) -> pl.DataFrame:
        """id · parent · distance of every ancestor of the concepts."""
        return self._listed(ids) if "ancestor_concept_id" in self.table.collect_schema().names() else self._climbed(ids)

    def _listed(self, ids: pl.Series) -> pl.DataFrame:
        rows = self.table.select(
            id=pl.col("descendant_concept_id"),
            parent=pl.col("ancestor_concept_id"),
            distance=pl.col("min_levels_of_separation").cast(pl.Int64, strict=False),
        )
        return _collect(self.path, rows.filter(pl.col("id").is_in(ids.implode()) & (pl.col("distance") > 0)))

    def _climbed(self, ids: pl.Series) -> pl.DataFrame:
        is_a = (pl.col("relationship_id") == "Is a") & (pl.col("invalid_reason").fill_null("") == "")
        links = _collect(self.path, self.table.filter(is_a).select(at="concept_id_1", parent="concept_id_2")).unique()
        level = ids.rename("id").to_frame().with_columns(at=pl.col("id"))
        levels = []
        for distance in range(1, MOST_LEVELS + 1):
            level = level.join(links, on="at", how="inner").select("id", "parent").unique()
            levels.append(level.with_columns(distance=pl.lit(distance, pl.Int64)))
            level = level.rename({"parent": "at"})
        return pl.concat(levels)


def _open_hierarchy(folder: Path) -> _Hierarchy | None:
    for name, columns in (("CONCEPT_ANCESTOR.csv", ANCESTOR), ("CONCEPT_RELATIONSHIP.csv", RELATIONSHIP)):
        if (folder / name).is_file():
            return _Hierarchy(folder / name, _scan(folder / name, columns))
    return None


def _scan(path: Path, columns: tuple[str, ...]) -> pl.LazyFrame:
    if not path.is_file():
        raise refuse(str(path), "the file does not exist", "correct the path, or leave the setting out")
    try:
        # Names hold quotation marks that belong to them.
        table = pl.scan_csv(path, separator="\t", quote_char=None, infer_schema=False)
        present = table.collect_schema().names()
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    lacking = [name for name in columns if name not in present]
    if lacking:
        what = f"lacks the column{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
        raise refuse(str(path), what, "take the tab-separated file that athena.ohdsi.org gives, as it is")
    return table.select(columns)


def _collect(path: Path, rows: pl.LazyFrame) -> pl.DataFrame:
    try:
        return rows.collect(engine="streaming")
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    what = f"not readable as tab-separated text ({type(error).__name__})"
    return refuse(str(path), what, "take the file that athena.ohdsi.org gives, as it is: UTF-8, tabs, no quotes")
