"""Parts of a corpus are independent: whoever makes them, in whatever order, again or not, the same files come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from epicrisis.cohort import Cohort, build_cohort
from epicrisis.corpus import prepare as module
from epicrisis.corpus.executors import Executor
from epicrisis.corpus.part import prepare_part
from epicrisis.corpus.prepare import Prepared, prepare
from epicrisis.corpus.telling import Telling, fit_narrator, narrator_once
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.events.synthetic import synthesize
from epicrisis.llm.tiny_models import train_tokenizer
from epicrisis.narrative import Lookups, get_style, load_lookups, shipped_lookup
from epicrisis.settings import InputError

SPLITS = ("train", "tuning", "held_out")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("meds") / "cohort"
    synthesize(folder, 90, seed=5, shard_size=30)
    return build_cohort(folder, labels_dir=folder / "labels/cancer")


@pytest.fixture(scope="module")
def lookups(cohort: Cohort) -> Lookups:
    medical, lab, region, time = map(shipped_lookup, ("medical", "lab", "region", "time"))
    return load_lookups(medical, lab, region, time, codes=cohort.dataset.codes())


@pytest.fixture
def telling(cohort: Cohort, lookups: Lookups) -> Telling:
    return telling_of(cohort, lookups, "timeline", 200)


def telling_of(cohort: Cohort, lookups: Lookups, style: str, max_tokens: int | None) -> Telling:
    train = cohort.history(cohort.select("train"))
    narrator = fit_narrator(train, lookups, get_style(style))
    return Telling(narrator, lookups, max_tokens, train_tokenizer(["a diagnosis; 12 mg/dL before: visit"] * 3))


def prepared_in(directory: Path, cohort: Cohort, telling: Telling, executor: Executor | None = None) -> Prepared:
    return prepare(cohort.rows, cohort.history(cohort.rows), telling, directory, executor)


def contents(prepared: Prepared) -> dict[str, object]:
    told = {split: prepared.narratives(split).collect().to_dicts() for split in SPLITS}
    counts = prepared.coverage()
    # Shares of events are summed over subjects, in the order in which parts were made.
    rounded = counts.subjects.with_columns(pl.col("words").round(9))
    codes, subjects = (table.sort(table.columns).to_dicts() for table in (counts.codes, rounded))
    return {"told": told, "ids": {s: prepared.tokens(s)["input_ids"][:] for s in SPLITS}, "counts": [codes, subjects]}


@pytest.mark.parametrize("style", ["timeline", "flat", "recent_unique", "visits"])
@pytest.mark.parametrize("max_tokens", [60, 100_000, None])
def test_ids_are_those_of_the_texts_and_within_the_budget(cohort, lookups, tmp_path, style, max_tokens):
    telling = telling_of(cohort, lookups, style, max_tokens)
    prepared = prepared_in(tmp_path, cohort, telling)
    asked = {split: cohort.select(split).select("subject_id", "prediction_time") for split in SPLITS}
    dropped = 0
    for split in SPLITS:
        told, tokens = prepared.narratives(split).collect(), prepared.tokens(split)
        assert told.select("subject_id", "prediction_time").equals(asked[split])
        ids = tokens["input_ids"][:]
        assert ids == encode_narratives(telling.tokenizer, told["narrative"].to_list())
        assert tokens["n_tokens"][:] == [len(row) for row in ids]
        assert tokens["subject_id"][:] == told["subject_id"].to_list()
        assert max_tokens is None or max(map(len, ids)) <= max_tokens
        dropped += told["n_events_dropped"].sum()
    assert (dropped > 0) == (max_tokens == 60)


def test_header_tokens_are_bos_and_the_first_line(cohort, telling, tmp_path):
    prepared = prepared_in(tmp_path, cohort, telling)
    told, tokens = prepared.narratives("train").collect(), prepared.tokens("train")
    heads = [text.split("\n")[0] + "\n" for text in told["narrative"]]
    assert tokens["n_header_tokens"][:] == [len(ids) for ids in encode_narratives(telling.tokenizer, heads)]


@pytest.mark.parametrize("kind", ["threads", "processes", "dask"])
def test_the_executor_changes_nothing(cohort, telling, tmp_path, monkeypatch, kind):
    if kind == "dask":
        pytest.importorskip("distributed")
    if kind == "processes":
        monkeypatch.setattr("epicrisis.corpus.executors.MOST_THREADS", 1)
    executor = Executor("dask" if kind == "dask" else "local", workers=2)
    monkeypatch.setattr(module, "EVENTS_PER_PART", 3000)
    alone = prepared_in(tmp_path / "alone", cohort, telling, Executor(workers=1))
    together = prepared_in(tmp_path / "together", cohort, telling, executor)
    files = sorted(file.name for file in (tmp_path / "alone/tokens/train").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "together/tokens/train").iterdir())
    assert len(files) >= 3
    assert contents(alone) == contents(together)


def test_the_size_of_parts_changes_nothing(cohort, telling, tmp_path, monkeypatch):
    whole = prepared_in(tmp_path / "whole", cohort, telling)
    monkeypatch.setattr(module, "EVENTS_PER_PART", 1)
    single = prepared_in(tmp_path / "single", cohort, telling)
    assert len(list((tmp_path / "single/tokens").rglob("*.arrow"))) == cohort.rows["subject_id"].n_unique()
    assert contents(whole) == contents(single)


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """The names of the parts that are made from here on."""
    names: list[str] = []

    def counted(telling, part):
        names.append(part.name)
        return prepare_part(telling, part)

    monkeypatch.setattr(module, "prepare_part", counted)
    monkeypatch.setattr(module, "EVENTS_PER_PART", 3000)
    return names


def test_a_broken_preparation_goes_on_with_what_is_missing(cohort, telling, tmp_path, made, monkeypatch):
    first = contents(prepared_in(tmp_path, cohort, telling))
    everything = list(made)
    made.clear()
    prepared_in(tmp_path, cohort, telling)
    assert made == []

    def broken(telling, part):
        if part.name == everything[3]:
            raise KeyboardInterrupt
        return prepare_part(telling, part)

    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare_part", broken)
        with pytest.raises(KeyboardInterrupt):
            prepared_in(tmp_path / "again", cohort, telling)
    again = prepared_in(tmp_path / "again", cohort, telling)
    assert made == everything[3:]
    assert contents(again) == first


def test_what_an_earlier_preparation_left_is_made_anew(cohort, lookups, telling, tmp_path, made):
    prepared_in(tmp_path, cohort, telling)
    made.clear()
    other = telling_of(cohort, lookups, "flat", 200)
    few = cohort.select("train").head(5)
    prepared = prepare(few, cohort.history(few), other, tmp_path)
    assert prepared.splits() == ["train"]
    assert prepared.narratives("train").collect()["subject_id"].to_list() == few["subject_id"].to_list()
    assert len(made) == len(list((tmp_path / "tokens").rglob("*.arrow")))
    assert prepared.narratives("train").collect()["style"].unique().to_list() == ["flat@2"]


def test_a_lost_file_is_made_again(cohort, telling, tmp_path, made):
    prepared_in(tmp_path, cohort, telling)
    lost = sorted((tmp_path / "tokens/train").iterdir())[0]
    lost.unlink()
    made.clear()
    prepared_in(tmp_path, cohort, telling)
    assert made == [lost.stem]


def test_statistics_add_up(cohort, telling, tmp_path):
    prepared = prepared_in(tmp_path, cohort, telling)
    table = prepared.statistics()
    assert table["split"].to_list() == ["held_out", "train", "tuning"]
    assert table["n"].sum() == cohort.rows.height
    told = prepared.narratives("train").collect()
    lengths = np.array([len(ids) for ids in encode_narratives(telling.tokenizer, told["narrative"].to_list())])
    row = table.filter(split="train").row(0, named=True)
    assert row["tokens_mean"] == pytest.approx(lengths.mean())
    assert row["tokens_max"] == lengths.max()
    kept = told["n_events"].sum() - told["n_events_dropped"].sum()
    assert row["tokens_per_event"] == pytest.approx(lengths.sum() / kept)
    assert row["events_dropped"] == told["n_events_dropped"].sum() > 0


def test_a_narrator_is_fitted_once_for_the_same_inputs(cohort, lookups, tmp_path, monkeypatch):
    train = cohort.history(cohort.select("train"))
    first = narrator_once(train, lookups, get_style("flat"), "relative", "words", tmp_path)
    monkeypatch.setattr("epicrisis.corpus.telling.fit_narrator", None)
    again = narrator_once(train, lookups, get_style("flat"), "relative", "words", tmp_path)
    assert again.fingerprint == first.fingerprint
    assert again.classes is not None
    with pytest.raises(TypeError):
        narrator_once(train, lookups, get_style("flat"), "relative", "deciles", tmp_path)


def test_a_scheduler_that_does_not_answer_is_refused(cohort, telling, tmp_path):
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        prepared_in(tmp_path, cohort, telling, Executor("dask", scheduler="tcp://127.0.0.1:9"))


@pytest.mark.parametrize("most_threads", [1, 4])
def test_bad_input_crosses_processes_whole(monkeypatch, most_threads):
    monkeypatch.setattr("epicrisis.corpus.executors.MOST_THREADS", most_threads)
    with pytest.raises(InputError) as caught:
        list(Executor(workers=2).run(_refusing, None, [1, 2]))
    assert [str(problem) for problem in caught.value.problems] == ["job: is bad\n    fix: mend it"]


def _refusing(shared: None, job: int) -> int:
    from epicrisis.settings import refuse

    raise refuse("job", "is bad", "mend it")


def test_parts_hold_every_row_once_and_few_events(cohort):
    history = cohort.history(cohort.rows)
    parts = history.parts(2000)
    assert pl.concat([part.rows for part in parts]).sort("subject_id").equals(cohort.rows.sort("subject_id"))
    for part in parts:
        assert part.records["shard"].n_unique() == 1
        assert part.records.height == 1 or part.records["n_events"].sum() <= 4000
    events = pl.concat([part.events().collect() for part in parts]).sort("subject_id", maintain_order=True)
    assert events.equals(history.events().collect())
