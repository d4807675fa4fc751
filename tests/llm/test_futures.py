"""Futures are read back as they were written, and counted as the model's own probabilities say."""

from datetime import timedelta

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scipy.stats import binomtest
from transformers import LlamaConfig, LlamaForCausalLM

from epicrisis.corpus.telling import Telling
from epicrisis.llm.futures import (
    Sampled,
    check_runs_forward,
    count_risks,
    horizon_stop,
    opening,
    read_futures,
    read_targets,
    wilson,
)
from epicrisis.llm.generate import Author, sampled_risks
from epicrisis.llm.tiny_models import train_tokenizer
from epicrisis.narrative import get_style, known_codes, load_lookups, make_narrator, render, shipped_lookup
from epicrisis.narrative.values import CLASS_WORDS, ValueClasses
from epicrisis.settings import InputError, settings_from
from epicrisis.settings.generation_section import TargetSettings
from tests.narrative.histories import at, history, rows_of

CODES = ["ICD10CM//I10", "ICD10CM//E11.65", "LOINC//718-7", "GENDER//F"]
HTN, DM, HB = (
    "Essential (primary) hypertension",
    "Type 2 diabetes mellitus with hyperglycemia",
    "Hemoglobin [Mass/volume] in Blood",
)
DAY = timedelta(days=1)
MICROSECONDS = 86_400_000_000


@pytest.fixture(scope="module")
def lookups():
    return load_lookups(*(shipped_lookup(name) for name in ("medical", "lab", "region", "time")))


@pytest.fixture(scope="module")
def flat(lookups):
    return make_narrator(known_codes(CODES), lookups, get_style("flat"))


@pytest.fixture(scope="module")
def timeline(lookups):
    return make_narrator(known_codes(CODES), lookups, get_style("timeline"), "gap")


FLAT = [
    f" 1 to 6 days later; {HTN}; 30 to 89 days later; {HB} 6.5 g/dL; 1 year later;",
    f" less than 1 hour later; {DM}; 7 to 13 days later; 14 to 29 days later; {HTN}",
    f" {HTN}; 10 years or more later;",
    f" 1 to 6 days later; {HB} 9.5 g/dL; Essential (prim",
    "",
]
TIMELINE = [
    f"1 to 6 days later: {HTN}\n30 to 89 days later: Hemoglobin in Blood 6.5 g/dL\n1 year later:",
    f"less than 1 hour later: {DM}\n7 to 13 days later:\n14 to 29 days later: {HTN}",
    f"{HTN}\n10 years or more later:",
    "1 to 6 days later: Hemoglobin in Blood 9.5 g/dL; Essential (prim",
    "",
]
RAN_OUT = np.array([False, False, False, True, True])


def target(name="htn", codes=("ICD10CM//I10",), horizon_days=30.0, value=None):
    return TargetSettings(name=name, codes=codes, horizon_days=horizon_days, value=value)


def told(narrator):
    """The same five futures of two rows in the narrator's style; the last two ran out of tokens."""
    return Sampled(np.array([0, 0, 1, 1, 1]), FLAT if narrator.style.name == "flat" else TIMELINE, RAN_OUT)


@pytest.mark.parametrize("which", ["flat", "timeline"])
def test_gaps_add_up_from_the_last_event_on(which, request):
    events, ends = read_futures(told(request.getfixturevalue(which)), request.getfixturevalue(which))
    hour, year = timedelta(hours=1), timedelta(days=365.25)
    expected = [
        (0, "ICD10CM//I10", None, None, DAY, 7 * DAY),
        (0, "LOINC//718-7", 6.5, "g/dL", 31 * DAY, 97 * DAY),
        (1, "ICD10CM//E11.65", None, None, 0 * DAY, hour),
        (1, "ICD10CM//I10", None, None, 21 * DAY, 44 * DAY + hour),  # the gap without events counts
        (2, "ICD10CM//I10", None, None, 0 * DAY, 0 * DAY),  # told with the narrative's last event
        (3, "LOINC//718-7", 9.5, "g/dL", DAY, 7 * DAY),  # what was broken off is not read
    ]
    assert events.rows() == expected
    assert ends.rows() == [
        (0, 7 * DAY, 31 * DAY + year, 97 * DAY + 2 * year),
        (1, hour, 21 * DAY, 44 * DAY + hour),
        (2, None, 10 * year, None),
        (3, 7 * DAY, DAY, 7 * DAY),
    ]


@pytest.mark.parametrize("which", ["flat", "timeline"])
def test_what_is_rendered_reads_as_its_own_future(which, request):
    """A history cut in two: its second half, as it stands in the whole narrative, is read with its true gaps."""
    narrator = request.getfixturevalue(which)
    first = [("2019-12-01", "ICD10CM//I10")]
    later = [("2020-01-20", "LOINC//718-7", 7.1, "g/dL"), ("2020-02-01T05:00", "ICD10CM//E11.65")]
    short, whole = (render(history(events), rows_of(1), narrator)["narrative"][0] for events in (first, first + later))
    assert whole.startswith(short + opening(narrator))
    sampled = Sampled(np.array([0]), [whole.removeprefix(short + opening(narrator))], np.array([False]))
    events, _ = read_futures(sampled, narrator)
    assert events["code"].to_list() == ["LOINC//718-7", "ICD10CM//E11.65"]
    start = at("2019-12-01")
    for row, (time, *_) in zip(events.iter_rows(named=True), later, strict=True):
        assert row["at_least"] <= at(time) - start < row["below"]


@pytest.mark.parametrize("which", ["flat", "timeline"])
def test_hits_unfinished_and_contradicted_futures_are_counted(which, request):
    """Row 0's prediction time is its last event; row 1's eight days later, when a gap of six has been disproved."""
    narrator = request.getfixturevalue(which)
    targets = read_targets(
        [target(), target("anaemia", ("LOINC//*",), 365, "< 7 g/dL"), target("soon", horizon_days=5)], narrator
    )
    found = count_risks(told(narrator), rows_of(1, 2), np.array([0, 8 * MICROSECONDS]), targets, narrator)
    counts = found.select(
        "subject_id", "target", "n_samples", "n_hits", "n_unfinished", "n_contradicted", "n_hits_surely"
    )
    assert counts.rows() == [
        (1, "htn", 2, 1, 0, 0, 1),  # in days 1 to 7: yes; in days 21 to 44, of which the middle is beyond: no
        (1, "anaemia", 2, 1, 0, 0, 1),
        (1, "soon", 2, 1, 0, 0, 0),  # the middle of days 1 to 7 is within 5 days, the end is not
        (2, "htn", 3, 0, 1, 1, 0),
        (2, "anaemia", 3, 0, 1, 1, 0),
        (2, "soon", 3, 0, 1, 1, 0),
    ]
    assert found["n_hits_possibly"].to_list() == [2, 1, 1, 0, 0, 0]
    assert found["probability"].to_list() == [0.5, 0.5, 0.5, 0, 0, 0]
    one = binomtest(1, 2).proportion_ci(method="wilson")
    none, unfinished = (binomtest(k, 2).proportion_ci(method="wilson") for k in (0, 1))
    assert found["lower"].to_list() == pytest.approx([one.low] * 3 + [none.low] * 3)
    assert found["upper"].to_list() == pytest.approx([one.high] * 3 + [unfinished.high] * 3)


def test_a_row_whose_futures_are_all_contradicted_has_no_risk(flat):
    sampled = Sampled(np.array([0]), [f" 1 to 6 days later; {HTN}"], np.array([False]))
    (row,) = count_risks(
        sampled, rows_of(1), np.array([9 * MICROSECONDS]), read_targets([target()], flat), flat
    ).iter_rows(named=True)
    assert (row["n_contradicted"], row["probability"], row["lower"], row["upper"]) == (1, None, 0, 1)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(counts):
    hits, n = counts
    table = pl.DataFrame({"hits": [hits], "n": [n]}).select(
        low=wilson(pl.col("hits"), pl.col("n"), -1), high=wilson(pl.col("hits"), pl.col("n"), 1)
    )
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert table.row(0) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("which", ["flat", "timeline"])
def test_a_future_stops_beyond_the_horizon_or_where_the_record_contradicts_it(which, request):
    narrator = request.getfixturevalue(which)
    stop = horizon_stop(narrator, np.array([0, 8 * MICROSECONDS]), 365 * DAY)
    # 31 days and a year are beyond 365 days; and where eight days have passed, nothing came in the first six.
    assert stop.ended(np.array([0, 1]), [told(narrator).texts[0]] * 2).tolist() == [True, True]
    first = told(narrator).texts[1]
    assert stop.ended(np.array([0, 1]), [first, first]).tolist() == [False, True]
    growing = f" 1 year later; {HTN}" if which == "flat" else f"1 year later: {HTN}"
    cut = growing.index("later") + len("later")
    assert stop.ended(np.array([0]), [growing[:cut]]).tolist() == [False]  # `later` may go on
    assert stop.ended(np.array([0]), [growing[: cut + 1]]).tolist() == [True]


def test_targets_are_codes_values_and_horizons(flat):
    (some,) = read_targets([target(codes=("ICD10CM//*", "LOINC//718-7"), horizon_days=1.5, value=">= -.5 mg/dL")], flat)
    assert some.codes == {"ICD10CM//I10", "ICD10CM//E11.65", "LOINC//718-7"}
    assert (some.horizon, some.compare, some.threshold, some.unit) == (timedelta(hours=36), ">=", -0.5, "mg/dL")
    events = pl.DataFrame(
        {
            "code": ["ICD10CM//I10", "GENDER//F", None, "LOINC//718-7", "LOINC//718-7"],
            "numeric_value": pl.Series([-0.5, 3, 3, None, 3], dtype=pl.Float32),
            "unit": ["mg/dL", "mg/dL", "mg/dL", "mg/dL", "g/dL"],
        }
    )
    assert events.select(met=some.is_met())["met"].to_list() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("style", "dates", "said"),
    [
        ("timeline", "relative", "distances back from the prediction time"),
        ("timeline", "calendar", "calendar dates"),
        ("flat", "calendar", "calendar dates"),
        ("visits", "relative", "cannot be read back"),
    ],
)
def test_a_language_without_a_future_is_refused(lookups, style, dates, said):
    narrator = make_narrator(known_codes(CODES), lookups, get_style(style), dates)
    with pytest.raises(InputError, match=said):
        check_runs_forward(narrator)


def test_a_target_that_no_future_could_meet_is_refused(lookups, flat):
    with pytest.raises(InputError, match=r"targets\[1\].codes: `mi` names no code that the run knows"):
        read_targets([target(), target("mi", ("ICD10CM//I21*", "ICD10CM//I"))], flat)
    edges = pl.DataFrame(schema={"code": pl.String, "unit": pl.String, "n": pl.Int64, "edges": pl.List(pl.Float32)})
    classes = ValueClasses("words", edges)
    assert classes.words == CLASS_WORDS["words"]
    narrator = make_narrator(known_codes(CODES), lookups, get_style("flat"), classes=classes)
    with pytest.raises(InputError, match="values as classes"):
        read_targets([target(value="> 7")], narrator)


GAPS = {" 1 to 6 days later;": 0.7, " 30 to 89 days later;": 0.3}
EVENTS = {f" {HTN};": 0.2, f" {DM};": 0.8}


@pytest.fixture(scope="module")
def chain(lookups, flat):
    """An author that writes a gap after an event (or, with probability `ends`, EOS) and an event after a gap."""
    tokenizer = train_tokenizer([HTN, DM])
    tokenizer.add_tokens([*GAPS, *EVENTS])

    def make(ends=1e-9, **generation):
        generation = {"mode": "futures", "n_samples": 300, "batch_size": 300, "max_new_tokens": 150, **generation}
        given = [{"name": "htn", "codes": ["ICD10CM//I10"], "horizon_days": 45}]
        settings = settings_from({"generation": {**generation, "targets": given}}, check_files=False)
        return Author(settings, Telling(flat, lookups, None, tokenizer), _markov(tokenizer, ends), None)

    return make


def _markov(tokenizer, ends):
    """A model whose next token hangs on the last one alone."""
    size = len(tokenizer)
    likely = torch.full((size, size), 1e-12)
    for text, share in GAPS.items():
        likely[:, tokenizer.convert_tokens_to_ids(text)] = share * (1 - ends)
    likely[:, tokenizer.eos_token_id] = ends
    for gap in GAPS:
        row = torch.full((size,), 1e-12)
        row[tokenizer.convert_tokens_to_ids(list(EVENTS))] = torch.tensor(list(EVENTS.values()))
        likely[tokenizer.convert_tokens_to_ids(gap)] = row
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=size,
            num_hidden_layers=0,
            num_attention_heads=1,
            tie_word_embeddings=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():  # one-hot states, of length sqrt(size) after the norm
        model.get_input_embeddings().weight.copy_(torch.eye(size))
        model.get_output_embeddings().weight.copy_(likely.log().T / size**0.5)
    return model.eval()


NOW = np.zeros(3, dtype=np.int64)
NARRATIVES = ["Demographic Age 63; Asthma"] * 3


@pytest.mark.parametrize(("may_end", "goes_on"), [(False, 1.0), (True, 0.6)])
def test_risks_are_the_probabilities_of_the_model(chain, flat, may_end, goes_on):
    """Gaps of a week (middle: 4 days) come eleven times within 45 days, the long one (60 days) never.

    A future that may end does so with probability 0.4 after each event, and one that may not as if it never could.
    """
    analytic = sum((0.7 * goes_on) ** k * 0.8 ** (k - 1) * 0.2 for k in range(1, 12))
    author = chain(ends=0.4, may_end=may_end)
    targets = read_targets(author.settings.generation.targets, flat)
    risks = sampled_risks(author, rows_of(1, 2, 3), NARRATIVES, NOW, targets)
    assert risks["n_samples"].to_list() == [300] * 3
    assert risks["n_unfinished"].sum() == 0
    assert risks["n_hits"].n_unique() > 1  # each row has futures of its own
    interval = binomtest(int(risks["n_hits"].sum()), 900).proportion_ci(method="wilson")
    assert interval.low < analytic < interval.high
    again = sampled_risks(
        chain(ends=0.4, may_end=may_end, batch_size=32), rows_of(3, 1), NARRATIVES[:2], NOW[:2], targets
    )
    assert_frame_equal(again, risks[[2, 0]])


def test_futures_that_run_out_of_tokens_widen_the_interval_upwards_only(chain, flat):
    """Two tokens are one gap and one event: what follows a week without it is not known."""
    author = chain(max_new_tokens=2)
    targets = read_targets(author.settings.generation.targets, flat)
    risks = sampled_risks(author, rows_of(1, 2, 3), NARRATIVES, NOW, targets)
    hits, unfinished = int(risks["n_hits"].sum()), int(risks["n_unfinished"].sum())
    for count, share in ((hits, 0.7 * 0.2), (unfinished, 0.7 * 0.8)):
        interval = binomtest(count, 900).proportion_ci(method="wilson")
        assert interval.low < share < interval.high
    for row in risks.iter_rows(named=True):
        assert row["probability"] == row["n_hits"] / 300
        both = binomtest(row["n_hits"] + row["n_unfinished"], 300).proportion_ci(method="wilson")
        assert row["upper"] == pytest.approx(both.high)
        assert row["lower"] == pytest.approx(binomtest(row["n_hits"], 300).proportion_ci(method="wilson").low)
