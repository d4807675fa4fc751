"""Each kind on histories written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from epicrisis.cohort import History
from epicrisis.events import open_meds
from epicrisis.settings.problems import InputError
from epicrisis.settings.structured_section import StructuredSettings
from epicrisis.settings.tokenizer_section import TokenizerSettings
from epicrisis.structured.sequences import Sequences
from epicrisis.structured.tokenizers import CodeTokenizer, fit_tokenizer, load_tokenizer

NOW = datetime(2030, 1, 1)
EVENT = {"code": None, "time": None, "numeric_value": None, "text_value": None, "unit": None}
SCHEMA = {
    **{"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String},
    **{"numeric_value": pl.Float32, "text_value": pl.String, "unit": pl.String},
}

Event = tuple[Any, ...]
"""(day or None, code[, value[, unit]]); a value that is a word is a text."""


def event_table(records: dict[int, Sequence[Event]]) -> pl.DataFrame:
    lines = []
    for subject, events in records.items():
        for time, code, *rest in events:
            value, unit = (*rest, None, None)[:2]
            number, text = (None, value) if isinstance(value, str) else (value, None)
            when = datetime.fromisoformat(time) if time else None
            lines.append((subject, when, code, number, text, unit))
    return pl.DataFrame(lines, schema=SCHEMA, orient="row")


def write(root: Path, records: dict[int, Sequence[Event]], files: int = 1) -> Path:
    table = event_table(records)
    (root / "data").mkdir(parents=True, exist_ok=True)
    (root / "metadata").mkdir(exist_ok=True)
    for number in range(files):
        table.filter(pl.col("subject_id") % files == number).write_parquet(root / "data" / f"{number}.parquet")
    subjects = pl.DataFrame({"subject_id": list(records), "split": ["train"] * len(records)})
    subjects.write_parquet(root / "metadata" / "subject_splits.parquet")
    return root


def at(*subjects: int, when: datetime = NOW) -> pl.DataFrame:
    table = {"subject_id": subjects, "prediction_time": [when] * len(subjects)}
    return pl.DataFrame(table, schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")})


def seen(root: Path, rows: pl.DataFrame) -> History:
    dataset = open_meds(root)
    records = dataset.check().join(rows, on="subject_id", how="semi")
    return History(dataset, rows, records, strict=False)


Fit = Callable[..., tuple[CodeTokenizer, Path]]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Fits on all subjects at NOW; codes in one subject count, and values from the first."""

    def fitted(records: dict[int, Sequence[Event]], codes: pl.DataFrame | None = None, **settings: Any) -> Any:
        root = write(tmp_path / "meds", records)
        rows = at(*records)
        if settings.get("values") != "none" and settings.get("kind") != "cehr":
            settings = {"min_values": 1, **settings}
        asked = StructuredSettings(tokenizer=TokenizerSettings(**{"min_subjects": 1, **settings}))
        return fit_tokenizer(asked, rows, seen(root, rows), codes), root

    return fitted


def words(
    tokenizer: CodeTokenizer, root: Path, *subjects: int, max_tokens: int | None = None, when: datetime = NOW
) -> Any:
    """The tokens of each subject's row; of the only one, as one list."""
    rows = at(*subjects, when=when)
    found = tokenizer.encode(rows, seen(root, rows), max_tokens=max_tokens)
    told = [[tokenizer.vocabulary.tokens[token] for token in found.tokens[found.row(k)]] for k in range(len(found))]
    return told[0] if len(told) == 1 else told


def encoded(tokenizer: CodeTokenizer, root: Path, *subjects: int) -> Sequences:
    rows = at(*subjects)
    return tokenizer.encode(rows, seen(root, rows))


PERSON: list[Event] = [(None, "GENDER//F"), ("1960-06-15", "MEDS_BIRTH")]


class TestClmbr:
    def test_one_token_per_event(self, fit: Fit) -> None:
        labs = [(f"2020-01-0{k}", "LAB//Hb", float(k), "g/dL") for k in range(1, 5)]
        tokenizer, root = fit({1: [*PERSON, *labs, ("2020-02-01", "LAB//Hb"), ("2020-02-02", "DX")]}, n_bins=2)
        low, high = "LAB//Hb || g/dL || -inf - 3", "LAB//Hb || g/dL || 3 - inf"
        assert words(tokenizer, root, 1) == ["MEDS_BIRTH", "GENDER//F", low, low, high, high, "LAB//Hb", "DX"]
        found = encoded(tokenizer, root, 1)
        assert found.events.tolist() == [-1, 0, 1, 2, 3, 4, 5, 6]
        assert found.days[:2].tolist() == [0, 0]
        assert found.days[2] == (datetime(2020, 1, 1) - datetime(1960, 6, 15)).days
        assert found.visits.tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
        assert (tokenizer.label, tokenizer.fitted_on) == ("clmbr@1", "train")

    def test_zero_and_negative_values_are_values(self, fit: Fit) -> None:
        labs = [(f"2020-01-0{k}", "LAB//BE", value) for k, value in enumerate((-4.0, -0.0, 0.0, 4.0), start=1)]
        tokenizer, root = fit({1: labs}, n_bins=3)
        low, middle, high = (f"LAB//BE || None || {edges}" for edges in ("-inf - 0", "0 - 4", "4 - inf"))
        assert words(tokenizer, root, 1) == [low, middle, middle, high]

    def test_a_value_belongs_to_its_own_unit(self, fit: Fit) -> None:
        glucose = [("2020-01-01", "LAB//Glu", value, "mmol/L") for value in (5.0, 6.0)]
        glucose += [("2020-01-02", "LAB//Glu", value, "mg/dL") for value in (90.0, 110.0)]
        unitless = [("2020-01-03", "LAB//Glu", 100.0, unit) for unit in (None, "UNK", "")]
        tokenizer, root = fit({1: [*glucose, *unitless]}, n_bins=2)
        assert words(tokenizer, root, 1) == [
            "LAB//Glu || mmol/L || -inf - 6",
            "LAB//Glu || mmol/L || 6 - inf",
            "LAB//Glu || mg/dL || -inf - 110",
            "LAB//Glu || mg/dL || 110 - inf",
            *["LAB//Glu || None || -inf - inf"] * 3,
        ]

    def test_a_value_in_a_unit_that_train_never_saw_has_no_range(self, fit: Fit, tmp_path: Path) -> None:
        tokenizer, _ = fit({1: [("2020-01-01", "LAB//Glu", 5.0, "mmol/L")]})
        other = write(tmp_path / "other", {7: [("2020-01-01", "LAB//Glu", 5.0, "g/L")]})
        assert words(tokenizer, other, 7) == ["LAB//Glu"]

    def test_texts_are_categories_and_numbers_in_words_are_numbers(self, fit: Fit) -> None:
        events = [
            ("2020-01-01", "LAB//Prot", text) for text in ("negative", " negative ", "UNK", "0.0", "7", "x" * 101)
        ]
        tokenizer, root = fit({1: events}, n_bins=2)
        zero, seven = "LAB//Prot || None || -inf - 7", "LAB//Prot || None || 7 - inf"
        negative = "LAB//Prot || negative"
        assert words(tokenizer, root, 1) == [negative, negative, "LAB//Prot", zero, seven, "LAB//Prot"]

    def test_rare_and_unseen_codes_are_unknown_and_counted(self, fit: Fit) -> None:
        records = {
            1: [*PERSON, ("2020-01-01", "DX//A")],
            2: [*PERSON, ("2020-01-01", "DX//A"), ("2020-01-02", "DX//B")],
        }
        tokenizer, root = fit(records, min_subjects=2)
        assert words(tokenizer, root, 2)[2:] == ["DX//A", "[UNK]"]
        table = tokenizer.coverage(at(1, 2), seen(root, at(1, 2)))
        counted = {row["vocabulary"]: row for row in table.iter_rows(named=True)}
        expected = {"n_events": 3, "n_codes": 2, "known": 2, "parent": 0, "unknown": 1}
        assert counted["DX"] == {"vocabulary": "DX", **expected}
        assert counted["*"] == {"vocabulary": "*", "n_events": 7, "n_codes": 4, "known": 6, "parent": 0, "unknown": 1}

    def test_a_code_without_a_token_is_told_by_its_parent(self, fit: Fit, tmp_path: Path) -> None:
        parents = {
            "ICD10CM//E11.9": ["ICD10CM/E11"],  # seen by two, each written once: together enough
            "ICD10CM//E11.5": ["ICD10CM/E11"],
            "ICD10CM//E11.8": ["ICD10CM/E11.8x"],  # never seen in train; two steps below E11
            "ICD10CM/E11.8x": ["ICD10CM//E11"],
            "DX//loop": ["DX//loop2"],
            "DX//loop2": ["DX//loop"],
        }
        codes = pl.DataFrame({"code": list(parents), "parent_codes": list(parents.values())})
        records = {1: [("2020-01-01", "ICD10CM//E11.9")], 2: [("2020-01-01", "ICD10CM//E11.5")]}
        tokenizer, root = fit(records, codes, min_subjects=2)
        assert words(tokenizer, root, 1, 2) == [["ICD10CM//E11"], ["ICD10CM//E11"]]
        other = write(tmp_path / "other", {5: [("2020-01-01", "ICD10CM//E11.8"), ("2020-01-02", "DX//loop")]})
        assert words(tokenizer, other, 5) == ["ICD10CM//E11", "[UNK]"]
        table = tokenizer.coverage(at(5), seen(other, at(5)))
        assert table.filter(vocabulary="*").select("known", "parent", "unknown").row(0) == (0, 1, 1)

    def test_a_code_called_like_a_token_is_not_that_token(self, fit: Fit) -> None:
        tokenizer, root = fit({1: [("2020-01-01", "[PAD]"), ("2020-01-02", "W0"), ("2020-01-08", "DX")]})
        assert words(tokenizer, root, 1) == ["[PAD] (2)", "W0", "DX"]
        cehr, root = fit({1: [("2020-01-01", "W0"), ("2020-01-02", "DX")]}, kind="cehr")
        assert words(cehr, root, 1) == ["[VS]", "W0 (2)", "[VE]", "W0", "[VS]", "DX", "[VE]"]

    def test_death_is_an_event(self, fit: Fit) -> None:
        tokenizer, root = fit({1: [*PERSON, ("2020-01-01", "DX"), ("2020-01-02", "MEDS_DEATH")]})
        assert words(tokenizer, root, 1)[-2:] == ["DX", "MEDS_DEATH"]


class TestCookbook:
    def test_deciles_joined_or_separate(self, fit: Fit) -> None:
        labs = [("2020-01-01", "LAB//K", float(k), "mmol/L") for k in range(10)]
        joined, root = fit({1: labs}, kind="cookbook")
        told = words(joined, root, 1)
        assert told[0] == "LAB//K || mmol/L || -inf - 1"
        assert len(set(told)) == 10
        separate, root = fit({1: [*labs, ("2020-01-02", "LAB//U", "trace")]}, kind="cookbook", values="separate")
        told = words(separate, root, 1)
        assert told[:4] == ["LAB//K", "Q1", "LAB//K", "Q2"]
        assert told[-4:] == ["LAB//K", "Q10", "LAB//U", "= trace"]
        assert encoded(separate, root, 1).events.tolist()[-4:] == [10, 10, 11, 11]

    def test_top_k_by_frequency_or_by_entropy(self, fit: Fit) -> None:
        everyone = [("2020-01-01", "DX//all")] * 3
        records = {k: [*everyone, ("2020-01-02", "DX//half")] if k % 2 else everyone for k in range(1, 5)}
        frequent, root = fit(records, kind="cookbook", top_k=1)
        assert words(frequent, root, 1) == ["DX//all"] * 3 + ["[UNK]"]
        # Whoever everybody has tells nobody apart.
        telling, root = fit(records, kind="cookbook", top_k=1, rank_by="entropy")
        assert words(telling, root, 1) == ["[UNK]"] * 3 + ["DX//half"]
        assert len(frequent.vocabulary) == len(telling.vocabulary) == 8

    def test_a_value_without_a_token_of_its_own_is_told_by_its_code(self, fit: Fit) -> None:
        labs = [("2020-01-01", "LAB//K", value) for value in (1.0, 1.0, 1.0, 9.0)]
        records = {1: [*labs, *[("2020-01-01", "LAB//K")] * 4]}
        tokenizer, root = fit(records, kind="cookbook", top_k=2, n_bins=2)
        assert words(tokenizer, root, 1) == ["LAB//K || None || -inf - 9"] * 3 + ["LAB//K"] * 5


class TestCehr:
    def told(self, fit: Fit, *days: str, **settings: Any) -> list[str]:
        tokenizer, root = fit({1: [(day, "DX") for day in days]}, kind="cehr", **settings)
        return [token for token in words(tokenizer, root, 1) if token not in ("DX", "[VS]", "[VE]")]

    @pytest.mark.parametrize(
        ("days", "weeks", "day"),
        [
            (1, "W0", "D1"),
            (6, "W0", "D6"),
            (7, "W1", "D7"),
            (13, "W1", "D13"),
            (14, "W2", "D14"),
            (27, "W3", "D27"),
            (28, "M1", "D28"),
            (30, "M1", "D30"),
            (60, "M2", "D60"),
            (359, "M11", "D359"),
            (364, "M12", "D364"),
            (365, "LT", "D365"),
            (1080, "LT", "D1080"),
            (1081, "LT", "LT"),
        ],
    )
    def test_both_published_kinds_of_time_tokens(self, fit: Fit, days: int, weeks: str, day: str) -> None:
        later = (datetime(2015, 1, 1) + timedelta(days=days)).isoformat()
        assert self.told(fit, "2015-01-01", later) == [weeks]
        assert self.told(fit, "2015-01-01", later, time_tokens="days") == [day]
        assert self.told(fit, "2015-01-01", later, time_tokens="none") == []

    def test_a_second_visit_on_the_same_day(self, fit: Fit) -> None:
        events = [("2020-01-01T09:00", "VISIT//OP"), ("2020-01-01T10:00", "VISIT_END//OP")]
        events += [("2020-01-01T15:00", "VISIT//OP"), ("2020-01-01T16:00", "VISIT_END//OP")]
        visit = ["[VS]", "VISIT//OP", "VISIT_END//OP", "[VE]"]
        weeks, root = fit({1: events}, kind="cehr")
        assert words(weeks, root, 1) == [*visit, "W0", *visit]
        days, root = fit({1: events}, kind="cehr", time_tokens="days")
        assert words(days, root, 1) == [*visit, *visit]

    def test_age_and_sex_stand_in_front_and_no_year_unless_asked(self, fit: Fit) -> None:
        records = {1: [*PERSON, (None, "RACE//a"), ("2020-06-14", "DX"), ("2020-06-15", "DX")]}
        tokenizer, root = fit(records, kind="cehr")
        day = ["[VS]", "DX", "[VE]"]
        front = ["AGE//55-59", "GENDER//F", "RACE//a"]
        assert words(tokenizer, root, 1) == [*front, *day, "W0", *day]
        # The age is that of the first event kept: on the 60th birthday.
        assert words(tokenizer, root, 1, max_tokens=7) == ["AGE//60-64", *front[1:], "W0", *day]
        dated, root = fit(records, kind="cehr", demographics=("year", "age"))
        assert words(dated, root, 1)[:2] == ["YEAR//2020", "AGE//55-59"]
        assert "YEAR//2020" not in tokenizer.vocabulary.index

    def test_without_a_birth_there_is_no_age(self, fit: Fit) -> None:
        tokenizer, root = fit({1: [("2020-01-01", "DX")]}, kind="cehr")
        assert words(tokenizer, root, 1) == ["[VS]", "DX", "[VE]"]
        assert encoded(tokenizer, root, 1).days.tolist() == [0, 0, 0]

    def test_only_a_visit_that_is_over_has_an_end(self, fit: Fit) -> None:
        stay = [("2020-01-01T09:00", "HOSPITAL_ADMISSION//EW EMER.//ER"), ("2020-01-03T08:00", "DX")]
        end = [("2020-01-03T10:00", "HOSPITAL_DISCHARGE//HOME"), ("2020-01-03T10:00", "DRG//1")]
        tokenizer, root = fit({1: [*stay, *end]}, kind="cehr")
        admission, discharge = stay[0][1], end[0][1]
        open_stay = ["[VS]", admission, "DX"]
        assert words(tokenizer, root, 1, when=datetime(2020, 1, 3, 9)) == open_stay
        # What is dated at the discharge belongs to the stay.
        assert words(tokenizer, root, 1) == [*open_stay, discharge, "DRG//1", "[VE]"]
        # A day of events is over at midnight, a stay without an end after a week.
        days, root = fit({1: [("2020-01-01T09:00", "DX")]}, kind="cehr")
        assert words(days, root, 1, when=datetime(2020, 1, 1, 23)) == ["[VS]", "DX"]
        assert words(days, root, 1, when=datetime(2020, 1, 2)) == ["[VS]", "DX", "[VE]"]
        endless, root = fit({1: stay}, kind="cehr")
        assert words(endless, root, 1, when=datetime(2020, 1, 10, 8)) == open_stay
        assert words(endless, root, 1, when=datetime(2020, 1, 10, 9)) == [*open_stay, "[VE]"]


class TestVisits:
    STAY = (
        ("2020-01-01T08:00", "LAB//before"),
        ("2020-01-01T09:00", "Visit/IP"),
        ("2020-01-02T09:00", "ICU_ADMISSION//A"),
        ("2020-01-02T10:00", "ED_REGISTRATION"),
        ("2020-01-02T11:00", "ED_OUT"),
        ("2020-01-04T09:00", "VISIT_END//IP"),
        ("2020-01-04T12:00", "LAB//after"),
        ("2020-01-04T13:00", "LAB//after"),
        ("2020-01-05T00:00", "LAB//next day"),
    )

    def numbers(self, fit: Fit, events: Sequence[Event], **settings: Any) -> list[int]:
        tokenizer, root = fit({1: events}, **settings)
        return encoded(tokenizer, root, 1).visits.tolist()

    def test_by_codes_and_days(self, fit: Fit) -> None:
        assert self.numbers(fit, self.STAY) == [1, 2, 2, 3, 3, 3, 4, 4, 5]
        assert self.numbers(fit, self.STAY, visits="codes") == [0, 1, 1, 2, 2, 2, 0, 0, 0]
        assert self.numbers(fit, self.STAY, visits="days") == [1, 1, 2, 2, 2, 3, 3, 3, 4]

    def test_a_visit_without_an_end_ends_with_a_silent_week_or_the_next(self, fit: Fit) -> None:
        events = [("2020-01-01", "VISIT//OP"), ("2020-01-08", "DX"), ("2020-01-15T01:00", "DX"), ("2020-01-16", "DX")]
        assert self.numbers(fit, events) == [1, 1, 2, 3]
        assert self.numbers(fit, [("2020-01-01", "VISIT//OP"), ("2020-01-02", "VISIT//OP")]) == [1, 2]

    def test_an_end_without_a_start_is_an_event_like_any_other(self, fit: Fit) -> None:
        events = [("2020-01-01", "VISIT_END//OP"), ("2020-01-01", "DX"), ("2020-01-02", "DX")]
        assert self.numbers(fit, events) == [1, 1, 2]

    def test_codes_alone_need_such_codes(self, fit: Fit) -> None:
        with pytest.raises(InputError, match="starts or ends a visit"):
            fit({1: [("2020-01-01", "DX")]}, visits="codes")


class TestEthos:
    @pytest.mark.parametrize(
        ("gap", "told"),
        [
            (timedelta(minutes=4, seconds=59), []),
            (timedelta(minutes=5), ["5m-15m"]),
            (timedelta(minutes=15), ["15m-1h"]),
            (timedelta(hours=1), ["1h-2h"]),
            (timedelta(hours=23, minutes=59), ["12h-1d"]),
            (timedelta(days=1), ["1d-3d"]),
            (timedelta(days=7), ["1w-2w"]),
            (timedelta(days=14), ["2w-1mt"]),
            (timedelta(days=31), ["1mt-3mt"]),
            (timedelta(days=182), ["3mt-6mt"]),
            (timedelta(days=183), ["6mt"]),
            (timedelta(days=273), ["6mt"]),
            (timedelta(days=274), ["6mt"] * 2),
            (timedelta(days=511), ["6mt"] * 3),  # 1.4 years, the example of the paper
        ],
    )
    def test_intervals(self, fit: Fit, gap: timedelta, told: list[str]) -> None:
        later = (datetime(2015, 1, 1) + gap).isoformat()
        tokenizer, root = fit({1: [("2015-01-01", "A"), (later, "B")]}, kind="ethos")
        assert words(tokenizer, root, 1) == ["A", *told, "B"]

    def test_quantiles_follow_their_code_and_the_front_comes_first(self, fit: Fit) -> None:
        labs = [("2020-01-01", "LAB//K", float(k)) for k in (4, 1)] + [("2020-01-01", "LAB//K")]
        tokenizer, root = fit({1: [*PERSON, (None, "RACE//a"), *labs]}, kind="ethos", n_bins=2)
        front = ["AGE//55-59", "GENDER//F", "RACE//a"]
        assert words(tokenizer, root, 1) == [*front, "LAB//K", "Q2", "LAB//K", "Q1", "LAB//K"]

    def test_levels_of_codes(self, fit: Fit, tmp_path: Path) -> None:
        codes = [
            "DIAGNOSIS//ICD//10//I2510",
            "ICD10CM//S72.001A",
            "ICD10CM//I10",
            "ATC//A10BA02",
            "DIAGNOSIS//ICD//9//E8490",
        ]
        records = {1: [("2020-01-01", code) for code in codes]}
        tokenizer, root = fit(records, kind="ethos")
        levels = ["ICD10CM//I25", "ICD10CM//+10", "ICD10CM//S72", "ICD10CM//+001A", "ICD10CM//I10"]
        atc = ["ATC//A10", "ATC//+B", "ATC//+A02"]
        assert words(tokenizer, root, 1) == [*levels, *atc, codes[-1]]
        whole, root = fit(records, kind="ethos", code_levels=False)
        assert words(whole, root, 1) == codes
        # A code that train never saw is told as far as it is known.
        other = write(tmp_path / "other", {5: [("2020-01-01", "ICD10CM//I25.9"), ("2020-01-01", "ATC//A10BX99")]})
        assert words(tokenizer, other, 5) == ["ICD10CM//I25", "ATC//A10", "ATC//+B"]
        assert tokenizer.coverage(at(5), seen(other, at(5)))["parent"].to_list() == [2, 1, 1]


class TestDescription:
    CODES = pl.DataFrame(
        {
            "code": ["DX//1", "DX//2", "LAB//1"],
            "description": ["Acute bronchitis", "Chronic bronchitis", "Haemoglobin"],
            "parent_codes": pl.Series([None] * 3, dtype=pl.List(pl.String)),
        }
    )

    def test_words_of_descriptions_then_the_value(self, fit: Fit, tmp_path: Path) -> None:
        labs = [("2020-01-02", "LAB//1", float(k)) for k in (1, 2)]
        records = {1: [*PERSON, ("2020-01-01", "DX//1"), *labs]}
        tokenizer, root = fit(records, self.CODES, kind="description", n_bins=2)
        assert words(tokenizer, root, 1) == [
            *["AGE//55-59", "female", "acute", "bronchitis"],
            *["haemoglobin", "Q1", "haemoglobin", "Q2"],
        ]
        assert encoded(tokenizer, root, 1).events.tolist() == [-1, 0, 1, 1, 2, 2, 3, 3]
        # Described codes are told though train has none of them, from the sub-words that train has.
        other = write(tmp_path / "other", {5: [("2020-01-01", "DX//2"), ("2020-01-02", "DX//9")]})
        told = words(tokenizer, other, 5)
        assert told[-2:] == ["bronchitis", "[UNK]"]
        assert "".join(token.removeprefix("##") for token in told[:-2]) == "chronic"
        assert tokenizer.coverage(at(5), seen(other, at(5))).row(0)[3:] == (1, 0, 1)

    def test_long_descriptions_are_cut(self, fit: Fit) -> None:
        tokenizer, root = fit({1: [("2020-01-01", "DX//1")]}, self.CODES, kind="description", description_tokens=1)
        assert words(tokenizer, root, 1) == ["acute"]

    def test_fewer_sub_words(self, fit: Fit) -> None:
        records = {1: [("2020-01-01", "DX//1"), ("2020-01-01", "DX//2")]}
        tokenizer, _ = fit(records, self.CODES, kind="description", vocabulary_size=64)
        assert sum("[" not in token and "//" not in token for token in tokenizer.vocabulary.tokens) <= 64 - 7


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"values": "separate"}, "values"),
        ({"time_tokens": "weeks"}, "time_tokens"),
        ({"visit_tokens": True}, "visit_tokens"),
        ({"code_levels": True}, "code_levels"),
        ({"vocabulary_size": 100}, "vocabulary_size"),
        ({"rank_by": "entropy"}, "rank_by"),
        ({"demographics": ("age", "age")}, "demographics"),
        ({"kind": "cehr", "n_bins": 5}, "n_bins"),
        ({"kind": "cookbook", "code_levels": True}, "code_levels"),
        ({"kind": "description", "top_k": 5}, "top_k"),
        ({"kind": "description", "values": "joined"}, "values"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fit: Fit, settings: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=rf"structured\.tokenizer\.{key}"):
        fit({1: [("2020-01-01", "DX")]}, **settings)


def test_rows_of_other_splits_and_rows_without_events_are_refused(fit: Fit, tmp_path: Path) -> None:
    _, root = fit({1: [("2020-01-01", "DX")]})
    settings, rows = StructuredSettings(), at(1)
    with pytest.raises(InputError, match="not of the train split"):
        fit_tokenizer(settings, rows.with_columns(split=pl.lit("tuning")), seen(root, rows))
    early = at(1, when=datetime(2019, 1, 1))
    with pytest.raises(InputError, match="see no event"):
        fit_tokenizer(settings, early, seen(root, early))


def test_rows_without_events_and_repeated_rows(fit: Fit) -> None:
    tokenizer, root = fit({1: [("2020-01-01", "DX")], 2: [("2025-01-01", "DX")]}, kind="cehr")
    rows = at(2, 1, when=datetime(2021, 1, 1))
    found = tokenizer.encode(rows, seen(root, rows))
    assert found.lengths().tolist() == [0, 3]
    assert found.keys.equals(rows)
    assert tokenizer.encode(rows.clear(), seen(root, rows.clear())).lengths().tolist() == []
    twice = pl.concat([rows, rows])
    with pytest.raises(InputError, match="2 rows repeat"):
        tokenizer.encode(twice, seen(root, twice))


def test_a_saved_tokenizer_of_another_version_is_refused(fit: Fit, tmp_path: Path) -> None:
    tokenizer, _ = fit({1: [("2020-01-01", "DX")]})
    tokenizer.save(tmp_path / "saved")
    path = tmp_path / "saved" / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace("clmbr@1", "clmbr@0"))
    with pytest.raises(InputError, match="clmbr@0"):
        load_tokenizer(tmp_path / "saved")
    path.write_text(text[:50])
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(tmp_path / "saved")
    with pytest.raises(InputError, match="there is no tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def test_numbers_that_are_none(fit: Fit) -> None:
    from epicrisis.structured.tokenizers.tokenizer import EventTokenizer, encode_events

    tokenizer, _ = fit({1: [("2020-01-01", "LAB", 1.0), ("2020-01-01", "LAB", 2.0)]}, n_bins=2)
    assert isinstance(tokenizer, EventTokenizer)
    values = [float("nan"), float("inf"), -float("inf"), None, 3.4e38, -3.4e38, 0.0]
    events = event_table({1: [("2020-01-01", "LAB", value) for value in values]})
    found = encode_events(at(1), events.join(at(1), on="subject_id"), tokenizer.fitted)
    told = [tokenizer.vocabulary.tokens[token] for token in found.tokens]
    low, high = "LAB || None || -inf - 2", "LAB || None || 2 - inf"
    assert told == ["LAB"] * 4 + [high, low, low]
    assert np.isfinite(found.days).all()
