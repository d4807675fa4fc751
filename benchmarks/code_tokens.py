"""Code tokens: events per second, against an encoder that goes from event to event.

    python benchmarks/code_tokens.py

Both encode the same synthetic records with the same fitted tables of the kind `ethos`: code, quantile of the value
in its unit, the interval before each event, age and sex in front. The plain encoder is what one writes first: a
loop over rows' events with dictionaries and bisection. Both begin with the same table and must write the same ids;
the plain one writes nothing else, while the other also says each token's age, visit and event. What the loop takes
where the table is Python tuples already is told beside it. Other kinds are timed too.
"""

from __future__ import annotations

import sys
import tempfile
from bisect import bisect_right
from functools import partial
from pathlib import Path

import polars as pl

from epicrisis.cohort import History
from epicrisis.events import open_meds
from epicrisis.settings.structured_section import StructuredSettings
from epicrisis.settings.tokenizer_section import TokenizerSettings
from epicrisis.structured.tokenizers import fit_tokenizer
from epicrisis.structured.tokenizers.gaps import INTERVALS, MONTH
from epicrisis.structured.tokenizers.tables import Fitted
from epicrisis.structured.tokenizers.tokenizer import AGES, EventTokenizer, encode_events
from epicrisis.structured.vocabulary import UNKNOWN
from records import NOW, make_events, rows_of, vocabulary, write_dataset
from timing import finish, seconds

EVENTS, PER_SUBJECT = 300_000, 300
LESSON = 60_000
TARGET = 10
KINDS = ("clmbr", "cookbook", "cehr", "ethos", "description")


def main() -> None:
    n_events = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    events = make_events(n_events, PER_SUBJECT, seed=1)
    # As History.events gives them: undated events first, then by time.
    events = events.sort("subject_id", "time", nulls_last=False, maintain_order=True)
    keys, figures, fitted = rows_of(events), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        history = _history(write_dataset(Path(folder), LESSON, PER_SUBJECT, LESSON))
        for kind in KINDS:
            settings = TokenizerSettings(kind=kind, **({"code_levels": False} if kind == "ethos" else {}))
            tokenizer = fit_tokenizer(StructuredSettings(tokenizer=settings), history.rows, history, vocabulary())
            assert isinstance(tokenizer, EventTokenizer)
            fitted[kind] = tokenizer.fitted
    for kind in KINDS:
        time = seconds(partial(encode_events, keys, events, fitted[kind]), repeats=3)
        figures[f"{kind}_events_per_second"] = n_events / time
        print(f"{kind:12s} {n_events / time:12,.0f} events/s, {len(fitted[kind].vocabulary):6d} tokens known")
    plain = PlainEncoder(fitted["ethos"])
    found = encode_events(keys, events, fitted["ethos"])
    assert [token for record in _lines(events) for token in plain.encode(record)] == found.tokens.tolist()
    time = seconds(lambda: [plain.encode(record) for record in _lines(events)], repeats=3)
    lines = _lines(events)
    loop = seconds(lambda: [plain.encode(record) for record in lines], repeats=3)
    figures |= {"plain_events_per_second": n_events / time, "loop_alone_events_per_second": n_events / loop}
    figures["events"] = n_events
    print(f"{'plain':12s} {n_events / time:12,.0f} events/s, its loop alone {n_events / loop:12,.0f}")
    finish("code_tokens", figures["ethos_events_per_second"] / figures["plain_events_per_second"], TARGET, figures)


def _lines(events: pl.DataFrame) -> list[list[tuple]]:
    """The events of each row as Python tuples."""
    records = events.partition_by("subject_id", maintain_order=True)
    return [record.drop("subject_id", "prediction_time").rows() for record in records]


def _history(root: Path) -> History:
    dataset = open_meds(root)
    records = dataset.check()
    rows = records.select("subject_id", prediction_time=pl.lit(NOW).cast(pl.Datetime("us")))
    return History(dataset, rows, records, strict=False)


class PlainEncoder:
    """The kind `ethos` without levels, event by event; the records have no more than four digits."""

    def __init__(self, fitted: Fitted) -> None:
        self._ids = dict(fitted.names.iter_rows())
        self._bins = {(code, unit): (starts, tokens) for code, unit, starts, _, tokens in fitted.bins.iter_rows()}
        self._intervals = [fitted.vocabulary.id(name) for name in INTERVALS]
        self._ages = [fitted.vocabulary.id(name) for name in AGES]
        self._shortest = list(INTERVALS.values())

    def encode(self, record: list[tuple]) -> list[int]:
        """record: (time, code, value, text, unit) of one row, undated first."""
        sex: list[int] = []
        body: list[int] = []
        birth = first = last = None
        for time, code, value, _, unit in record:
            if code == "MEDS_BIRTH":
                birth = time
                continue
            if time is None:
                sex.append(self._ids.get(code, UNKNOWN))
                continue
            first = first or time
            if last is not None:
                body.extend(self._gap(time - last))
            last = time
            body.append(self._ids.get(code, UNKNOWN))
            if value is not None and (code, unit) in self._bins:
                starts, tokens = self._bins[code, unit]
                body.append(tokens[bisect_right(starts, value)])
        assert birth is not None  # these records tell both
        assert first is not None
        age = first.year - birth.year - ((first.month, first.day) < (birth.month, birth.day))
        return [self._ages[min(max(age, 0) // 5, len(self._ages) - 1)], *sex, *body]

    def _gap(self, gap) -> list[int]:
        microseconds = (gap.days * 86_400 + gap.seconds) * 1_000_000 + gap.microseconds
        place = bisect_right(self._shortest, microseconds) - 1
        if place < 0:
            return []
        last = place == len(self._shortest) - 1
        times = max(1, (2 * microseconds + 6 * MONTH) // (12 * MONTH)) if last else 1
        return [self._intervals[place]] * times


if __name__ == "__main__":
    main()
