"""Cohorts from MEDS labels: rows, histories, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from small_meds import write_meds

from epicrisis.cohort import Cohort, build_cohort, rows_fingerprint
from epicrisis.settings.problems import InputError

Write = Callable[..., Path]
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real datasets lie beside the repository, in ../shared/data"
)
EVENTS = [
    (1, None, "GENDER//F"),
    (1, "2020-01-01", "A"),
    (1, "2020-03-31", "B"),
    (1, "2020-12-01", "C"),
    (2, "2020-01-01", "A"),
    (2, "2020-12-01", "D"),
    (3, "2020-06-01", "E"),
]
SPLITS = {2: "held_out", 3: "tuning"}
LABELS = [(1, "2020-02-01", False), (1, "2020-03-31", True), (2, "2020-06-01", True), (3, "2020-06-01", False)]


def codes_seen(cohort: Cohort, rows: pl.DataFrame) -> list[str]:
    return cohort.history(rows).events().collect()["code"].to_list()


def refusal(**choices: object) -> str:
    with pytest.raises(InputError) as error:
        build_cohort(**choices)
    return str(error.value)


def test_rows_carry_their_split_and_label(meds: Write, labels: Write) -> None:
    cohort = build_cohort(meds(EVENTS, SPLITS), labels_dir=labels(LABELS))
    assert cohort.rows.rows() == [
        (1, datetime(2020, 2, 1), "train", False),
        (1, datetime(2020, 3, 31), "train", True),
        (2, datetime(2020, 6, 1), "held_out", True),
        (3, datetime(2020, 6, 1), "tuning", False),
    ]
    assert not cohort.strict
    assert cohort.select("held_out")["subject_id"].to_list() == [2]
    assert cohort.notes[0] == "train: 2 rows of 1 subjects, 1 positive"


def test_a_history_holds_each_rows_visible_events_in_order(meds: Write, labels: Write) -> None:
    cohort = build_cohort(meds(EVENTS, SPLITS), labels_dir=labels(LABELS))
    history = cohort.history(cohort.select("train")).events().collect()
    assert history.columns[:4] == ["subject_id", "prediction_time", "time", "code"]
    assert history.select("prediction_time", "code").rows() == [
        (datetime(2020, 2, 1), "GENDER//F"),
        (datetime(2020, 2, 1), "A"),
        (datetime(2020, 3, 31), "GENDER//F"),
        (datetime(2020, 3, 31), "A"),
        (datetime(2020, 3, 31), "B"),
    ]


def test_the_files_order_is_kept_within_equal_times(meds: Write, labels: Write) -> None:
    same_day = [(1, "2020-01-01", code) for code in "QWERTYUIOP"]
    events = [*same_day, (1, None, "Z"), (1, "2019-01-01", "FIRST"), (1, None, "Y"), (1, "2021-01-01", "LAST")]
    folder = meds(events)
    cohort = build_cohort(folder, labels_dir=labels([(1, "2020-01-01", True)]), training=False)
    assert "".join(codes_seen(cohort, cohort.rows)) == "ZYFIRSTQWERTYUIOP"


def test_shards_give_every_row_once_with_its_events(tmp_path: Path, labels: Write) -> None:
    root = write_meds(tmp_path / "meds", EVENTS, SPLITS)
    table = pl.read_parquet(root / "data" / "0.parquet")
    for subject in (1, 2, 3):
        table.filter(pl.col("subject_id") == subject).write_parquet(root / "data" / f"{subject}.parquet")
    (root / "data" / "0.parquet").unlink()
    cohort = build_cohort(root, labels_dir=labels(LABELS))

    parts = list(cohort.history(cohort.rows.filter(pl.col("subject_id") != 2)).shards())

    assert [rows["subject_id"].to_list() for rows, _ in parts] == [[1, 1], [3]]
    assert parts[0][0].columns == cohort.rows.columns
    joined = pl.concat([events.collect() for _, events in parts])
    assert joined.equals(cohort.history(cohort.rows.filter(pl.col("subject_id") != 2)).events().collect())


def test_an_empty_selection_has_an_empty_history(meds: Write, labels: Write) -> None:
    cohort = build_cohort(meds(EVENTS, SPLITS), labels_dir=labels(LABELS))
    empty = cohort.history(cohort.rows.clear()).events().collect()
    assert empty.height == 0
    assert empty.columns == ["subject_id", "prediction_time", "time", "code", "numeric_value", "text_value", "unit"]


def test_a_cutoff_moves_the_prediction_back_by_calendar_months_and_is_strict(meds: Write, labels: Write) -> None:
    rows = [(1, "2020-04-30", True), (1, "2020-12-01", False), (2, "2020-12-01", True)]
    cohort = build_cohort(meds(EVENTS), labels_dir=labels(rows), cutoff_months=1)
    assert cohort.strict
    assert cohort.rows["prediction_time"].to_list() == [
        datetime(2020, 3, 30),
        datetime(2020, 11, 1),
        datetime(2020, 11, 1),
    ]
    assert codes_seen(cohort, cohort.rows[:1]) == ["GENDER//F", "A"]


def test_a_cutoff_of_zero_months_is_a_cutoff(meds: Write, labels: Write) -> None:
    rows = [(1, "2020-03-31", True), (2, "2020-06-01", False)]
    cohort = build_cohort(meds(EVENTS), labels_dir=labels(rows), cutoff_months=0)
    assert codes_seen(cohort, cohort.rows[:1]) == ["GENDER//F", "A"]


def test_rows_that_the_cutoff_moves_onto_each_other(meds: Write, labels: Write) -> None:
    rows = [(1, "2020-07-30", True), (1, "2020-07-31", True), (2, "2020-06-01", False)]
    cohort = build_cohort(meds(EVENTS), labels_dir=labels(rows), cutoff_months=1)
    assert cohort.rows.height == 2
    assert "1 rows fell on another row's time after the cutoff and were counted once" in cohort.notes
    conflicting = labels([(1, "2020-07-30", True), (1, "2020-07-31", False)])
    assert "conflicting labels" in refusal(meds_dir=meds(EVENTS), labels_dir=conflicting, cutoff_months=1)


def test_multilabel_rows_with_a_cutoff(meds: Write, labels: Write) -> None:
    rows = [(1, "2020-07-30", "x"), (1, "2020-07-30", "y"), (2, "2020-06-01", "x")]
    cohort = build_cohort(meds(EVENTS), labels_dir=labels(rows, "categorical_value"), cutoff_months=1)
    assert cohort.rows["label"].to_list() == [["x", "y"], ["x"]]


def test_without_labels_every_subject_is_a_row_at_its_last_event(meds: Write) -> None:
    events = [*EVENTS, (4, None, "GENDER//M")]
    cohort = build_cohort(meds(events, SPLITS))
    assert cohort.task.kind == "none"
    assert cohort.rows.rows() == [
        (1, datetime(2020, 12, 1), "train", None),
        (2, datetime(2020, 12, 1), "held_out", None),
        (3, datetime(2020, 6, 1), "tuning", None),
    ]
    assert "1 subjects without any dated event were left out" in cohort.notes
    assert sorted(codes_seen(cohort, cohort.rows)) == sorted(event[2] for event in EVENTS)


def test_empty_histories_are_allowed_and_noted(meds: Write, labels: Write) -> None:
    rows = [(1, "2019-01-01", True), (2, "2020-06-01", False)]
    cohort = build_cohort(meds(EVENTS), labels_dir=labels(rows))
    assert codes_seen(cohort, cohort.rows[:1]) == ["GENDER//F"]
    assert "1 rows have no dated event in sight at their prediction time" in cohort.notes


def test_unknown_subjects_and_late_labels_are_counted_together(meds: Write, labels: Write) -> None:
    rows = [(9, "2020-01-01", True), (8, "2020-01-01", True), (1, "2020-12-01", True), (3, "2020-06-02", False)]
    message = refusal(meds_dir=meds(EVENTS), labels_dir=labels(rows))
    assert "2 label rows name subjects without any event" in message
    assert "1 rows have a prediction_time after the subject's last event" in message
    assert "fix:" in message


def test_rows_without_a_split_are_counted(meds: Write, labels: Write) -> None:
    root = meds(EVENTS)
    pl.DataFrame({"subject_id": [1], "split": ["train"]}).write_parquet(root / "metadata" / "subject_splits.parquet")
    assert "2 rows name subjects that are in no split" in refusal(meds_dir=root, labels_dir=labels(LABELS))


def test_a_train_split_that_cannot_teach_is_refused_for_training_only(meds: Write, labels: Write) -> None:
    one_class = labels([(1, "2020-02-01", True), (1, "2020-03-01", True), (2, "2020-06-01", False)])
    assert "all 2 train rows have the same label" in refusal(meds_dir=meds(EVENTS, SPLITS), labels_dir=one_class)
    assert build_cohort(meds(EVENTS, SPLITS), labels_dir=one_class, training=False).rows.height == 3
    held_out = labels([(2, "2020-06-01", True), (2, "2020-07-01", False)])
    assert "the train split has no rows" in refusal(meds_dir=meds(EVENTS, SPLITS), labels_dir=held_out)
    same_sets = [(1, day, word) for day in ("2020-02-01", "2020-03-01") for word in ("x", "y")]
    multilabel = labels(same_sets, "categorical_value")
    assert "nothing to learn" in refusal(meds_dir=meds(EVENTS, SPLITS), labels_dir=multilabel)


def test_choices_that_exclude_each_other_are_refused(meds: Write, labels: Write, tmp_path: Path) -> None:
    root, folder = meds(EVENTS), labels(LABELS)
    both = refusal(meds_dir=root, labels_dir=folder, index_dates_filepath=tmp_path / "dates.csv")
    assert "are both given" in both
    assert "no date to count back from" in refusal(meds_dir=root, cutoff_months=3)
    assert "-1 is negative" in refusal(meds_dir=root, labels_dir=folder, cutoff_months=-1)


def test_bad_events_are_refused_before_any_label_is_read(meds: Write, labels: Write) -> None:
    root = meds([*EVENTS, (1, "2020-01-01", "X", float("nan"))])
    assert "1 numeric values that are NaN" in refusal(meds_dir=root, labels_dir=labels(LABELS))


def test_strangers_and_unknown_splits_are_refused(meds: Write, labels: Write) -> None:
    cohort = build_cohort(meds(EVENTS, SPLITS), labels_dir=labels(LABELS))
    with pytest.raises(InputError, match="1 rows name subjects that have no events"):
        cohort.history(pl.DataFrame({"subject_id": [99], "prediction_time": [datetime(2020, 1, 1)]}))
    with pytest.raises(InputError, match="'test' is no split"):
        cohort.select("test")


def test_the_rows_fingerprint_ignores_order_and_nothing_else() -> None:
    time = datetime(2020, 1, 1)
    rows = pl.DataFrame({"subject_id": [1, 2], "prediction_time": [time, time], "label": [True, False]})
    assert rows_fingerprint(rows) == rows_fingerprint(rows.reverse())
    assert rows_fingerprint(rows) != rows_fingerprint(rows.with_columns(pl.col("label").reverse()))
    assert rows_fingerprint(rows) != rows_fingerprint(rows[:1])
    words = rows.with_columns(label=pl.Series([["a,b"], ["a", "b"]]))
    assert rows_fingerprint(words) == rows_fingerprint(words.reverse())
    assert rows_fingerprint(words) != rows_fingerprint(words.with_columns(label=pl.Series([["a", "b"], ["a,b"]])))


@needs_shared
@pytest.mark.parametrize(
    ("dataset", "task", "rows", "positives"),
    [
        ("gibleed", "gi_bleed", {"train": 1817, "tuning": 262, "held_out": 541}, 479),
        ("mimic_iv_demo", "in_hospital_mortality", {"train": 212, "tuning": 15, "held_out": 18}, 14),
        ("mimic_iv_demo", "readmission_30d", {"train": 225, "tuning": 15, "held_out": 19}, 52),
    ],
)
def test_real_cohorts(dataset: str, task: str, rows: dict[str, int], positives: int) -> None:
    cohort = build_cohort(SHARED / dataset, labels_dir=SHARED / dataset / "labels" / task)
    assert {split: cohort.select(split).height for split in rows} == rows
    assert cohort.rows["label"].sum() == positives
    history = cohort.history(cohort.select("held_out")).events().collect()
    assert history.filter(pl.col("time") > pl.col("prediction_time")).is_empty()
    assert history["subject_id"].n_unique() == cohort.select("held_out")["subject_id"].n_unique()
