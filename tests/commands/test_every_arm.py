"""One contract for every arm: the same rows, blind to the future, saved and loaded bit for bit, clear refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from epicrisis.cohort import Cohort, rows_fingerprint
from epicrisis.commands.arms import ARMS, make_arm
from epicrisis.commands.inputs import open_cohort, open_lookups
from epicrisis.commands.preflight import refuse_unless_runnable
from epicrisis.commands.train import SPLITS_JUDGED, fit_and_predict
from epicrisis.encoders.tiny_bert import new_bert, train_wordpiece
from epicrisis.evaluation.predictions import read_predictions
from epicrisis.events.synthetic import synthesize
from epicrisis.settings import InputError, Settings, load_settings, settings_from
from epicrisis.settings.survival_checks import LEARNERS
from epicrisis.tracking.run_directory import RunDirectory, open_run

ROOT = Path(__file__).parents[2]
TEXTS = ["63-year-old woman. 2 years before: Asthma; Creatinine 0.9 mg/dL", "last hour: Emergency visit; Weight loss"]
NARROW = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
ENCODER = {"model": {"model_name": "bert"}}
CODES = {"structured": {"size": "demo", "context": 64, "tokens_per_batch": 1024}}

CASES: dict[str, dict[str, Any]] = {
    "llm": {"model": {"model_name": "llama", "head": "score"}, "lora": {"r": 2}},
    "logistic_regression": {},
    "random_forest": {},
    "xgboost": {},
    "lightgbm": {},
    "encoder": ENCODER,
    "frozen_encoder": ENCODER,
    "event_encoder": {**ENCODER, "encoder": {"width": 16, "layers": 1, "heads": 2, "max_events": 24}},
    "structured lstm": {"structured": {**CODES["structured"], "architecture": "lstm"}},
    "structured gpt2": {"structured": {**CODES["structured"], "architecture": "gpt2"}},
    "structured hyena": {"structured": {**CODES["structured"], "architecture": "hyena"}},
    "behrt": {"behrt": {**NARROW, "embedding_size": 16, "max_length": 32}},
    "exmed_bert": {"exmed": {**NARROW, "max_length": 32}},
    "oracle": {},
}
"""By name, whose first word is the arm, what its smallest model asks for."""
CASE_ARMS = {case: case.partition(" ")[0] for case in CASES}


def test_no_arm_is_missing() -> None:
    assert set(CASE_ARMS.values()) == set(ARMS)


@dataclass(frozen=True)
class Trained:
    """An arm's run on a copy of the cohort."""

    settings: Settings
    cohort: Cohort
    run: RunDirectory
    predictions: dict[str, pl.DataFrame]


@pytest.fixture(scope="module")
def meds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """60 synthetic subjects as they are, with another future, and with another past."""
    folder = tmp_path_factory.mktemp("meds")
    synthesize(folder / "original", 60, seed=3, mean_visits=4, split_shares=(0.5, 0.25, 0.25))
    copies = {"original": folder / "original"}
    for name in ("future", "past"):
        copies[name] = edited(copies["original"], folder / name)
    return copies


@pytest.fixture(scope="module")
def bases(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of an untrained decoder and an untrained encoder."""
    bert, tokenizer = tmp_path_factory.mktemp("bert"), train_wordpiece(TEXTS * 20, 300)
    new_bert(tokenizer, **NARROW, max_position_embeddings=192, initializer_range=0.2).save_pretrained(bert)
    tokenizer.save_pretrained(bert)
    return {"llama": base, "bert": bert}


@pytest.fixture(scope="module")
def settings(
    meds: dict[str, Path], bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Settings]:
    """Settings of a case on a copy of the cohort, with a run directory of their own."""

    def make(case: str, copy: str = "original", task: str = "cancer", **data: Any) -> Settings:
        given, place = CASES[case], meds[copy]
        model = {"max_length": 192, **given.get("model", {})}
        if "model_name" in model:
            model["model_name"] = str(bases[model["model_name"]])
        training = {"batch_size": 8, "max_steps": 2, "learning_rate": 5e-3, "bf16": False, "load_in_4bit": False}
        training |= {"output_dir": str(tmp_path_factory.mktemp(CASE_ARMS[case]) / "run")}
        named = {"meds_dir": str(place), "labels_dir": str(place / "labels" / task)}
        named |= {"oracle_dir": str(place / "oracle" / task), **data}
        own = {"arm": CASE_ARMS[case], "stage": "classify", "model": model, "training": training, "data": named}
        return settings_from({**given, **own})

    return make


@pytest.fixture(scope="module")
def trained(settings: Callable[..., Settings]) -> Callable[..., Trained]:
    """Fits an arm as `epicrisis train` does, once for each case and copy of the cohort."""

    @cache
    def train(case: str, copy: str = "original") -> Trained:
        own = settings(case, copy)
        cohort, run = open_cohort(own), open_run(own.training.output_dir, own.resolved())
        return Trained(own, cohort, run, fit_and_predict(own, cohort, open_lookups(own, cohort), run))

    return train


@pytest.mark.parametrize("case", CASES)
def test_every_arm_predicts_all_judged_rows_with_their_labels(case: str, trained: Callable[..., Trained]) -> None:
    one = trained(case)
    for split in SPLITS_JUDGED:
        kept = read_predictions(one.run.predictions(split)).rename({"boolean_value": "label"})
        assert rows_fingerprint(kept) == rows_fingerprint(one.cohort.select(split))
        assert kept["predicted_boolean_probability"].is_between(0, 1).all()


@pytest.mark.parametrize("case", CASES)
def test_an_arm_that_learnt_beside_another_future_predicts_the_same(case: str, trained: Callable[..., Trained]) -> None:
    original, future, past = (trained(case, copy).predictions for copy in ("original", "future", "past"))
    for split in SPLITS_JUDGED:
        assert future[split].equals(original[split])
        unread = case == "oracle"
        assert past[split].equals(original[split]) == unread, "the comparison sees nothing"


@pytest.mark.parametrize("case", CASES)
def test_a_saved_arm_predicts_the_same(case: str, trained: Callable[..., Trained]) -> None:
    one = trained(case)
    assert predicted_again(one.run.dir) == as_predicted(one)


def test_saved_arms_predict_the_same_in_a_process_that_knows_nothing_of_their_training(
    trained: Callable[..., Trained], tmp_path: Path
) -> None:
    runs = {case: trained(case).run.dir for case in CASES}
    code = "import sys; from tests.commands.test_every_arm import write_again; write_again(*sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path, *runs.values()], cwd=ROOT, check=False)
    assert done.returncode == 0
    found = {case: np.load(tmp_path / f"{number}.npy").tolist() for number, case in enumerate(runs)}
    assert found == {case: as_predicted(trained(case)) for case in CASES}


@pytest.mark.parametrize("case", [case for case in CASES if CASE_ARMS[case] not in LEARNERS])
def test_times_to_an_event_are_refused_by_arms_that_tell_classes_apart(
    case: str, settings: Callable[..., Settings]
) -> None:
    with pytest.raises(InputError, match="times to an event"):
        fit_on(settings(case, task="time_to_event"))


@pytest.mark.parametrize("case", CASES)
def test_rows_without_labels_are_refused(case: str, settings: Callable[..., Settings]) -> None:
    own = settings(case, labels_dir=None, oracle_dir=None)
    cohort = open_cohort(own)
    with pytest.raises(InputError, match=r"data\.labels_dir: is not given"):
        refuse_unless_runnable(own, cohort, open_lookups(own, cohort))


def test_true_risks_that_are_nowhere_are_refused(settings: Callable[..., Settings]) -> None:
    with pytest.raises(InputError, match=r"data\.oracle_dir: is not given"):
        fit_on(settings("oracle", oracle_dir=None))


def edited(meds: Path, target: Path) -> Path:
    """A copy whose events after (or, named `past`, before) the prediction time have another code, value and day."""
    labels = pl.read_parquet(meds / "labels" / "cancer" / "*.parquet").select("subject_id", "prediction_time")
    n_edited = 0
    for file in (path for path in meds.rglob("*") if path.is_file()):
        copy = target / file.relative_to(meds)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.parent.parent.name != "data":
            copy.write_bytes(file.read_bytes())
            continue
        events = pl.read_parquet(file).join(labels, on="subject_id", how="left", maintain_order="left")
        before, away = pl.col("time") < pl.col("prediction_time"), pl.duration(days=1)
        hit, away = (before, -away) if target.name == "past" else (pl.col("time") > pl.col("prediction_time"), away)
        n_edited += events.filter(hit).height
        changed = events.with_columns(
            code=pl.when(hit).then(pl.lit("ICD10CM//C18.9")).otherwise("code"),
            numeric_value=pl.when(hit).then(pl.col("numeric_value").fill_null(0) + 1).otherwise("numeric_value"),
            time=pl.when(hit).then(pl.col("time") + away).otherwise("time"),
        )
        changed.select(pl.read_parquet_schema(file).keys()).write_parquet(copy)
    assert n_edited > 0
    return target


def fit_on(settings: Settings) -> Any:
    """Ask the arm to learn, past what the commands check before."""
    cohort = open_cohort(settings)
    rows, run = cohort.rows.filter(pl.col("split") != "held_out"), open_run(settings.training.output_dir, {})
    return make_arm(settings, open_lookups(settings, cohort)).fit(rows, cohort.history(rows), run)


def as_predicted(one: Trained) -> list[float]:
    """The probabilities of tuning, then of held_out."""
    tables = pl.concat(one.predictions[split] for split in SPLITS_JUDGED)
    return tables["predicted_boolean_probability"].to_list()


def predicted_again(run: Path) -> list[float]:
    """What the arm that was saved in a run directory predicts for the same rows, asked for them together."""
    settings = load_settings(run / "config.yaml")
    cohort = open_cohort(settings)
    fitted = make_arm(settings, open_lookups(settings, cohort)).load(run)
    rows = cohort.rows.filter(pl.col("split").is_in(SPLITS_JUDGED))
    scored = rows.select("split", score=pl.Series(fitted.predict(rows, cohort.history(rows))[:, 1]))
    return pl.concat(scored.filter(split=split) for split in SPLITS_JUDGED)["score"].to_list()


def write_again(target: str, *runs: str) -> None:
    """The same for several runs, each into a file that is named after its place among them."""
    for number, run in enumerate(runs):
        np.save(Path(target) / f"{number}.npy", predicted_again(Path(run)))
