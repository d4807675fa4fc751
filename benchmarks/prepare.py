"""MEDS Parquet on disk to token ids on disk: events per second, and memory at ten times the events.

    python benchmarks/prepare.py

What is timed is what `epicrisis prepare` does once the dataset is checked: fit the narrator, tell, tokenise, write
narratives, tokens and coverage, on two cores, processes started and all. The ratio is to the same road with the
texts tokenised as a whole, at 10^6 events; the aim is 10^6 events per second at 10^7 of them, with at most 1.5
times the memory of 10^6.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import polars as pl
from transformers import PreTrainedTokenizerFast

from epicrisis.cohort import build_cohort
from epicrisis.corpus.executors import Executor
from epicrisis.corpus.part import Part
from epicrisis.corpus.prepare import EVENTS_PER_PART, prepare
from epicrisis.corpus.telling import Telling, fit_narrator
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.narrative import get_style, render
from epicrisis.tracking.cores import available_cores
from families import byte_level
from records import lookups, make_events, narrator_for, rows_of, write_dataset
from timing import finish, peak_memory

LESSON = 60_000
PER_SUBJECT = 300
PER_FILE = 499_800
SIZES = (1_000_000, 10_000_000)


@dataclass(frozen=True)
class Measured:
    """A preparation: its duration in seconds, peak memory in MB, and what it read and wrote."""

    seconds: float
    megabytes: float
    events: int
    tokens: int

    @property
    def speed(self) -> float:
        return self.events / self.seconds


def measure(dataset: Path, tokenizer: PreTrainedTokenizerFast, run: Path, cores: int) -> Measured:
    """What `epicrisis prepare` does once the dataset is checked."""
    cohort, known = build_cohort(dataset), lookups()
    history, train = cohort.history(cohort.rows), cohort.history(cohort.select("train"))
    with peak_memory() as peak:
        start = perf_counter()
        narrator = fit_narrator(train, known, get_style("timeline"))
        prepared = prepare(
            cohort.rows, history, Telling(narrator, known, None, tokenizer), run, Executor(workers=cores)
        )
        took = perf_counter() - start
    lengths = prepared.lengths()
    shutil.rmtree(run)
    return Measured(took, peak[0], int(lengths["n_events"].sum()), int(lengths["n_tokens"].sum()))


def whole_texts(telling: Telling, part: Part) -> int:
    """The same part with every text tokenised as a whole."""
    events = part.history.events().collect()
    told = render(events, part.history.rows, telling.narrator)
    ids = encode_narratives(telling.tokenizer, told["narrative"].to_list())
    part.directory.mkdir(parents=True, exist_ok=True)
    told.with_columns(input_ids=pl.Series(ids, dtype=pl.List(pl.UInt32))).write_parquet(part.directory / part.name)
    return events.height


def speed_of_whole_texts(dataset: Path, tokenizer: PreTrainedTokenizerFast, run: Path, cores: int) -> float:
    """Events per second of the same road with `encode_batch`, in as many processes."""
    cohort, known = build_cohort(dataset), lookups()
    history = cohort.history(cohort.rows)
    start = perf_counter()
    narrator = fit_narrator(cohort.history(cohort.select("train")), known, get_style("timeline"))
    parts = [Part(part, run, str(n), "") for n, part in enumerate(history.parts(EVENTS_PER_PART))]
    telling = Telling(narrator, known, None, tokenizer)
    events = sum(Executor(workers=cores).run(whole_texts, telling, parts))
    took = perf_counter() - start
    shutil.rmtree(run)
    return events / took


def main() -> None:
    cores = min(2, len(available_cores()))
    lesson = make_events(LESSON, PER_SUBJECT, seed=1)
    tokenizer = byte_level(render(lesson, rows_of(lesson), narrator_for("timeline"))["narrative"].to_list())
    found: dict[int, Measured] = {}
    with tempfile.TemporaryDirectory() as place:
        for size in SIZES:
            dataset = write_dataset(Path(place) / str(size), size, PER_SUBJECT, PER_FILE)
            if size == SIZES[0]:
                naive = speed_of_whole_texts(dataset, tokenizer, Path(place) / "naive", cores)
            found[size] = measure(dataset, tokenizer, Path(place) / "run", cores)
            shutil.rmtree(dataset)
            one = found[size]
            print(
                f"{one.events:>10,} events to {one.tokens:,} tokens in {one.seconds:.2f} s: "
                f"{one.speed / 1e6:.2f} million a second, {one.megabytes:,.0f} MB at the peak"
            )
    small, large = (found[size] for size in SIZES)
    figures = {
        "cores": cores,
        "whole_texts_events_per_second_1e+06": naive,
        **{f"events_per_second_{size:.0e}": one.speed for size, one in found.items()},
        **{f"peak_mb_{size:.0e}": one.megabytes for size, one in found.items()},
        "tokens_per_event": large.tokens / large.events,
        "memory_ratio": large.megabytes / small.megabytes,
    }
    finish("prepare", small.speed / naive, 1, figures)


if __name__ == "__main__":
    main()
