"""What a report tells of narratives: those of the arms' own rows, each telling once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from epicrisis.cohort import Cohort, build_cohort
from epicrisis.commands.told_narratives import measured_arms
from epicrisis.corpus.prepare import prepare
from epicrisis.corpus.telling import Telling, fit_narrator
from epicrisis.llm.tiny_models import train_tokenizer
from epicrisis.narrative import get_style, load_lookups, shipped_lookup
from epicrisis.tracking.run_directory import RunDirectory


@pytest.fixture(scope="module")
def cohort(dataset: Path) -> Cohort:
    return build_cohort(dataset, labels_dir=dataset / "labels" / "cancer")


@pytest.fixture(scope="module")
def telling(cohort: Cohort) -> Telling:
    lookups = load_lookups(*map(shipped_lookup, ("medical", "lab", "region", "time")), codes=cohort.dataset.codes())
    narrator = fit_narrator(cohort.history(cohort.select("train")), lookups, get_style("timeline"))
    return Telling(narrator, lookups, 150, train_tokenizer(["a diagnosis; 12 mg/dL before: visit"] * 3))


@pytest.fixture
def arm(cohort: Cohort, telling: Telling, tmp_path: Path) -> Callable[..., RunDirectory]:
    """Makes what a fitted language model leaves of its narratives, without the model."""

    def make(name: str, judged: pl.DataFrame, max_tokens: int = 150) -> RunDirectory:
        told = replace(telling, max_tokens=max_tokens)
        place = RunDirectory(tmp_path / name)
        learnt = cohort.rows.filter(pl.col("split").is_in(["train", "tuning"]))
        for rows, folder in ((learnt, place.dir), (judged, place.dir / "judged")):
            prepare(rows, cohort.history(rows), told, folder)
        (place.dir / "adapters").mkdir()
        (place.dir / "adapters" / "narrative.json").write_text(json.dumps(told.inputs()))
        place.config.write_text("arm: llm\nmodel: {model_name: some/model}\n")
        return place

    return make


def test_arms_that_read_the_same_narratives_share_their_figures(cohort, arm, tmp_path):
    judged = cohort.rows.filter(pl.col("split") != "train")
    counts = RunDirectory(tmp_path / "counts")
    counts.dir.mkdir()
    counts.config.write_text("arm: xgboost\n")
    places = {"one": arm("one", judged), "counts": counts, "short": arm("short", judged, 90), "two": arm("two", judged)}
    told = measured_arms(cohort.rows, places)
    assert list(told) == ["one, two", "short"]
    one, short = told.values()
    assert one.facts["token_budget"] == 150
    assert one.lengths["split"].to_list() == ["train", "tuning", "held_out"]
    assert one.lengths["narratives"].to_list() == [cohort.select(split).height for split in one.lengths["split"]]
    assert set(one.lengths["style"]) == {"timeline@2"}
    assert set(one.lengths["tokenizer"]) == {"some/model"}
    assert (short.lengths["tokens_max"] <= 90).all()
    assert (short.lengths["events_left_out"] > one.lengths["events_left_out"]).all()
    assert set(short.bins["budget"]) == {90}


def test_narratives_of_other_rows_are_not_taken_for_the_cohorts(cohort, arm):
    place = arm("one", cohort.select("held_out")[1:])
    told = measured_arms(cohort.rows, {"one": place})
    assert told["one"].lengths["split"].to_list() == ["train", "tuning"]
