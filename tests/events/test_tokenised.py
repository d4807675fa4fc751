"""The text pipeline's pickles: what each token becomes, written out, and what is refused."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.events.plain_pickle import load_plain
from epicrisis.events.tokenised import classify_vocab, convert_tokenised, events_from_tokens
from epicrisis.settings.problems import InputError

JANUARY = datetime(2020, 1, 1, 12, tzinfo=UTC).timestamp()


def events_of(*texts: str) -> list[tuple]:
    """(code, numeric_value, text_value, unit) of the events that these tokens become."""
    ids = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    vocab = pl.DataFrame({"token": list(ids.values()), "str": list(ids)})
    tokens = [ids[text] for text in texts]
    records = pl.DataFrame(
        {"subject_id": [7], "tokens": [tokens], "timestamps": [[JANUARY] * len(tokens)]},
        schema_overrides={"timestamps": pl.List(pl.Float64)},
    )
    events, _ = events_from_tokens(records, classify_vocab(vocab))
    return events.select("code", "numeric_value", "text_value", "unit").rows()


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["MEDICAL//C10"], [("MEDICAL//C10", None, None, None)]),
        (["LAB//GLUCOSE", "5.5", "mmol/L"], [("LAB//GLUCOSE", 5.5, None, "mmol/L")]),
        (["LAB//GLUCOSE", "5.5"], [("LAB//GLUCOSE", 5.5, None, None)]),
        (["LAB//BASE_EXCESS", "-2.5", "mmol/L"], [("LAB//BASE_EXCESS", -2.5, None, "mmol/L")]),
        (["LAB//PSA", "1e-3", "%"], [("LAB//PSA", pytest.approx(0.001), None, "%")]),
        (["LAB//X", "0"], [("LAB//X", 0.0, None, None)]),
        (["LAB//GLUCOSE", "Q7", "mmol/L"], [("LAB//GLUCOSE", None, "Q7", "mmol/L")]),
        (["LAB//GLUCOSE", "very high"], [("LAB//GLUCOSE", None, "very high", None)]),
        (["LAB//HIV", "positive"], [("LAB//HIV", None, "positive", None)]),
        (["LAB//GLUCOSE", "<unknown>", "mmol/L"], [("LAB//GLUCOSE", None, None, "mmol/L")]),
        (["LAB//GLUCOSE_5"], [("LAB//GLUCOSE", None, "5", None)]),
        (["LAB//GLUCOSE_5", "mmol/L"], [("LAB//GLUCOSE", None, "5", "mmol/L")]),
        (["LAB//VITAMIN_B_12", "310", "ng/L"], [("LAB//VITAMIN_B_12", 310.0, None, "ng/L")]),
        (["MEDICAL//BMI", "27.5", "kg/m2"], [("MEDICAL//BMI", 27.5, None, "kg/m2")]),
        (["MEDICAL//bp_systolic", "120"], [("MEDICAL//bp_systolic", 120.0, None, None)]),
        (["AGE: 63"], [("AGE", 63.0, None, None)]),
        (["AGE_decile_5"], [("AGE_decile_5", None, None, None)]),
        (["LAB//X", "1e300"], [("LAB//X", None, "1e300", None)]),
    ],
)
def test_one_event_per_measurement(tokens: list[str], expected: list[tuple]) -> None:
    assert events_of(*tokens) == expected


def test_a_following_event_is_never_swallowed_as_a_unit() -> None:
    found = events_of("LAB//GLUCOSE", "5.5", "MEDICAL//C10", "LAB//SODIUM", "140", "mmol/L", "MEDS_DEATH")
    assert found == [
        ("LAB//GLUCOSE", 5.5, None, None),
        ("MEDICAL//C10", None, None, None),
        ("LAB//SODIUM", 140.0, None, "mmol/L"),
        ("MEDS_DEATH", None, None, None),
    ]


def test_special_tokens_are_dropped_and_part_what_they_stand_between() -> None:
    found = events_of("<start>", "GENDER//FEMALE", "LAB//X", "<time_interval_1d>", "MEDICAL//C10", "<end>", "[PAD]")
    assert [row[0] for row in found] == ["GENDER//FEMALE", "LAB//X", "MEDICAL//C10"]


@given(st.lists(st.sampled_from(["LAB//A", "MEDICAL//B", "5.5", "low", "mmol/L", "<unknown>", "AGE: 4"]), max_size=8))
@settings(deadline=None)
def test_every_code_token_gives_exactly_one_event(tokens: list[str]) -> None:
    codes = [row[0] for row in events_of("<start>", *tokens)]
    expected = [text.split(":")[0] for text in tokens if "//" in text or text.startswith("AGE")]
    assert [code for code in codes if code != "mmol/L"] == expected


def tokenised(folder: Path, splits: dict[str, list[dict[str, Any]]], texts: list[str]) -> tuple[Path, Path]:
    for split, records in splits.items():
        (folder / "data" / split).mkdir(parents=True, exist_ok=True)
        (folder / "data" / split / "0.pkl").write_bytes(pickle.dumps(records))
    vocab = pl.DataFrame({"token": list(range(len(texts))), "str": texts})
    vocab.write_csv(folder / "vocab.csv")
    return folder / "data", folder / "vocab.csv"


TEXTS = ["GENDER//FEMALE", "MEDICAL//C10", "LAB//GLUCOSE", "5.5", "mmol/L"]
ANN = {"subject_id": 1, "tokens": [0, 1, 2, 3, 4], "timestamps": [0, JANUARY, 60, 60, 60]}
BEA = {"subject_id": 2, "tokens": [0, 1], "timestamps": [None, -86_400.5]}


def test_a_folder_of_pickles_becomes_a_meds_dataset(tmp_path: Path) -> None:
    data_dir, vocab = tokenised(tmp_path, {"train": [ANN], "test": [BEA]}, TEXTS)
    labels = tmp_path / "labels.csv"
    labels.write_text("subject_id,site,cancerdate,is_case\n1,lung,2020-01-01,1\n2,,,0\n")

    dataset = convert_tokenised(data_dir, vocab, labels, tmp_path / "meds")

    assert dataset.splits().rows() == [(1, "train"), (2, "held_out")]
    train = dataset.events(dataset.shards("train")).collect()
    assert train.select("time", "code", "numeric_value", "unit").rows() == [
        (None, "GENDER//FEMALE", None, None),
        (datetime(1970, 1, 1, 0, 1), "LAB//GLUCOSE", 5.5, "mmol/L"),
        (datetime(2020, 1, 1, 12), "MEDICAL//C10", None, None),
    ]
    held_out = dataset.events(dataset.shards("held_out")).collect()
    assert held_out["time"].to_list() == [None, datetime(1969, 12, 30, 23, 59, 59, 500_000)]
    assert dataset.metadata()["values_without_event"] == 0
    assert (tmp_path / "meds" / "index_dates.csv").read_text() == labels.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "labels.csv", "meds", "vocab.csv"]


def test_numpy_numbers_and_arrays_are_read(tmp_path: Path) -> None:
    record = {"subject_id": np.int64(1), "tokens": np.array([0, 1]), "timestamps": np.array([0, JANUARY])}
    data_dir, vocab = tokenised(tmp_path, {"train": [record]}, TEXTS)
    dataset = convert_tokenised(data_dir, vocab, None, tmp_path / "meds")
    assert dataset.events().collect()["time"].to_list() == [None, datetime(2020, 1, 1, 12)]


def test_values_without_an_event_are_counted(tmp_path: Path) -> None:
    record = {"subject_id": 1, "tokens": [3, 1], "timestamps": [5, 5]}
    data_dir, vocab = tokenised(tmp_path, {"train": [record]}, TEXTS)
    dataset = convert_tokenised(data_dir, vocab, None, tmp_path / "meds")
    assert dataset.metadata()["values_without_event"] == 1
    assert dataset.events().collect()["code"].to_list() == ["MEDICAL//C10"]


def test_an_earlier_conversion_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    data_dir, vocab = tokenised(tmp_path, {"train": [ANN]}, TEXTS)
    convert_tokenised(data_dir, vocab, None, tmp_path / "meds")
    convert_tokenised(data_dir, vocab, None, tmp_path / "meds")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no earlier conversion"):
        convert_tokenised(data_dir, vocab, None, tmp_path / "mine")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"subject_id": 1, "tokens": [0]}, "1 of 1 records are misshapen"),
        ({"subject_id": 1, "tokens": [0, 1], "timestamps": [0]}, "1 of 1 records are misshapen"),
        ({"subject_id": 1, "tokens": [0, 99], "timestamps": [0, 0]}, "1 tokens are not in the vocabulary"),
        ({"subject_id": 1, "tokens": [0, None], "timestamps": [0, 0]}, "1 tokens are not in the vocabulary"),
        ({"subject_id": 1, "tokens": [0], "timestamps": [1.6e12]}, "1 timestamps are not finite or beyond"),
        ({"subject_id": 1, "tokens": [0], "timestamps": [float("nan")]}, "1 timestamps are not finite or beyond"),
        ({"subject_id": "x", "tokens": [0], "timestamps": [0]}, "ids or times that are no numbers"),
        ({"subject_id": 1, "tokens": ["x"], "timestamps": [0]}, "ids or times that are no numbers"),
    ],
)
def test_bad_records_are_refused_and_leave_nothing(tmp_path: Path, record: dict, message: str) -> None:
    data_dir, vocab = tokenised(tmp_path, {"train": [record]}, TEXTS)
    with pytest.raises(InputError, match=message):
        convert_tokenised(data_dir, vocab, None, tmp_path / "meds")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "vocab.csv"]


def test_a_subject_in_two_splits_is_refused(tmp_path: Path) -> None:
    data_dir, vocab = tokenised(tmp_path, {"train": [ANN], "val": [ANN, BEA]}, TEXTS)
    with pytest.raises(InputError, match="1 subjects are in more than one split"):
        convert_tokenised(data_dir, vocab, None, tmp_path / "meds")


def test_an_unknown_split_folder_is_refused(tmp_path: Path) -> None:
    data_dir, vocab = tokenised(tmp_path, {"everyone": [ANN]}, TEXTS)
    with pytest.raises(InputError, match="no split: everyone"):
        convert_tokenised(data_dir, vocab, None, tmp_path / "meds")


def test_bad_vocabularies_and_labels_are_refused(tmp_path: Path) -> None:
    data_dir, vocab = tokenised(tmp_path, {"train": [ANN]}, TEXTS)
    labels = tmp_path / "labels.csv"
    labels.write_text("subject_id,cancerdate\n1,2020-01-01\n")
    with pytest.raises(InputError, match="column site, is_case is missing"):
        convert_tokenised(data_dir, vocab, labels, tmp_path / "meds")
    vocab.write_text("token,str\n0,A\n0,B\n")
    with pytest.raises(InputError, match="1 ids are listed more than once"):
        convert_tokenised(data_dir, vocab, None, tmp_path / "meds")
    vocab.write_text("id,text\n0,A\n")
    with pytest.raises(InputError, match="column token, str is missing"):
        convert_tokenised(data_dir, vocab, None, tmp_path / "meds")


class Burglar:
    """What a hostile pickle looks like: loading it calls a function of its choice."""

    def __init__(self, target: Any, *arguments: Any):
        self.target, self.arguments = target, arguments

    def __reduce__(self) -> tuple:
        return self.target, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_and_numpy_numbers_survive_any_protocol(tmp_path: Path, protocol: int) -> None:
    data = [{"a": np.arange(3), "b": np.float32(1.5), "c": [1, 2.5, None, True, "x"], "d": np.array([], float)}]
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    assert load_plain(path) == [{"a": [0, 1, 2], "b": 1.5, "c": [1, 2.5, None, True, "x"], "d": []}]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Burglar(exec, "raise SystemExit('executed')"), "builtins.exec"),
        (Burglar(getattr, "", "join"), "builtins.getattr"),
        (Path("x"), "pathlib"),
        (np.array([{}], dtype=object), "something other than numbers"),
        (np.zeros((2, 2)), "not a row of numbers"),
        (datetime(2020, 1, 1), "datetime.datetime"),
    ],
)
def test_anything_else_in_a_pickle_is_refused_by_name(tmp_path: Path, content: Any, name: str, protocol: int) -> None:
    path = tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps([content], protocol=protocol))
    with pytest.raises(InputError, match=name):
        load_plain(path)


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1, 2, 3])[:-4], b"\x80\x05K\x01"])
def test_a_broken_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.pkl: cannot be read as a pickle"):
        load_plain(path)
