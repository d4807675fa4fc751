"""What holds for every kind and every history."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epicrisis.settings.structured_section import StructuredSettings
from epicrisis.settings.tokenizer_section import TokenizerSettings
from epicrisis.structured.sequences import PER_TOKEN, Sequences, concatenate
from epicrisis.structured.tokenizers import CodeTokenizer, fit_tokenizer, load_tokenizer
from epicrisis.structured.tokenizers.tokenizer import EventTokenizer
from epicrisis.structured.tokenizers.values import Binner, fit_bins
from tests.structured.test_tokenizers import at, seen, write

KINDS = ("clmbr", "cookbook", "cehr", "description", "ethos")
CODES = ("LAB//A", "LAB//B", "DX//1", "ICD10CM//I25.10", "ICD10CM//E11.9", "ATC//A10BA02", "VISIT//OP", "VISIT_END//OP")
CUTOFF = datetime(2020, 6, 1)

minutes = st.integers(0, 200_000)
values = st.one_of(st.none(), st.floats(-1e6, 1e6, width=32), st.sampled_from(["positive", "negative", "12"]))
event = st.tuples(minutes, st.sampled_from(CODES), values, st.sampled_from([None, "mg", "g"]))
history = st.lists(event, max_size=12)
lenient = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))


def told(events: list[tuple], start: datetime = datetime(2020, 3, 1)) -> list[tuple]:
    dated = [
        ((start + timedelta(minutes=m)).isoformat(), code, value, unit)
        for m, code, value, unit in sorted(events, key=lambda e: e[0])
    ]
    return [(None, "GENDER//F"), (None, "RACE//a"), ("1950-02-03", "MEDS_BIRTH"), *dated]


def lesson() -> dict[int, list[tuple]]:
    """Twelve subjects with all codes, values from 0 to 11."""
    units = (None, "mg", "g")
    return {
        k: told(
            [
                (k * 1000 + 700 * n, code, float(k) if n < 2 else None, units[(k + n) % 3])
                for n, code in enumerate(CODES)
            ]
        )
        for k in range(12)
    }


def asked(kind: str, **more: Any) -> StructuredSettings:
    smaller = {} if kind == "cehr" and "values" not in more else {"min_values": 2, "n_bins": 4}
    return StructuredSettings(tokenizer=TokenizerSettings(kind=kind, min_subjects=2, **smaller, **more))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("train"), lesson())


@pytest.fixture(scope="module")
def fitted(train: Path) -> dict[str, CodeTokenizer]:
    rows = at(*lesson())
    return {kind: fit_tokenizer(asked(kind), rows, seen(train, rows)) for kind in KINDS}


def same(one: Sequences, other: Sequences) -> bool:
    arrays = (*PER_TOKEN, "bounds")
    return one.keys.equals(other.keys) and all(np.array_equal(getattr(one, a), getattr(other, a)) for a in arrays)


@lenient
@given(records=st.lists(history, min_size=1, max_size=3), later=st.lists(history, min_size=3, max_size=3))
def test_events_after_the_cutoff_and_other_rows_change_nothing(
    records: list, later: list, fitted: dict[str, CodeTokenizer], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("meds")
    before = {
        k: [e for e in told(events) if e[0] is None or e[0] <= CUTOFF.isoformat()] for k, events in enumerate(records)
    }
    after = {k: told(events, CUTOFF + timedelta(minutes=1))[3:] for k, events in enumerate(later)}
    plain = write(root / "plain", before)
    more = write(root / "more", {k: [*events, *after[k]] for k, events in before.items()}, files=2)
    rows = at(*before, when=CUTOFF)
    for tokenizer in fitted.values():
        found = tokenizer.encode(rows, seen(plain, rows))
        assert same(found, tokenizer.encode(rows, seen(more, rows)))
        alone = [tokenizer.encode(rows[[k]], seen(plain, rows[[k]])) for k in range(rows.height)]
        assert same(found, concatenate(alone))
        assert same(
            found.take(np.arange(len(found))[::-1]), tokenizer.encode(rows.reverse(), seen(plain, rows.reverse()))
        )


@lenient
@given(records=st.lists(history, min_size=2, max_size=4), budget=st.integers(1, 30))
def test_parts_make_the_whole_and_a_budget_keeps_whole_events(
    records: list, budget: int, fitted: dict[str, CodeTokenizer], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = write(tmp_path_factory.mktemp("meds"), {k: told(events) for k, events in enumerate(records)}, files=2)
    rows = pl.concat([at(*range(len(records))), at(*range(len(records)), when=CUTOFF)])
    for tokenizer in fitted.values():
        assert isinstance(tokenizer, EventTokenizer)
        whole = tokenizer.encode(rows, seen(root, rows))
        assert same(whole, EventTokenizer(tokenizer.fitted, events_per_part=1).encode(rows, seen(root, rows)))
        assert (whole.tokens >= 0).all()
        assert (whole.tokens < len(tokenizer.vocabulary)).all()
        short = tokenizer.encode(rows, seen(root, rows), max_tokens=budget)
        assert np.array_equal(short.events, whole.latest(budget).events)
        for k in range(len(whole)):
            line = slice(*whole.bounds[k : k + 2])
            assert (np.diff(whole.events[line]) >= 0).all()
            assert (np.diff(whole.visits[line]) >= 0).all()
            assert (np.diff(whole.days[line]) >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_process_encodes_alike(
    kind: str, fitted: dict[str, CodeTokenizer], train: Path, tmp_path: Path
) -> None:
    rows = at(*lesson())
    found = fitted[kind].encode(rows, seen(train, rows))
    fitted[kind].save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.label == fitted[kind].label
    assert loaded.vocabulary == fitted[kind].vocabulary
    assert same(found, loaded.encode(rows, seen(train, rows)))
    if kind != "ethos":
        return
    script = (
        "import json, sys; from pathlib import Path; from epicrisis.structured.tokenizers import load_tokenizer; "
        "from tests.structured.test_tokenizers import at, seen; rows = at(*range(12)); "
        "found = load_tokenizer(Path(sys.argv[1])).encode(rows, seen(Path(sys.argv[2]), rows)); "
        "print(json.dumps(found.tokens.tolist()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(train)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert json.loads(out.stdout) == found.tokens.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_fitted_on_the_train_rows_alone(kind: str, train: Path, tmp_path: Path) -> None:
    rows = at(*lesson())
    strangers = {k: told([(k, "LAB//A", 1e6, "mg"), (k, "DX//new", None, None)]) for k in range(100, 110)}
    later = {k: [*events, ("2031-01-01", "LAB//A", 1e6, "mg")] for k, events in lesson().items()}
    more = write(tmp_path / "more", {**later, **strangers})
    for number, root in enumerate((train, more)):
        fit_tokenizer(asked(kind), rows, seen(root, rows)).save(tmp_path / str(number))
    assert (tmp_path / "0" / "word_pieces.json").is_file() == (kind == "description")
    for file in (tmp_path / "0").iterdir():
        assert file.read_bytes() == (tmp_path / "1" / file.name).read_bytes()


def test_a_subject_with_two_rows_counts_once(train: Path, tmp_path: Path) -> None:
    once, twice = at(*lesson()), pl.concat([at(*lesson(), when=CUTOFF), at(*lesson())])
    for number, rows in enumerate((once, twice)):
        fit_tokenizer(asked("clmbr"), rows, seen(train, rows)).save(tmp_path / str(number))
    assert (tmp_path / "0" / "tokenizer.json").read_bytes() == (tmp_path / "1" / "tokenizer.json").read_bytes()


@given(
    st.lists(
        st.tuples(st.integers(-5, 5), st.integers(1, 50)), min_size=1, max_size=11, unique_by=lambda pair: pair[0]
    ),
    st.integers(2, 12),
)
def test_every_bin_is_reached_by_a_train_value(counted: list[tuple[int, int]], n_bins: int) -> None:
    values, n = (list(column) for column in zip(*counted, strict=True))
    counts = pl.DataFrame(
        {"code": ["A"] * len(n), "unit": [None] * len(n), "value": values, "n": n},
        schema={"code": pl.String, "unit": pl.String, "value": pl.Float32, "n": pl.Int64},
    )
    bins = fit_bins(counts, n_bins, min_values=1)
    starts, quantiles = bins["starts"][0].to_list(), bins["quantiles"][0].to_list()
    assert len(starts) == len(quantiles) - 1
    assert starts == sorted(set(starts))
    assert quantiles == sorted(set(quantiles))
    assert quantiles[0] >= 0
    assert quantiles[-1] < n_bins
    trained = np.array(values, dtype=np.float32)
    found = Binner(bins).bins(np.zeros(len(n), dtype=np.int64), trained)
    assert set(found.tolist()) == set(range(len(quantiles)))
    # Half of what is below a value and equal to it: the quantile is that of its mid-rank.
    for value, own, place in zip(values, n, found, strict=True):
        rank = (sum(m for v, m in counted if v < value) + own / 2) / sum(n)
        assert quantiles[place] == int(np.floor(round(rank * n_bins, 9)))
    far = Binner(bins).bins(np.zeros(2, dtype=np.int64), np.array([-1e9, 1e9], dtype=np.float32))
    assert far.tolist() == [0, len(quantiles) - 1]


def test_too_few_values_have_no_quantiles() -> None:
    counts = pl.DataFrame(
        {"code": ["A", "A"], "unit": [None, "g"], "value": [1.0, 2.0], "n": [4, 5]},
        schema={"code": pl.String, "unit": pl.String, "value": pl.Float32, "n": pl.Int64},
    )
    assert fit_bins(counts, 10, min_values=5)["unit"].to_list() == ["g"]


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("cookbook", {"values": "none"}),
        ("cookbook", {"values": "separate"}),
        ("cehr", {"values": "joined"}),
        ("clmbr", {"top_k": 3}),
        ("cookbook", {"time_tokens": "intervals"}),
        ("cookbook", {"time_tokens": "days"}),
        ("ethos", {"time_tokens": "weeks"}),
        ("description", {"time_tokens": "weeks"}),
        ("ethos", {"visit_tokens": True}),
        ("cehr", {"visit_tokens": False}),
        ("clmbr", {"demographics": ()}),
        ("clmbr", {"demographics": ("age",)}),
        ("ethos", {"demographics": ("year", "static")}),
        ("cehr", {"code_levels": True}),
        ("ethos", {"code_levels": False}),
        ("description", {"description_tokens": 1}),
        ("description", {"values": "none"}),
        ("cehr", {"visits": "days"}),
        ("cehr", {"visits": "codes"}),
    ],
    ids=str,
)
def test_each_option_changes_the_tokens(kind: str, option: dict[str, Any], train: Path) -> None:
    rows = at(*lesson())
    told = []
    for more in ({}, option):
        settings = TokenizerSettings(kind=kind, min_subjects=2, **more)  # type: ignore[arg-type]
        if settings.values != "none" and (kind != "cehr" or "values" in more):
            settings = TokenizerSettings(kind=kind, min_subjects=2, min_values=2, **more)  # type: ignore[arg-type]
        tokenizer = fit_tokenizer(StructuredSettings(tokenizer=settings), rows, seen(train, rows))
        found = tokenizer.encode(rows, seen(train, rows))
        told.append([tokenizer.vocabulary.tokens[token] for token in found.tokens])
    assert told[0] != told[1]
