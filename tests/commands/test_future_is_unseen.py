"""Whatever is done to the events after the prediction time, no arm's input changes by one byte."""

from pathlib import Path

import polars as pl
import pytest

from epicrisis.cohort import build_cohort
from epicrisis.corpus.prepare import prepare
from epicrisis.corpus.telling import Telling, fit_narrator
from epicrisis.events.synthetic import synthesize
from epicrisis.llm.tiny_models import train_tokenizer
from epicrisis.narrative import get_style, load_lookups, shipped_lookup
from epicrisis.tabular.counts import fit_features, group_by_code


@pytest.fixture(scope="module")
def meds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meds") / "cohort"
    synthesize(folder, 60, seed=3)
    return folder


def _edited(meds: Path, target: Path, *, before: bool) -> Path:
    """A copy in which the events after (or, to see that the test can fail, before) the landmark are others."""
    labels = pl.concat([pl.read_parquet(file) for file in sorted((meds / "labels/cancer").glob("*.parquet"))])
    for file in sorted(meds.rglob("*")):
        copy = target / file.relative_to(meds)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file() and file.parent.parent.name != "data":
            copy.write_bytes(file.read_bytes())
        elif file.is_file():
            events = pl.read_parquet(file)
            landmark = labels.select("subject_id", landmark="prediction_time")
            joined = events.join(landmark, on="subject_id", how="left", maintain_order="left")
            hit = pl.col("time") < pl.col("landmark") if before else pl.col("time") > pl.col("landmark")
            code = pl.when(hit).then(pl.lit("ICD10CM//C18.9")).otherwise("code")
            value = pl.when(hit).then(pl.col("numeric_value") + 1).otherwise("numeric_value")
            joined.with_columns(code.alias("code"), value.alias("numeric_value")).drop("landmark").write_parquet(copy)
    return target


def _inputs(meds: Path, work: Path, style: str, values: str | None) -> tuple[list[list[int]], list[str], str]:
    """Token ids and narratives of the language-model arms, and the feature table of the tabular ones."""
    cohort = build_cohort(meds, labels_dir=meds / "labels/cancer")
    lookups = load_lookups(medical=shipped_lookup("medical"), time=shipped_lookup("time"), codes=cohort.dataset.codes())
    history = cohort.history(cohort.rows)
    train = cohort.history(cohort.select("train"))
    narrator = fit_narrator(train, lookups, get_style(style), values=values)
    telling = Telling(narrator, lookups, 300, train_tokenizer(["a b"]))
    prepared = prepare(cohort.rows, history, telling, work)
    ids = [row for split in ("train", "tuning", "held_out") for row in prepared.tokens(split)["input_ids"]]
    texts = [text for split in ("train", "held_out") for text in prepared.narratives(split).collect()["narrative"]]
    table = group_by_code(cohort.rows, (events for _, events in history.shards()))
    return ids, texts, str(fit_features(table, 1).for_trees(table).toarray().tolist())


@pytest.mark.parametrize(
    ("style", "values"), [("timeline", None), ("flat", "words"), ("recent_unique", "deciles"), ("visits", None)]
)
def test_the_future_is_unseen_by_every_arm(meds: Path, tmp_path: Path, style: str, values: str | None) -> None:
    original = _inputs(meds, tmp_path / "a", style, values)
    other_future = _inputs(_edited(meds, tmp_path / "future", before=False), tmp_path / "b", style, values)
    other_past = _inputs(_edited(meds, tmp_path / "past", before=True), tmp_path / "c", style, values)
    assert other_future == original
    for changed, unchanged in zip(other_past, original, strict=True):
        assert changed != unchanged, "the comparison sees nothing"
