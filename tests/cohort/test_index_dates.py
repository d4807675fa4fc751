"""Cohorts given as index dates: reading them, cutting before them, and matching the controls."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from epicrisis.cohort import Cohort, build_cohort
from epicrisis.cohort.index_dates import read_index_dates
from epicrisis.cohort.matching import match_index_dates
from epicrisis.events.tokenised import convert_tokenised
from epicrisis.settings.problems import InputError

Write = Callable[..., Path]
HEADER = "subject_id,site,cancerdate,is_case\n"
EVENTS = [
    (1, None, "GENDER//F"),
    (1, "2015-01-01", "A"),
    (1, "2018-06-14T23:00:00", "B"),
    (1, "2018-06-15", "ON_THE_CUTOFF_DAY"),
    (1, "2018-06-15T10:00:00", "LATER_THAT_DAY"),
    (1, "2018-07-15", "CANCER"),
    (2, "2015-02-01", "A"),
    (2, "2020-01-01", "STILL_WELL"),
]


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str], Path]:
    def write(lines: str) -> Path:
        path = tmp_path / "cancer.csv"
        path.write_text(HEADER + lines)
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_index_dates(path)
    return str(error.value)


def test_the_text_pipelines_csv(csv: Write) -> None:
    table = read_index_dates(csv("1,lung,2018-07-15,1\n2,,,0\n"))
    assert table.rows() == [(1, datetime(2018, 7, 15), True), (2, None, False)]


def test_parquet_index_dates_count_by_the_day(tmp_path: Path) -> None:
    path = tmp_path / "cancer.parquet"
    rows = {"subject_id": [1, 2], "index_date": [datetime(2018, 7, 15, 13), None], "boolean_value": [True, False]}
    pl.DataFrame(rows).write_parquet(path)
    assert read_index_dates(path).rows() == [(1, datetime(2018, 7, 15), True), (2, None, False)]


def test_the_cutoff_counts_months_back_and_hides_the_cutoff_day(meds: Write, csv: Write) -> None:
    path = csv("1,lung,2018-07-15,1\n2,,2018-07-15,0\n")
    cohort = build_cohort(meds(EVENTS), index_dates_filepath=path, cutoff_months=1)
    assert (cohort.task.name, cohort.task.kind, cohort.strict) == ("cancer", "binary", True)
    assert cohort.rows["prediction_time"].to_list() == [datetime(2018, 6, 15)] * 2
    assert cohort.history(cohort.rows[:1]).events().collect()["code"].to_list() == ["GENDER//F", "A", "B"]


def test_without_a_cutoff_the_index_day_itself_is_unseen(meds: Write, csv: Write) -> None:
    path = csv("1,lung,2018-07-15,1\n2,,2018-07-15,0\n")
    cohort = build_cohort(meds(EVENTS), index_dates_filepath=path)
    assert "CANCER" not in cohort.history(cohort.rows).events().collect()["code"].to_list()


def test_a_control_without_a_date_gets_a_cases(meds: Write, csv: Write) -> None:
    cohort = build_cohort(meds(EVENTS), index_dates_filepath=csv("1,lung,2018-07-15,1\n2,,,0\n"), cutoff_months=1)
    assert cohort.rows["prediction_time"].to_list() == [datetime(2018, 6, 15)] * 2
    assert "1 controls were given a matched index date" in cohort.notes


def test_controls_must_bring_their_dates_where_they_are_to_be_given(meds: Write, csv: Write) -> None:
    path = csv("1,lung,2018-07-15,1\n2,,,0\n")
    with pytest.raises(InputError, match="1 controls have no index date"):
        build_cohort(meds(EVENTS), index_dates_filepath=path, control_index_dates="given")


def test_controls_not_under_observation_at_any_cases_date_are_dropped_and_counted(meds: Write, csv: Write) -> None:
    events = [*EVENTS, (3, "2019-01-01", "LATE"), (3, "2020-01-01", "LATE"), (4, None, "GENDER//M")]
    path = csv("1,lung,2018-07-15,1\n2,,,0\n3,,,0\n4,,,0\n")
    cohort = build_cohort(meds(events), index_dates_filepath=path)
    assert cohort.rows["subject_id"].to_list() == [1, 2]
    assert "2 controls were dropped: no case's index date lies within their record" in cohort.notes


def test_bad_values_are_counted_all_at_once(csv: Write) -> None:
    message = refusal(csv("1,lung,15.07.2018,1\n2,lung,,1\n3,,,maybe\nx,,,0\n5,,2018-02-30,0\n"))
    assert "2 rows have an index date that cannot be read" in message
    assert "1 cases have no index date" in message
    assert "1 rows say neither case nor control" in message
    assert "1 rows have a subject_id that is no integer" in message
    assert "2018-02-30" not in message


def test_missing_columns_and_files_are_refused(csv: Write, tmp_path: Path) -> None:
    path = csv("")
    path.write_text("subject_id,date\n1,2018-01-01\n")
    assert "column index_date, boolean_value is missing" in refusal(path)
    assert "no such file" in refusal(tmp_path / "nowhere.csv")
    (tmp_path / "bad.parquet").write_bytes(b"no")
    assert "cannot be read as a table" in refusal(tmp_path / "bad.parquet")


@pytest.mark.parametrize("lines", ["1,a,2018-01-01,1\n1,,2018-01-01,0\n", "1,a,2018-01-01,1\n1,,,0\n"])
def test_contradicting_rows_are_counted(csv: Write, lines: str) -> None:
    assert "1 subjects have conflicting rows" in refusal(csv(lines))


def test_unknown_subjects_late_dates_and_empty_cohorts_are_refused(meds: Write, csv: Write) -> None:
    with pytest.raises(InputError, match="1 label rows name subjects without any event"):
        build_cohort(meds(EVENTS), index_dates_filepath=csv("1,a,2018-07-15,1\n9,,,0\n"))
    with pytest.raises(InputError, match="1 rows have a prediction_time after the subject's last event"):
        build_cohort(meds(EVENTS), index_dates_filepath=csv("1,a,2019-07-15,1\n2,,2019-07-15,0\n"))
    with pytest.raises(InputError, match="the cohort is empty"):
        build_cohort(meds(EVENTS), index_dates_filepath=csv(""))


def person(subject: int, start: int, last: int, index: int | None, birth: int | None, sex: str | None) -> dict:
    return {
        "subject_id": subject,
        "split": "train",
        "label": index is not None,
        "index_date": None if index is None else datetime(index, 6, 1),
        "record_start": datetime(start, 1, 1),
        "last_time": datetime(last, 12, 31),
        "birth_time": None if birth is None else datetime(birth, 1, 1),
        "sex": sex,
    }


def matched_year(control: dict, cases: list[dict]) -> int | None:
    people = pl.DataFrame([control, *cases], infer_schema_length=None)
    people = people.with_columns(pl.col("birth_time").cast(pl.Datetime("us")), pl.col("sex").cast(pl.String))
    date = match_index_dates(people, seed=0)["index_date"][0]
    return None if date is None else date.year


def test_a_control_is_matched_by_sex_then_birth_and_record_start() -> None:
    case = person(1, 2000, 2009, 2009, 1950, "F")
    other_sex = person(2, 2000, 2010, 2010, 1950, "M")
    younger = person(3, 2000, 2011, 2011, 1980, "F")
    later = person(4, 2005, 2012, 2012, 1950, "F")
    control = person(9, 2000, 2020, None, 1950, "F")
    assert matched_year(control, [case, other_sex, younger, later]) == 2009
    assert matched_year(control, [other_sex, younger, later]) == 2012
    assert matched_year(control, [other_sex, younger]) == 2011
    assert matched_year(control, [other_sex]) == 2010


def test_unknown_factors_are_left_out() -> None:
    control = person(9, 2000, 2020, None, None, None)
    assert matched_year(control, [person(1, 2000, 2009, 2009, None, None)]) == 2009


def test_a_control_is_under_observation_at_its_index_date() -> None:
    control = person(9, 2004, 2010, None, 1950, "F")
    early, late = person(1, 2000, 2003, 2003, 1950, "F"), person(2, 2000, 2011, 2011, 1950, "F")
    assert matched_year(control, [early, late]) is None
    assert matched_year(control, [early, late, person(3, 1990, 2009, 2009, 1980, "M")]) == 2009


def population(root: Path, n_cases: int, n_controls: int) -> Path:
    """Cases whose records end at their diagnosis; controls who are followed for up to twenty years.

    Both enter over ten years; a case falls ill some four years later. Events come at the same rate in both.
    """
    rng = np.random.default_rng(5)
    n = n_cases + n_controls
    is_case = np.arange(n) < n_cases
    start = rng.uniform(0, 3650, n)
    length = np.where(is_case, np.minimum(rng.exponential(1500, n) + 30, 7000), rng.uniform(1500, 7300, n))
    per_subject = np.maximum(length / 60, 1).astype(int)
    subject = np.repeat(np.arange(n), per_subject + 2)
    offset = np.concatenate(
        [
            np.concatenate([[0.0, extent], rng.uniform(0, extent, k)])
            for extent, k in zip(length, per_subject, strict=True)
        ]
    )
    origin = datetime(2000, 1, 1)
    day = ((start[subject] + offset) * 86_400e6).astype("int64")
    time = pl.Series(day).cast(pl.Duration("us")) + origin
    (root / "data" / "train").mkdir(parents=True)
    events = pl.DataFrame({"subject_id": subject, "time": time, "code": ["A"] * len(subject)})
    events.sort("subject_id", "time").write_parquet(root / "data" / "train" / "0.parquet")
    diagnosed = [(origin + timedelta(days=float(d))).date() for d in (start + length)[:n_cases]]
    dates = pl.DataFrame({"subject_id": np.arange(n), "cancerdate": [*diagnosed, *[None] * n_controls]})
    dates.with_columns(is_case=pl.Series(is_case.astype(int))).write_csv(root / "dates.csv")
    return root


def canaries(cohort: Cohort) -> dict[str, float]:
    """AUROC of what must not tell cases from controls: the length of what is seen, and its last date."""
    seen = cohort.history(cohort.rows).events().group_by("subject_id", "prediction_time")
    first, last = pl.col("time").min(), pl.col("time").max()
    scores = seen.agg(pl.len().alias("n_events"), last.alias("last_date"), (last - first).alias("extent")).collect()
    table = cohort.rows.join(scores, on=["subject_id", "prediction_time"], how="left")
    return {
        name: float(roc_auc_score(table["label"], table[name].to_physical().fill_null(0)))
        for name in ("n_events", "last_date", "extent")
    }


def test_record_length_and_last_date_do_not_tell_cases_from_controls(tmp_path: Path) -> None:
    root = population(tmp_path / "meds", n_cases=600, n_controls=1800)
    matched = build_cohort(root, index_dates_filepath=root / "dates.csv", cutoff_months=1, seed=1)
    for name, auroc in canaries(matched).items():
        assert auroc == pytest.approx(0.5, abs=0.04), name

    table = pl.read_csv(root / "dates.csv", try_parse_dates=True)
    last = matched.records.select("subject_id", pl.col("last_time").dt.date())
    whole = table.join(last, on="subject_id").with_columns(pl.coalesce("cancerdate", "last_time").alias("cancerdate"))
    whole.drop("last_time").write_csv(root / "whole.csv")
    leaking = build_cohort(root, index_dates_filepath=root / "whole.csv", cutoff_months=1)
    assert canaries(leaking)["extent"] < 0.3


def test_matching_is_seeded(tmp_path: Path) -> None:
    root = population(tmp_path / "meds", n_cases=40, n_controls=100)
    first, again, other = (
        build_cohort(root, index_dates_filepath=root / "dates.csv", seed=seed).rows for seed in (1, 1, 2)
    )
    assert first.equals(again)
    assert not first.equals(other)


def test_tokenised_data_and_its_labels_make_a_cohort(tmp_path: Path) -> None:
    day = 86_400
    case = {"subject_id": 1, "tokens": [0, 1, 1, 2], "timestamps": [0, day, 40 * day, 100 * day]}
    control = {"subject_id": 2, "tokens": [0, 1, 1], "timestamps": [0, day, 400 * day]}
    (tmp_path / "tokens" / "train").mkdir(parents=True)
    (tmp_path / "tokens" / "train" / "0.pkl").write_bytes(pickle.dumps([case, control]))
    (tmp_path / "vocab.csv").write_text("token,str\n0,GENDER//FEMALE\n1,MEDICAL//I10\n2,MEDICAL//C34\n")
    (tmp_path / "labels.csv").write_text(HEADER + "1,lung,1970-04-11,1\n2,,,0\n")
    root = tmp_path / "meds"
    convert_tokenised(tmp_path / "tokens", tmp_path / "vocab.csv", tmp_path / "labels.csv", root)

    cohort = build_cohort(root, index_dates_filepath=root / "index_dates.csv", cutoff_months=1)

    history = cohort.history(cohort.rows).events().select("subject_id", "code").collect()
    assert history.rows() == [
        (1, "GENDER//FEMALE"),
        (1, "MEDICAL//I10"),
        (1, "MEDICAL//I10"),
        (2, "GENDER//FEMALE"),
        (2, "MEDICAL//I10"),
    ]
