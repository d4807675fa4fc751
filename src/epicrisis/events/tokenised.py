"""The text pipeline's tokenised pickles in: `<data_dir>/<split>/*.pkl` and its vocabulary, as a MEDS dataset.

Each pickle is a list of dicts {subject_id, tokens: list of ids, timestamps: list of Unix seconds, 0 or None
for static}. The vocabulary CSV gives each id (`token`) its text (`str`). A measurement is several tokens
there (`LAB//GLUCOSE`, `5.5`, `mmol/L`) and one event here, which no filter can take apart.

| token                                           | becomes                                               |
|-------------------------------------------------|-------------------------------------------------------|
| `MEDICAL//C10`, any text with `//`              | an event with that code                               |
| `5.5`, `-2`, `1e-3` after one                   | its numeric_value                                     |
| `Q7`, `low`, `very high` after one              | its text_value                                        |
| any other text after such a value               | its unit                                              |
| any other text after `LAB//`, `MEASUREMENT//`,  | its text_value                                        |
| `MEDICAL//BMI`, `MEDICAL//bp_`                  |                                                       |
| `LAB//GLUCOSE_5` without a value token          | `LAB//GLUCOSE` with text_value `5`, the bin           |
| `AGE: 63`                                       | `AGE` with numeric_value 63                           |
| `AGE_decile_5`, `MEDS_BIRTH`, other text        | an event with that code                               |
| `<start>`, `<time_interval_XX>`, `[PAD]`        | nothing (an event's own time says when)               |
| `<unknown>`                                     | nothing (in a value's place: a value that is unknown) |
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import polars as pl

from epicrisis.events.meds import EVENT_SCHEMA, SPLITS, TIME, UNREADABLE, MedsDataset, open_meds
from epicrisis.events.plain_pickle import load_plain
from epicrisis.settings.problems import InputError, Problem, refuse

ETL_NAME = "epicrisis.events.tokenised"
_OTHER_SPLIT_NAMES = {"val": "tuning", "validation": "tuning", "test": "held_out"}
_SPLIT_NAMES = {name: name for name in SPLITS} | _OTHER_SPLIT_NAMES
_LABEL_COLUMNS = ("subject_id", "site", "cancerdate", "is_case")
_RECORD_KEYS = ("subject_id", "tokens", "timestamps")
_LATEST_SECONDS = 32_503_680_000  # the year 3000: whatever is later was not written in seconds

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SPECIAL = r"^(?:<[^<>]+>|\[(?:PAD|CLS|SEP|MASK|UNK|BOS|EOS)\])$"
_WORD = r"^(?:Q\d{1,3}|(?i:normal|(?:very[ _])?(?:low|high)))$"
_MEASURABLE = r"^(?:LAB//|MEASUREMENT//|MEDICAL//BMI|MEDICAL//bp_)"
_GLUED = r"^((?:LAB|MEASUREMENT)//.+)_(\d{1,2})$"
_FLOAT32_MAX = 3.4028234e38


def convert_tokenised(
    data_dir: Path, vocab_filepath: Path, labels_filepath: Path | None, output_dir: Path
) -> MedsDataset:
    """Writes the tokenised data as a MEDS dataset and opens it; one event file per pickle.

    Split folders may be named train, tuning, held_out, or val and test. The labels CSV is kept in the folder
    as `index_dates.csv`, for `data.index_dates_filepath`. An earlier conversion in `output_dir` is replaced.
    Nothing is left behind unless all went well. Raises InputError for whatever is wrong with the input, with
    counts; `metadata/dataset.json` counts what had no event to belong to.
    """
    vocab = _read_vocab(Path(vocab_filepath))
    files = _pickles(Path(data_dir))
    if labels_filepath is not None:
        _check_labels(Path(labels_filepath))
    output_dir = Path(output_dir)
    _refuse_foreign_folder(output_dir)
    partial = output_dir.with_name(f"{output_dir.name}.partial-{os.getpid()}")
    try:
        _write_dataset(partial, files, vocab, Path(data_dir).name)
        if labels_filepath is not None:
            shutil.copyfile(labels_filepath, partial / "index_dates.csv")
        if output_dir.exists():
            shutil.rmtree(output_dir)
        os.replace(partial, output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_meds(output_dir)


def events_from_tokens(records: pl.DataFrame, vocab: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Events in EVENT_SCHEMA, sorted by subject and time (static first), and how many values had no event.

    records: subject_id i64, tokens list[i64], timestamps list[f64]; vocab: as `classify_vocab` gives it, with
    every id of the records in it.
    """
    tokens = records.with_row_index("record").explode("tokens", "timestamps").drop_nulls("tokens")
    tokens = tokens.join(vocab, left_on="tokens", right_on="token", how="left", maintain_order="left")
    tokens = tokens.with_columns(_is_value().alias("is_value"))
    tokens = tokens.with_columns(_is_unit().alias("is_unit"))
    orphans = tokens.filter((pl.col("kind") == "value") & ~pl.col("is_value")).height
    loose = (pl.col("kind") == "other") & ~pl.col("is_value") & ~pl.col("is_unit")
    is_event = pl.col("kind").is_in(["event", "plain"]) | loose
    events = tokens.select(*_event_columns(), is_event.alias("is_event"))
    events = events.filter("is_event").drop("is_event").cast(pl.Schema(EVENT_SCHEMA))
    return events.sort("subject_id", "time", maintain_order=True), orphans


def classify_vocab(vocab: pl.DataFrame) -> pl.DataFrame:
    """What each token of the vocabulary (token, str) is, whatever stands around it.

    kind: "event" (may take a value), "plain" (an event that takes none), "value", "unknown", "special" or
    "other". measurable: text after it is its value. glued_code, glued_bin: the parts of `LAB//GLUCOSE_5`.
    number, word: what it says as a value.
    """
    text = pl.col("str").str.strip_chars()
    number = text.str.extract(f"^({_NUMBER})$").cast(pl.Float64, strict=False)
    number = pl.when(number.abs() <= _FLOAT32_MAX).then(number)
    age = text.str.extract(f"^AGE:\\s*({_NUMBER})$").cast(pl.Float64, strict=False)
    kind = (
        pl.when(text == "<unknown>").then(pl.lit("unknown"))
        .when(text.str.contains(_SPECIAL)).then(pl.lit("special"))
        .when(text.str.contains("//", literal=True)).then(pl.lit("event"))
        .when(text.str.contains("^(?:AGE|MEDS_)")).then(pl.lit("plain"))
        .when(text.str.contains(f"^(?:{_NUMBER})$") | text.str.contains(_WORD)).then(pl.lit("value"))
        .otherwise(pl.lit("other"))
    )  # fmt: skip
    return vocab.select(
        "token",
        pl.when(age.is_not_null()).then(pl.lit("AGE")).otherwise(text).alias("code"),
        kind.alias("kind"),
        text.str.contains(_MEASURABLE).alias("measurable"),
        text.str.extract(_GLUED, 1).alias("glued_code"),
        text.str.extract(_GLUED, 2).alias("glued_bin"),
        pl.coalesce(number, age).alias("number"),
        pl.when(kind.is_in(["value", "other"]) & number.is_null()).then(text).alias("word"),
    )


def _beside(name: str, offset: int) -> pl.Expr:
    """The column's value `offset` tokens further on in the same record, null beyond its ends."""
    same = pl.col("record") == pl.col("record").shift(-offset)
    return pl.when(same).then(pl.col(name).shift(-offset))


def _is_value() -> pl.Expr:
    """A value follows its code at once; text counts as one where the code can be measured and has no bin."""
    kind = pl.col("kind")
    awaits_text = _beside("measurable", -1) & _beside("glued_code", -1).is_null()
    says_value = kind.is_in(["value", "unknown"]) | ((kind == "other") & awaits_text)
    return ((_beside("kind", -1) == "event") & says_value).fill_null(False)


def _is_unit() -> pl.Expr:
    after_bin = (_beside("kind", -1) == "event") & _beside("glued_code", -1).is_not_null()
    after_value = _beside("is_value", -1) | after_bin
    return ((pl.col("kind") == "other") & ~pl.col("is_value") & after_value).fill_null(False)


def _event_columns() -> list[pl.Expr]:
    """The event columns of each token, taken as an event: its value and unit are the tokens that follow."""
    has_value = _beside("is_value", 1).fill_null(False)
    is_bin = pl.col("glued_code").is_not_null() & ~has_value
    second_unit = pl.when(_beside("is_unit", 2)).then(_beside("code", 2))
    seconds = pl.col("timestamps")
    return [
        pl.col("subject_id"),
        pl.when(seconds != 0).then((seconds * 1e6).round().cast(pl.Int64)).cast(TIME).alias("time"),
        pl.when(is_bin).then("glued_code").otherwise("code").alias("code"),
        pl.when(has_value).then(_beside("number", 1)).otherwise("number").alias("numeric_value"),
        pl.when(has_value).then(_beside("word", 1)).when(is_bin).then("glued_bin").alias("text_value"),
        pl.when(has_value).then(second_unit).when(_beside("is_unit", 1)).then(_beside("code", 1)).alias("unit"),
    ]


def _read_vocab(path: Path) -> pl.DataFrame:
    raw = _read_csv(path, ("token", "str"), "data.vocab_filepath")
    vocab = raw.select(pl.col("token").cast(pl.Int64, strict=False), pl.col("str").fill_null(""))
    bad = vocab["token"].null_count() + vocab.filter(pl.col("str").str.strip_chars() == "").height
    repeated = vocab.height - vocab["token"].n_unique()
    problems = []
    if bad:
        fix = "give each row an integer in `token` and a text in `str`"
        problems.append(Problem(str(path), f"{bad} rows lack an id or a text", fix))
    if repeated and not bad:
        problems.append(Problem(str(path), f"{repeated} ids are listed more than once", "list each id once"))
    if problems:
        raise InputError(problems)
    return classify_vocab(vocab)


def _read_csv(path: Path, columns: tuple[str, ...], key: str) -> pl.DataFrame:
    if not path.is_file():
        raise refuse(str(path), "no such file", f"set {key} to a CSV with the columns {', '.join(columns)}")
    try:
        table = pl.read_csv(path, infer_schema=False, glob=False)
    except UNREADABLE as error:
        what = f"cannot be read as CSV ({type(error).__name__})"
        raise refuse(str(path), what, "write a comma-separated file with a header") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        what = f"column {', '.join(missing)} is missing; found: {', '.join(table.columns)}"
        raise refuse(str(path), what, f"write the columns {', '.join(columns)}")
    return table


def _pickles(data_dir: Path) -> list[tuple[str, Path]]:
    """(MEDS split, pickle) for every pickle below the data folder."""
    if not data_dir.is_dir():
        raise refuse(str(data_dir), "no such folder", "set data.data_dir to the folder of tokenised splits")
    files = sorted(data_dir.glob("*/*.pkl"))
    if not files:
        raise refuse(str(data_dir), "no pickles (<split>/*.pkl)", "set data.data_dir to the folder above them")
    unknown = sorted({path.parent.name for path in files} - set(_SPLIT_NAMES))
    if unknown:
        fix = f"name the folders {', '.join(SPLITS)} (or val, test)"
        raise refuse(str(data_dir), f"folders that are no split: {', '.join(unknown)}", fix)
    return [(_SPLIT_NAMES[path.parent.name], path) for path in files]


def _check_labels(path: Path) -> None:
    _read_csv(path, _LABEL_COLUMNS, "data.labels_filepath")


def _refuse_foreign_folder(output_dir: Path) -> None:
    """Only an earlier conversion may be replaced."""
    if not output_dir.exists():
        return
    earlier = output_dir.is_dir() and MedsDataset(output_dir).metadata().get("etl_name") == ETL_NAME
    if not earlier and (output_dir.is_file() or any(output_dir.iterdir())):
        raise refuse(str(output_dir), "is there and is no earlier conversion", "choose another folder")


def _write_dataset(folder: Path, files: list[tuple[str, Path]], vocab: pl.DataFrame, name: str) -> None:
    placed, codes, orphans = [], pl.DataFrame(schema={"code": pl.String}), 0
    for split, path in files:
        records = _read_records(path, vocab)
        events, without_event = events_from_tokens(records, vocab)
        shard = folder / "data" / split / f"{path.stem}.parquet"
        shard.parent.mkdir(parents=True, exist_ok=True)
        events.write_parquet(shard, compression="zstd")
        subjects = events.select("subject_id").unique()
        placed.append(subjects.with_columns(pl.lit(split).alias("split"), pl.lit(str(path)).alias("file")))
        codes = pl.concat([codes, events.select("code")]).unique()
        orphans += without_event
    splits = _one_file_each(pl.concat(placed), files[0][1].parents[1])
    (folder / "metadata").mkdir()
    splits.write_parquet(folder / "metadata" / "subject_splits.parquet")
    described = codes.sort("code").with_columns(
        pl.lit(None, dtype=pl.String).alias("description"),
        pl.lit(None, dtype=pl.List(pl.String)).alias("parent_codes"),
    )
    described.write_parquet(folder / "metadata" / "codes.parquet")
    about = {"dataset_name": name, "meds_version": "0.4.1", "etl_name": ETL_NAME}
    about_text = json.dumps(about | {"values_without_event": orphans}, indent=1)
    (folder / "metadata" / "dataset.json").write_text(about_text + "\n", encoding="utf-8")


def _one_file_each(placed: pl.DataFrame, data_dir: Path) -> pl.DataFrame:
    per_subject = placed.group_by("subject_id").agg(pl.len(), pl.col("split").n_unique().alias("splits"))
    in_two_splits = per_subject.filter(pl.col("splits") > 1).height
    in_two_files = per_subject.filter(pl.col("len") > 1).height - in_two_splits
    problems = []
    if in_two_splits:
        what = f"{in_two_splits} subjects are in more than one split"
        problems.append(Problem(str(data_dir), what, "keep each subject in one split"))
    if in_two_files:
        what = f"{in_two_files} subjects are in more than one pickle"
        problems.append(Problem(str(data_dir), what, "keep each subject's tokens in one pickle"))
    if problems:
        raise InputError(problems)
    return placed.select("subject_id", "split").sort("subject_id")


def _read_records(path: Path, vocab: pl.DataFrame) -> pl.DataFrame:
    """subject_id, tokens, timestamps of one pickle; InputError counting records and tokens that are wrong."""
    data = load_plain(path)
    fix = "write a list of dicts with subject_id, tokens and timestamps, the last two of one length"
    if not isinstance(data, list):
        raise refuse(str(path), f"holds a {type(data).__name__}, not a list", fix)
    misshapen = sum(not _well_formed(record) for record in data)
    if misshapen:
        raise refuse(str(path), f"{misshapen} of {len(data)} records are misshapen", fix)
    try:
        records = _as_table(data)
    except (TypeError, ValueError, OverflowError, *UNREADABLE) as error:
        what = f"ids or times that are no numbers ({type(error).__name__})"
        raise refuse(str(path), what, "write ids as integers and times as Unix seconds, null or 0") from error
    problems = _token_problems(records, vocab, str(path))
    if problems:
        raise InputError(problems)
    return records


def _well_formed(record: Any) -> bool:
    if not isinstance(record, dict) or any(key not in record for key in _RECORD_KEYS):
        return False
    tokens, times = record["tokens"], record["timestamps"]
    return isinstance(tokens, list) and isinstance(times, list) and len(tokens) == len(times)


def _as_table(data: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "subject_id": pl.Series([record["subject_id"] for record in data], dtype=pl.Int64),
            "tokens": pl.Series([record["tokens"] for record in data], dtype=pl.List(pl.Int64)),
            "timestamps": pl.Series([record["timestamps"] for record in data], dtype=pl.List(pl.Float64)),
        }
    )


def _token_problems(records: pl.DataFrame, vocab: pl.DataFrame, where: str) -> list[Problem]:
    tokens = records["tokens"].explode()
    seconds = records["timestamps"].explode()
    empty = records.filter(pl.col("tokens").list.len() == 0).height
    known = tokens.is_in(vocab["token"].implode()).fill_null(False).sum()
    unknown = tokens.len() - known - empty
    wild = seconds.filter(~(seconds.is_finite() & (seconds.abs() < _LATEST_SECONDS))).len()
    problems = []
    if records["subject_id"].null_count():
        problems.append(Problem(where, "records without subject_id", "give each record an integer subject_id"))
    if unknown:
        fix = "use the vocab.csv that the data was tokenised with"
        problems.append(Problem(where, f"{unknown} tokens are not in the vocabulary", fix))
    if wild:
        what = f"{wild} timestamps are not finite or beyond the year 3000"
        problems.append(Problem(where, what, "write times in Unix seconds, not in milliseconds"))
    return problems
