"""MEDS datasets as they come: small ones written out, and the real ones where they are at hand."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from epicrisis.events import EVENT_SCHEMA, open_meds
from epicrisis.settings.problems import InputError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
EVENTS = {
    "subject_id": [1, 1, 2],
    "time": [None, datetime(2020, 1, 1, 8), datetime(2020, 2, 1)],
    "code": ["GENDER//F", "LOINC//718-7", "MEDS_BIRTH"],
    "numeric_value": [None, 13.5, None],
}


def write(path: Path, table: pl.DataFrame) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(path)
    return path


def events(**columns: object) -> pl.DataFrame:
    table = pl.DataFrame(EVENTS | columns)
    return table if "time" in columns else table.with_columns(pl.col("time").cast(pl.Datetime("us")))


def flat_dataset(root: Path, table: pl.DataFrame) -> Path:
    write(root / "data" / "0.parquet", table)
    splits = pl.DataFrame({"subject_id": [1, 2], "split": ["train", "held_out"]})
    write(root / "metadata" / "subject_splits.parquet", splits)
    return root


def problems(root: Path) -> str:
    with pytest.raises(InputError) as error:
        open_meds(root).check()
    return str(error.value)


@pytest.mark.parametrize("unit", ["ns", "us", "ms"])
def test_times_of_any_unit_extra_columns_and_integers_read_as_one_schema(tmp_path: Path, unit: str) -> None:
    table = events(numeric_value=pl.Series([None, 13, None], dtype=pl.Int32), hadm_id=["a", "b", "c"])
    flat_dataset(tmp_path, table.with_columns(pl.col("time").cast(pl.Datetime(unit))))

    read = open_meds(tmp_path).events().collect()

    assert dict(read.schema) == EVENT_SCHEMA
    assert read.row(1) == (1, datetime(2020, 1, 1, 8), "LOINC//718-7", 13.0, None, None)
    assert read["time"].null_count() == 1


def test_large_strings_categories_units_and_text_are_read(tmp_path: Path) -> None:
    arrow = events(unit=[None, "g/dL", None], text_value=["x", None, None]).to_arrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    large = arrow.set_column(2, "code", arrow["code"].cast(pa.large_string()))
    flat_dataset(tmp_path, events())
    pq.write_table(large, tmp_path / "data" / "0.parquet")
    assert open_meds(tmp_path).events().collect()["unit"].to_list() == [None, "g/dL", None]

    flat_dataset(tmp_path, events().with_columns(pl.col("code").cast(pl.Categorical)))
    assert open_meds(tmp_path).events().collect()["code"].to_list() == EVENTS["code"]


def test_files_of_different_column_order_and_types_are_joined(tmp_path: Path) -> None:
    flat_dataset(tmp_path, events())
    other = events(subject_id=[3, 3, 3]).select("code", "time", "subject_id").cast({"time": pl.Datetime("ns")})
    write(tmp_path / "data" / "nested" / "deep" / "1.parquet", other)
    assert open_meds(tmp_path).events().collect()["subject_id"].to_list() == [1, 1, 2, 3, 3, 3]


def test_meds_0_3_patient_ids_and_patient_splits(tmp_path: Path) -> None:
    write(tmp_path / "data" / "0.parquet", events().rename({"subject_id": "patient_id"}))
    splits = pl.DataFrame({"patient_id": [1, 2], "split": ["train", "tuning"]})
    write(tmp_path / "metadata" / "patient_splits.parquet", splits)

    dataset = open_meds(tmp_path)

    assert dataset.events().collect()["subject_id"].to_list() == [1, 1, 2]
    assert dataset.splits().rows() == [(1, "train"), (2, "tuning")]


def test_splits_come_from_the_folders_where_no_file_says_them(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train" / "0.parquet", events().filter(pl.col("subject_id") == 1))
    write(tmp_path / "data" / "held_out" / "0.parquet", events().filter(pl.col("subject_id") == 2))

    dataset = open_meds(tmp_path)

    assert dataset.splits().rows() == [(1, "train"), (2, "held_out")]
    assert dataset.shards("train") == [tmp_path / "data" / "train" / "0.parquet"]
    assert dataset.shards("tuning") == []


def test_flat_files_may_hold_any_split_so_none_is_left_out(tmp_path: Path) -> None:
    dataset = open_meds(flat_dataset(tmp_path, events()))
    assert dataset.shards("tuning") == dataset.shards()


def test_without_any_splits_the_folder_opens_and_the_splits_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "data" / "0.parquet", events())
    with pytest.raises(InputError, match="nothing says which subject belongs to which split"):
        open_meds(tmp_path).splits()


def test_codes_are_optional_and_one_row_each(tmp_path: Path) -> None:
    dataset = open_meds(flat_dataset(tmp_path, events()))
    assert dataset.codes().is_empty()
    assert dataset.codes().columns == ["code", "description", "parent_codes"]

    codes = pl.DataFrame({"code": ["A", "B", "A"], "description": [None, "b", "a"], "possibly": [1, 2, 3]})
    write(tmp_path / "metadata" / "codes.parquet", codes)
    assert dataset.codes().rows() == [("A", "a", None), ("B", "b", None)]


def test_metadata_is_read_and_optional(tmp_path: Path) -> None:
    dataset = open_meds(flat_dataset(tmp_path, events()))
    assert dataset.metadata() == {}
    (tmp_path / "metadata" / "dataset.json").write_text(json.dumps({"meds_version": "0.4.1"}))
    assert dataset.metadata() == {"meds_version": "0.4.1"}
    (tmp_path / "metadata" / "dataset.json").write_text("{")
    assert "not a JSON object" in problems(tmp_path)


def test_records_say_how_far_each_subject_reaches(tmp_path: Path) -> None:
    born = events(code=["GENDER//F", "LOINC//718-7", "MEDS_BIRTH"], subject_id=[1, 1, 1])
    born = born.with_columns(pl.Series("time", [None, datetime(2020, 1, 1), datetime(1970, 5, 5)]))
    records = open_meds(flat_dataset(tmp_path, born)).check()
    assert records.to_dicts() == [
        {
            "subject_id": 1,
            "shard": 0,
            "n_events": 3,
            "first_time": datetime(1970, 5, 5),
            "last_time": datetime(2020, 1, 1),
            "record_start": datetime(2020, 1, 1),
            "birth_time": datetime(1970, 5, 5),
            "sex": "F",
        }
    ]


def test_missing_folder_and_no_event_files_are_refused(tmp_path: Path) -> None:
    assert "no such folder" in problems(tmp_path / "nowhere")
    assert "no event files" in problems(tmp_path)


def test_a_missing_column_is_named_with_its_file(tmp_path: Path) -> None:
    flat_dataset(tmp_path, events().drop("code"))
    message = problems(tmp_path)
    assert "0.parquet: column code is missing" in message
    assert "fix:" in message


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("subject_id", ["a", "b", "c"]),
        ("time", ["2020-01-01", "2020-01-02", "2020-01-03"]),
        ("time", pl.Series([datetime(2020, 1, 1)] * 3).dt.replace_time_zone("UTC")),
        ("code", [1, 2, 3]),
        ("numeric_value", ["1.0", "x", ""]),
        ("text_value", [1, 2, 3]),
    ],
)
def test_a_column_of_a_wrong_type_is_named(tmp_path: Path, column: str, values: object) -> None:
    flat_dataset(tmp_path, events(**{column: values}))
    assert f"0.parquet: column {column} is " in problems(tmp_path)


def test_all_schema_problems_are_told_at_once(tmp_path: Path) -> None:
    flat_dataset(tmp_path, events().drop("code"))
    write(tmp_path / "data" / "1.parquet", events().drop("time"))
    (tmp_path / "data" / "2.parquet").write_bytes(b"PAR1 and nothing more")
    message = problems(tmp_path)
    assert "0.parquet: column code" in message
    assert "1.parquet: column time" in message
    assert "2.parquet: cannot be read as Parquet" in message


def test_nan_and_infinite_values_are_counted(tmp_path: Path) -> None:
    flat_dataset(tmp_path, events(numeric_value=[float("nan"), 1e300, 0.0]))
    assert "0.parquet: 2 numeric values that are NaN or infinite" in problems(tmp_path)


def test_a_file_corrupt_inside_is_named(tmp_path: Path) -> None:
    many = pl.concat([events(subject_id=[n] * 3, code=[f"A{n}", f"B{n}", f"C{n}"]) for n in range(400)])
    path = flat_dataset(tmp_path, many) / "data" / "0.parquet"
    content = bytearray(path.read_bytes())
    content[4:1500] = bytes(1496)
    path.write_bytes(content)
    open_meds(tmp_path)
    assert "0.parquet: cannot be read as Parquet" in problems(tmp_path)


def test_events_without_subject_or_code_are_counted(tmp_path: Path) -> None:
    flat_dataset(tmp_path, events(subject_id=[1, None, 2], code=["A", "B", None]))
    message = problems(tmp_path)
    assert "1 events without subject_id" in message
    assert "1 events without code" in message


def test_a_subject_in_two_splits_is_counted(tmp_path: Path) -> None:
    flat_dataset(tmp_path, events())
    splits = pl.DataFrame({"subject_id": [1, 1, 2], "split": ["train", "held_out", "train"]})
    write(tmp_path / "metadata" / "subject_splits.parquet", splits)
    assert "1 subjects are in more than one split" in problems(tmp_path)


def test_unknown_split_names_are_refused(tmp_path: Path) -> None:
    flat_dataset(tmp_path, events())
    splits = pl.DataFrame({"subject_id": [1, 2], "split": ["train", "test"]})
    write(tmp_path / "metadata" / "subject_splits.parquet", splits)
    assert "unknown split names: test" in problems(tmp_path)


def test_a_subject_in_the_folders_of_two_splits_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train" / "0.parquet", events())
    write(tmp_path / "data" / "held_out" / "0.parquet", events(subject_id=[1, 1, 3]))
    assert "1 subjects have events in the folders of more than one split" in problems(tmp_path)


def test_a_subject_in_two_files_is_counted(tmp_path: Path) -> None:
    flat_dataset(tmp_path, events())
    write(tmp_path / "data" / "1.parquet", events(subject_id=[2, 2, 2]))
    assert "1 subjects have events in more than one file" in problems(tmp_path)


def test_a_folder_that_contradicts_the_splits_file_is_refused(tmp_path: Path) -> None:
    flat_dataset(tmp_path, events())
    (tmp_path / "data" / "train").mkdir()
    (tmp_path / "data" / "0.parquet").rename(tmp_path / "data" / "train" / "0.parquet")
    assert "1 subjects lie in another split's folder" in problems(tmp_path)


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    before = open_meds(flat_dataset(tmp_path, events())).fingerprint()
    assert open_meds(flat_dataset(tmp_path, events())).fingerprint() == before
    other = flat_dataset(tmp_path, events(numeric_value=[None, 13.6, None]))
    assert open_meds(other).fingerprint() != before


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real datasets lie beside the repository, in ../shared/data")
@pytest.mark.parametrize(
    ("name", "n_events", "n_subjects", "n_codes"),
    [("mimic_iv_demo", 356_063, 100, 8_908), ("gibleed", 228_479, 2_694, 355)],
)
def test_real_datasets_read_whole(name: str, n_events: int, n_subjects: int, n_codes: int) -> None:
    dataset = open_meds(SHARED / name)
    records = dataset.check()
    assert records["n_events"].sum() == n_events
    assert records.height == dataset.splits().height == n_subjects
    assert dataset.codes().height == n_codes
