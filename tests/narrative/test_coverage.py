"""What the coverage table counts, what its page shows, and that real data reads as words."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from epicrisis.narrative import STYLES, known_codes, load_lookups, make_narrator, render
from epicrisis.narrative.coverage import (
    SOURCES,
    CodeWords,
    coverage,
    coverage_counts,
    merge_counts,
    unresolved,
    write_coverage,
)
from tests.narrative.histories import SHIPPED, codes_table

REAL_DATA = Path(__file__).parents[2].parent / "shared" / "data"

LOOKUPS = load_lookups(codes=codes_table(("ICD10CM//C61", "Prostate cancer", None)))

EVENTS = pl.DataFrame(
    {
        "subject_id": [1, 1, 1, 2, 3],
        "code": ["ICD10CM//C61", "ICD10CM//X99", "ATC//A01", "ICD10CM//C61", "ICD10CM//X99"],
    }
)
SPLITS = pl.DataFrame({"subject_id": [1, 2, 3], "split": ["train", "train", "held_out"]})


def test_coverage_counts_events_subjects_and_codes_per_split_and_vocabulary():
    table = coverage(coverage_counts(EVENTS, LOOKUPS, SPLITS), LOOKUPS)
    kept = ["split", "vocabulary", "n_events", "n_subjects", "n_codes", "description", "raw", "words"]
    assert table.select(kept).rows() == [
        ("held_out", "*", 1, 1, 1, 0.0, 1.0, 0.0),
        ("held_out", "ICD10CM", 1, 1, 1, 0.0, 1.0, 0.0),
        ("train", "*", 4, 2, 3, 0.5, 0.5, 0.5),
        ("train", "ATC", 1, 1, 1, 0.0, 1.0, 0.0),
        ("train", "ICD10CM", 3, 2, 2, pytest.approx(2 / 3), pytest.approx(1 / 3), pytest.approx(2 / 3)),
    ]


def test_coverage_by_subject_weighs_every_subject_alike():
    table = coverage(coverage_counts(EVENTS, LOOKUPS, SPLITS), LOOKUPS).filter(split="train")
    kept = ["vocabulary", "words_by_subject", "n_subjects_unread", "subjects_description", "subjects_raw"]
    assert table.select(kept).rows() == [
        ("*", pytest.approx((1 / 3 + 1) / 2), 1, 1.0, 0.5),
        ("ATC", 0.0, 1, 0.0, 1.0),
        ("ICD10CM", pytest.approx((1 / 2 + 1) / 2), 1, 1.0, 0.5),
    ]


def test_without_splits_all_subjects_are_one_and_those_in_no_split_are_told_apart():
    assert coverage(coverage_counts(EVENTS, LOOKUPS), LOOKUPS)["split"].unique().to_list() == ["all"]
    table = coverage(coverage_counts(EVENTS, LOOKUPS, SPLITS.filter(split="train")), LOOKUPS)
    assert sorted(table["split"].unique()) == ["(none)", "train"]


def test_unresolved_codes_come_most_frequent_first_over_all_splits():
    counts = coverage_counts(EVENTS, LOOKUPS, SPLITS)
    assert unresolved(counts, LOOKUPS).rows() == [("ICD10CM//X99", "ICD10CM", 2, 2), ("ATC//A01", "ATC", 1, 1)]
    assert unresolved(counts, LOOKUPS, top=1).rows() == [("ICD10CM//X99", "ICD10CM", 2, 2)]


SOME_EVENTS = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from([*EVENTS["code"], "DIET//Low salt", "DIET//1"])), max_size=30
)


def as_table(events: list[tuple[int, str]]) -> pl.DataFrame:
    return pl.DataFrame(events, schema={"subject_id": pl.Int64, "code": pl.String}, orient="row")


@settings(deadline=None, max_examples=30)
@given(events=SOME_EVENTS)
def test_counts_are_those_of_a_plain_recount(events: list[tuple[int, str]]):
    counts = coverage_counts(as_table(events), LOOKUPS, SPLITS)
    split_of, known = dict(SPLITS.iter_rows()), CodeWords(LOOKUPS).look_up(as_table(events)["code"])
    told = {code: ways for code, *ways in known.select("code", "vocabulary", "source", "words").iter_rows()}
    codes, subjects = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for subject, code in events:
        split = split_of.get(subject, "(none)")
        codes[split, code].append(subject)
        for vocabulary in (told[code][0], "*"):
            subjects[split, vocabulary][subject].append(told[code])
    assert sorted(counts.codes.iter_rows()) == sorted((*key, len(who), len(set(who))) for key, who in codes.items())
    assert counts.subjects.height == len(subjects)
    for row in counts.subjects.iter_rows(named=True):
        each = subjects[row["split"], row["vocabulary"]].values()
        assert row["n_subjects"] == len(each)
        assert row["n_subjects_unread"] == sum(not all(reads for *_, reads in events) for events in each)
        assert row["words"] == pytest.approx(sum(sum(reads for *_, reads in events) / len(events) for events in each))
        for name in SOURCES:
            assert row[f"subjects_{name}"] == sum(any(source == name for _, source, _ in events) for events in each)


@settings(deadline=None, max_examples=15)
@given(
    events=SOME_EVENTS,
    shard_of=st.lists(st.integers(0, 2), min_size=6, max_size=6),
)
def test_shards_counted_apart_add_up_to_the_whole(events: list[tuple[int, str]], shard_of: list[int]):
    shards = [[event for event in events if shard_of[event[0] - 1] == shard] for shard in range(3)]
    count = partial(coverage_counts, words=CodeWords(LOOKUPS), splits=SPLITS)
    merged = merge_counts(count(as_table(shard)) for shard in shards)
    expected = count(as_table(events))
    assert_frame_equal(merged.codes, expected.codes, check_row_order=False)
    assert_frame_equal(merged.subjects, expected.subjects, check_row_order=False)
    table = coverage(merged, LOOKUPS)
    assert table.select(pl.sum_horizontal(SOURCES).sub(1).abs().lt(1e-9).all()).item()
    assert (table["n_subjects_unread"] <= table["n_subjects"]).all()


def many(code: str, n_subjects: int, n_events: int) -> pl.DataFrame:
    """That many events of the code, spread over that many subjects."""
    return pl.DataFrame({"subject_id": [number % n_subjects for number in range(n_events)], "code": [code] * n_events})


def written(folder: Path) -> tuple[str, pl.DataFrame, pl.DataFrame]:
    """The page, coverage.csv and unresolved.csv of 12, 9 and 9 subjects with codes that read as nothing."""
    events = pl.concat([many("X//1", 12, 40), many("<b>//2", 9, 33), many("X//3", 9, 9), many("ICD10CM//C61", 12, 27)])
    counts = coverage_counts(events, LOOKUPS)
    page = write_coverage(folder, coverage(counts, LOOKUPS), unresolved(counts, LOOKUPS))
    assert page == folder / "coverage.html"
    return page.read_text(), pl.read_csv(folder / "coverage.csv"), pl.read_csv(folder / "unresolved.csv")


def test_coverage_is_written_as_tables_and_a_page(tmp_path):
    page, table, missing = written(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "coverage.csv",
        "coverage.html",
        "unresolved.csv",
    ]
    assert table.filter(vocabulary="*").select("n_events", "n_subjects", "words").rows() == [(109, 12, 0.2477)]
    assert '<span style="width: 24.8%"></span>' in page
    assert missing.columns == ["code", "vocabulary", "n_events", "n_subjects"]


def test_few_subjects_are_not_counted_out(tmp_path):
    page, _, missing = written(tmp_path)
    assert missing.rows() == [
        ("X//1", "X", "40", "12"),
        ("<b>//2", "<b>", "33", "<10"),
        ("X//3", "X", "<10", "<10"),
    ]
    assert '<td class="number">&lt;10</td><td class="number">&lt;10</td>' in page
    assert '<td class="number">9</td>' not in page


def test_page_is_self_contained_and_codes_in_it_are_text(tmp_path):
    page, _, _ = written(tmp_path)
    assert "&lt;b&gt;//2" in page
    assert "<b>" not in page
    assert not [word for word in ("http", "<script", "<link", "src=") if word in page]


def test_page_says_when_every_code_reads_as_words(tmp_path):
    counts = coverage_counts(many("ICD10CM//C61", 12, 12), LOOKUPS)
    page = write_coverage(tmp_path, coverage(counts, LOOKUPS), unresolved(counts, LOOKUPS)).read_text()
    assert "<p>None.</p>" in page
    assert pl.read_csv(tmp_path / "unresolved.csv").is_empty()


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
    counts = coverage_counts(events.select("subject_id", "code").collect(), lookups)
    total = coverage(counts, lookups).filter(vocabulary="*").row(0, named=True)
    assert total["n_events"] == n_events
    assert total["words"] >= 0.95
    assert total["raw"] < 0.001


@pytest.mark.parametrize("style", ["timeline", "flat"])
def test_every_real_event_is_told(style):
    events = real_events("mimic_iv_demo").collect()
    codes = pl.read_parquet(REAL_DATA / "mimic_iv_demo" / "metadata" / "codes.parquet")
    rows = events.drop_nulls("time").group_by("subject_id").agg(prediction_time=pl.col("time").max())
    history = events.join(rows, on="subject_id", how="inner", maintain_order="left").lazy()
    narrator = make_narrator(known_codes(events["code"]), load_lookups(codes=codes), STYLES[style])
    told = render(history, rows, narrator)
    assert told["n_events"].sum() == events.height
    phrases = told["narrative"].str.replace_all("\n", "; ").str.split("; ").list.len().sum()
    assert phrases >= events.height - 200
    without_codes = told["narrative"].str.replace_all(r"\[[^\]]*\]", "")
    assert not without_codes.str.contains(r"\b(?:NaN|None|null|UNK)\b").any()
