"""What the coverage table counts, and that real data reads as words."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from epicrisis.narrative import STYLES, coverage, load_lookups, render, unresolved, write_csv
from tests.narrative.histories import SHIPPED, codes_table

REAL_DATA = Path(__file__).parents[2].parent / "shared" / "data"


def test_coverage_counts_events_subjects_and_codes_per_split_and_vocabulary(tmp_path):
    events = pl.LazyFrame(
        {
            "subject_id": [1, 1, 1, 2, 3],
            "code": ["ICD10CM//C61", "ICD10CM//X99", "ATC//A01", "ICD10CM//C61", "ICD10CM//X99"],
        }
    )
    splits = pl.DataFrame({"subject_id": [1, 2, 3], "split": ["train", "train", "held_out"]})
    lookups = load_lookups(codes=codes_table(("ICD10CM//C61", "Prostate cancer", None)))
    table = coverage(events, lookups, splits)
    kept = ["split", "vocabulary", "n_events", "n_subjects", "n_codes", "description", "raw", "words"]
    assert table.select(kept).rows() == [
        ("held_out", "*", 1, 1, 1, 0.0, 1.0, 0.0),
        ("held_out", "ICD10CM", 1, 1, 1, 0.0, 1.0, 0.0),
        ("train", "*", 4, 2, 3, 0.5, 0.5, 0.5),
        ("train", "ATC", 1, 1, 1, 0.0, 1.0, 0.0),
        ("train", "ICD10CM", 3, 2, 2, pytest.approx(2 / 3), pytest.approx(1 / 3), pytest.approx(2 / 3)),
    ]
    assert unresolved(events, lookups, top=1).rows() == [("ICD10CM//X99", "ICD10CM", 2, 2)]
    write_csv(table, tmp_path / "coverage" / "coverage.csv")
    assert pl.read_csv(tmp_path / "coverage" / "coverage.csv").columns == table.columns
    assert [path.name for path in (tmp_path / "coverage").iterdir()] == ["coverage.csv"]


def real_events(name: str) -> pl.LazyFrame:
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"the {name} data set is not at {REAL_DATA / name}")
    files = sorted((REAL_DATA / name / "data").rglob("*.parquet"))
    events = pl.scan_parquet(files, extra_columns="ignore", missing_columns="insert")
    if "unit" not in events.collect_schema().names():
        events = events.with_columns(pl.lit(None, pl.String).alias("unit"))
    return events.select("subject_id", "time", "code", "numeric_value", "text_value", "unit")


@pytest.mark.parametrize(("name", "n_events"), [("mimic_iv_demo", 356_063), ("gibleed", 228_479)])
def test_real_events_read_as_words(name, n_events):
    events = real_events(name)
    codes = pl.read_parquet(REAL_DATA / name / "metadata" / "codes.parquet")
    lookups = load_lookups(SHIPPED / "medical_lookup.csv", SHIPPED / "lab_lookup.csv", codes=codes)
    total = coverage(events, lookups).filter(pl.col("vocabulary") == "*").row(0, named=True)
    assert total["n_events"] == n_events
    assert total["words"] >= 0.95
    assert total["raw"] < 0.001


@pytest.mark.parametrize("style", STYLES)
def test_every_real_event_is_told(style):
    events = real_events("mimic_iv_demo").collect()
    codes = pl.read_parquet(REAL_DATA / "mimic_iv_demo" / "metadata" / "codes.parquet")
    rows = events.drop_nulls("time").group_by("subject_id").agg(prediction_time=pl.col("time").max())
    history = events.join(rows, on="subject_id", how="inner", maintain_order="left").lazy()
    told = render(history, rows, load_lookups(codes=codes), STYLES[style])
    assert told["n_events"].sum() == events.height
    phrases = told["narrative"].str.replace_all("\n", "; ").str.split("; ").list.len().sum()
    assert phrases >= events.height - 200
    assert not told["narrative"].str.contains(r"\b(?:NaN|None|null|UNK)\b").any()
