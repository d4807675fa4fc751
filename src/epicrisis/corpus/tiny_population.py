"""What the embedded default models learn from: the shipped terms and a synthetic population of their own.

Its subjects are in no cohort, and their records are told up to the prediction time, so that a model has seen the
language of narratives but no outcome.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from transformers import PreTrainedTokenizerBase

from epicrisis.cohort import Cohort, build_cohort
from epicrisis.corpus.prepare import Prepared, prepare
from epicrisis.corpus.telling import Telling, fit_narrator
from epicrisis.events.synthetic import synthesize
from epicrisis.narrative import STYLES, Lookups, Narrator, get_style, load_lookups, render, shipped_lookup

POPULATION: dict[str, Any] = {
    "n_subjects": 1500,
    "seed": 7_000_001,
    "mean_visits": 5.0,
    "split_shares": (0.9, 0.1, 0.0),
}
TABLES = ("medical", "lab", "region", "time")


def prepare_population(tokenizer: PreTrainedTokenizerBase, work: Path, max_tokens: int) -> Prepared:
    """The population's narratives in the style timeline, of so many tokens at most, as token ids under `work`."""
    cohort = _population(work / "population")
    telling = Telling(_narrator(cohort, "timeline"), _lookups(cohort), max_tokens, tokenizer)
    return prepare(cohort.rows, cohort.history(cohort.rows), telling, work / "prepared")


def population_texts(directory: Path) -> list[str]:
    """Narratives of some of the population in two styles, then all terms, for a tokenizer to learn from."""
    cohort = _population(directory)
    rows = cohort.rows.sample(min(600, cohort.rows.height), seed=0)
    events = cohort.history(rows).events()
    told = [
        text
        for style in ("timeline", "flat")
        for text in render(events, rows, _narrator(cohort, style))["narrative"].to_list()
    ]
    return told + _terms()


def recipe(*parts: Any) -> str:
    """A hash of the population, the words and these parts: another recipe is another cache entry."""
    whole = [
        POPULATION,
        *parts,
        *(style.label for style in STYLES.values()),
        *(shipped_lookup(name).read_text() for name in TABLES),
    ]
    return hashlib.blake2b(json.dumps(whole).encode(), digest_size=6).hexdigest()


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield partial
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def build_alone(module: str, function: str, name: str, cache_dir: Path) -> None:
    """Call `module.function(name, cache_dir)` in a process that knows nothing of the others of this run's launch."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    alone = {key: value for key, value in os.environ.items() if key not in launched}
    build = "import sys; from importlib import import_module; from pathlib import Path; "
    build += "getattr(import_module(sys.argv[1]), sys.argv[2])(sys.argv[3], Path(sys.argv[4]))"
    subprocess.run([sys.executable, "-c", build, module, function, name, str(cache_dir)], env=alone, check=True)


def _narrator(cohort: Cohort, style: str) -> Narrator:
    return fit_narrator(cohort.history(cohort.select("train")), _lookups(cohort), get_style(style))


def _population(directory: Path) -> Cohort:
    if not directory.is_dir():
        synthesize(directory, **POPULATION)
    return build_cohort(meds_dir=directory, labels_dir=directory / "labels" / "cancer")


def _lookups(cohort: Cohort) -> Lookups:
    medical, lab, region, time = map(shipped_lookup, TABLES)
    return load_lookups(medical, lab, region, time, codes=cohort.dataset.codes())


def _terms() -> list[str]:
    terms = [pl.read_csv(shipped_lookup(name))["term"].to_list() for name in ("medical", "lab", "time")]
    return [f"{term};" for table in terms for term in table]
