"""The embedded default bases: a small Llama and a small Mistral that can read, made on the spot and cached.

They stand in for hub models where there is no network. Tokenizer and weights come from the shipped lookup
terms and from a synthetic population of other subjects than any cohort's, told up to their prediction time,
so that the base has seen the language of narratives but no outcome.
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
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from epicrisis.cohort import Cohort, build_cohort
from epicrisis.corpus.prepare import Prepared, prepare
from epicrisis.corpus.telling import Telling, fit_narrator
from epicrisis.corpus.tokens import prompt_text
from epicrisis.events.synthetic import synthesize
from epicrisis.llm.heads import NextToken
from epicrisis.llm.pretrain import NarrativeLesson, token_loss
from epicrisis.llm.tiny_models import SHAPE, VOCABULARY, new_model, train_tokenizer
from epicrisis.narrative import STYLES, Lookups, Narrator, get_style, load_lookups, render, shipped_lookup
from epicrisis.settings.schema import TrainingSettings
from epicrisis.tracking.progress import say
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.device import make_accelerator
from epicrisis.training.loop import train

EMBEDDED = ("epicrisis/tiny-llama", "epicrisis/tiny-mistral")

POPULATION: dict[str, Any] = {
    "n_subjects": 1500,
    "seed": 7_000_001,
    "mean_visits": 5.0,
    "split_shares": (0.9, 0.1, 0.0),
}
WINDOW = 512
TRAINING: dict[str, Any] = {
    "epochs": 1.0,
    "batch_size": 2,
    "learning_rate": 3e-3,
    "warmup_ratio": 0.1,
    "logging_steps": 50,
}
QUESTION = "Will the outcome happen?"
TABLES = ("medical", "lab", "region", "time")
WORDS = ("no", "yes", "none", "first", "second", "third", "fourth")


def embedded_tokenizer(cache_dir: Path) -> Path:
    """The folder of the embedded bases' tokenizer, built there on first use."""
    target = cache_dir / f"tokenizer-{_recipe()}"
    if not target.is_dir():
        say("embedded base: building its tokenizer from the lookup terms and a synthetic population (once)")
        with _new_folder(target) as partial:
            texts = [prompt_text(QUESTION) + f" {word}" for word in WORDS] * 50
            train_tokenizer(texts + _narratives(partial / "population") + _terms()).save_pretrained(partial)
            shutil.rmtree(partial / "population")
    return target


def embedded_base(name: str, cache_dir: Path) -> Path:
    """The folder of an embedded base (weights and tokenizer), trained in full there on first use."""
    architecture = name.rpartition("-")[2]
    target = cache_dir / f"tiny-{architecture}-{_recipe()}"
    if not target.is_dir() and PartialState().num_processes > 1:
        _build_alone(name, cache_dir)
    if not target.is_dir():
        tokenizer_dir = embedded_tokenizer(cache_dir)
        say(f"embedded base: training {name} in full on another synthetic population (once, then cached)")
        say("embedded base: it reads narratives and nothing else; for real work name a hub model")
        with _new_folder(target) as partial:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
            model = _train_base(architecture, tokenizer, partial / "work")
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            shutil.rmtree(partial / "work")
    return target


def _build_alone(name: str, cache_dir: Path) -> None:
    """Build in a process of its own, which knows nothing of the others that this run was launched with."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    alone = {key: value for key, value in os.environ.items() if key not in launched}
    build = "import sys; from pathlib import Path; from epicrisis.llm import embedded as e; "
    build += "e.embedded_base(sys.argv[1], Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", build, name, str(cache_dir)], env=alone, check=True)


def _train_base(architecture: str, tokenizer: PreTrainedTokenizerFast, work: Path) -> PreTrainedModel:
    prepared = _prepare_population(tokenizer, work)
    training = TrainingSettings(output_dir=work, keep_best=False, **TRAINING)
    lesson = NarrativeLesson(prepared.tokens("train"), tokenizer, WINDOW)
    tuning = NarrativeLesson(prepared.tokens("tuning"), tokenizer, WINDOW)
    accelerator = make_accelerator(training)
    model = new_model(architecture, tokenizer).to(accelerator.device)
    train(
        NextToken(model),
        lesson,
        training,
        accelerator,
        Checkpoints(work / "checkpoints", keep=1, accelerator=accelerator),
        title="embedded base",
        evaluate=lambda module: token_loss(module, tuning, TRAINING["batch_size"], accelerator),
        log=lambda **_: None,
    )
    return model.cpu()


def _prepare_population(tokenizer: PreTrainedTokenizerFast, work: Path) -> Prepared:
    cohort = _population(work / "population")
    telling = Telling(_narrator(cohort, "timeline"), _lookups(cohort), WINDOW - 2, tokenizer)
    return prepare(cohort.rows, cohort.history(cohort.rows), telling, work / "prepared")


def _narratives(directory: Path) -> list[str]:
    cohort = _population(directory)
    rows = cohort.rows.sample(min(600, cohort.rows.height), seed=0)
    events = cohort.history(rows).events()
    return [
        text
        for style in ("timeline", "flat")
        for text in render(events, rows, _narrator(cohort, style))["narrative"].to_list()
    ]


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


def _recipe() -> str:
    """A hash of all that the embedded bases are made of: another recipe is another cache entry."""
    parts = [
        POPULATION,
        VOCABULARY,
        WINDOW,
        SHAPE,
        TRAINING,
        QUESTION,
        WORDS,
        *(style.label for style in STYLES.values()),
        *(shipped_lookup(name).read_text() for name in TABLES),
    ]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield partial
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
