"""`epicrisis generate`: what it leaves in a run directory, what it agrees with, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from epicrisis.commands import main
from tests.commands.conftest import FIRST_SUBJECT, QUESTION, data_keys

KEYS = ["subject_id", "prediction_time"]
FUTURES = [
    "generation.mode=futures",
    "generation.max_new_tokens=30",
    "generation.n_samples=3",
    "generation.targets=[{name: cancer, codes: [ICD10CM//C*], horizon_days: 365}]",
]


def generate(*arguments: object) -> int:
    return main(["generate", *map(str, arguments)])


def train(folder: Path, dataset: Path, base: Path, *keys: str) -> Path:
    model = [f"model.model_name={base}", "model.max_length=256", f"model.question={QUESTION}", "training.max_steps=2"]
    plain = ["training.load_in_4bit=false", "training.bf16=false", "training.batch_size=2"]
    output = f"training.output_dir={folder}"
    arguments = [*data_keys(dataset), *model, *plain, output, "evaluation.bootstrap_resamples=100", *keys]
    assert main(["train", *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def pretrained(dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose narratives are told forwards."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    return train(folder, dataset, base, "stage=pretrain", "narrative.style=flat")


@pytest.fixture(scope="module")
def classifier(dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that answers by label tokens."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    return train(folder, dataset, base, "stage=classify")


def test_futures_become_one_risk_per_row_and_target(pretrained: Path, dataset: Path) -> None:
    assert generate(f"generation.run={pretrained}", *FUTURES, "generation.batch_size=48") == 0
    table = pl.read_parquet(pretrained / "generation" / "held_out.futures.parquet")
    labels = pl.read_parquet(dataset / "labels" / "cancer" / "held_out.parquet")
    assert_frame_equal(table.select(KEYS), labels.select(KEYS).sort(KEYS), check_row_order=False)
    columns = ["subject_id", "prediction_time", "target", "n_samples", "n_hits", "n_unfinished"]
    assert table.columns[:6] == columns
    assert {"probability", "lower", "upper"} <= set(table.columns)
    assert table["n_samples"].unique().to_list() == [3]
    assert (table["n_hits"] + table["n_unfinished"] + table["n_contradicted"] <= 3).all()
    told = json.loads((pretrained / "generation" / "held_out.futures.json").read_text())
    assert told["n_rows"] == table.height
    assert 0 <= told["targets"]["cancer"]["unfinished"] <= 1


def test_a_part_of_the_rows_gets_the_futures_that_it_gets_among_all(pretrained: Path) -> None:
    folder = pretrained / "generation"
    assert generate(f"generation.run={pretrained}", *FUTURES, "evaluation.split=tuning") == 0
    whole = pl.read_parquet(folder / "tuning.futures.parquet")
    few = ["evaluation.split=tuning", "generation.max_rows=4", "generation.batch_size=5"]
    assert generate(f"generation.run={pretrained}", *FUTURES, *few) == 0
    part = pl.read_parquet(folder / "tuning.futures.parquet")
    assert part.height == 4 < whole.height
    assert_frame_equal(part, whole.join(part, on=KEYS, how="semi", maintain_order="left"))


def test_continuations_are_kept_in_the_run_directory_and_nowhere_else(
    pretrained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = [
        "generation.mode=continue",
        "generation.n_samples=2",
        "generation.max_new_tokens=25",
        "generation.max_rows=5",
    ]
    assert generate(f"generation.run={pretrained}", *keys, "generation.stop=[;]") == 0
    table = pl.read_parquet(pretrained / "generation" / "held_out.continuations.parquet")
    assert table.group_by(KEYS).len()["len"].to_list() == [2] * 5
    assert not table["continuation"].str.contains(";", literal=True).any()
    assert (table["n_tokens"] <= 25).all()
    assert set(table["ending"]) <= {"stop", "length", "end"}
    printed = "".join(capfd.readouterr())
    assert "10 rows in" in printed
    summary = (pretrained / "generation" / "held_out.continue.json").read_text()
    long = table.filter(pl.col("continuation").str.len_chars() > 8)["continuation"]
    assert len(long) > 0
    for text in (printed, summary):
        assert str(FIRST_SUBJECT)[:6] not in text
        assert not any(written in text for written in long)


def test_answers_in_words_have_the_probabilities_that_the_classifier_predicts(classifier: Path) -> None:
    assert generate(f"generation.run={classifier}", "generation.batch_size=6") == 0
    folder = classifier / "generation"
    written = pl.read_parquet(folder / "predictions" / "held_out.parquet")
    assert_frame_equal(written, pl.read_parquet(classifier / "predictions" / "held_out.parquet"), abs_tol=1e-5)
    answers = pl.read_parquet(folder / "held_out.answers.parquet")
    told = json.loads((folder / "held_out.answer.json").read_text())
    assert told["said_an_answer"] == pytest.approx(answers["said"].is_not_null().mean())


def test_a_prompt_of_ones_own_is_written_after_and_scored_alike(
    dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = ["model.prompt='So far: {narrative} / {question} In short:'", "model.answers=['no', no doubt]"]
    run = train(tmp_path_factory.mktemp("own") / "run", dataset, base, "stage=classify", *own)
    assert generate(f"generation.run={run}", "generation.constrained=true") == 0
    written = pl.read_parquet(run / "generation" / "predictions" / "held_out.parquet")
    assert_frame_equal(written, pl.read_parquet(run / "predictions" / "held_out.parquet"), abs_tol=1e-5)
    assert pl.read_parquet(run / "generation" / "held_out.answers.parquet")["said_only"].all()


def test_constrained_answers_are_always_answers_and_greedy_takes_the_likelier(classifier: Path) -> None:
    assert generate(f"generation.run={classifier}", "generation.constrained=true") == 0
    answers = pl.read_parquet(classifier / "generation" / "held_out.answers.parquet")
    assert answers["said_only"].all()
    likelier = pl.when(pl.col("probabilities").list.get(1) > 0.5).then(pl.lit("yes")).otherwise(pl.lit("no"))
    assert answers.select((pl.col("answer") == likelier).all()).item()
    hot = ["generation.constrained=true", "generation.temperature=100"]
    assert generate(f"generation.run={classifier}", *hot) == 0
    drawn = pl.read_parquet(classifier / "generation" / "held_out.answers.parquet")
    assert set(drawn["answer"]) == {"no", "yes"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([], "generation.run: names no run"),
        (["generation.run={empty}"], "holds no finished run"),
        (["generation.run={finished}"], "its arm `logistic_regression` writes nothing"),
        (["generation.run={classifier}", *FUTURES], "distances back from the prediction time"),
        (["generation.run={classifier}", "narrative.style=flat"], "narrative (style): is not what this checkpoint"),
        (["generation.run={pretrained}", "generation.mode=futures"], "nothing is looked for"),
        (["generation.run={pretrained}", *FUTURES, "generation.max_new_tokens=250"], "no room for a narrative"),
        (["generation.run={pretrained}", *FUTURES, "generation.temperature=0"], "all futures of a row are the same"),
        (["generation.run={pretrained}", *FUTURES, "generation.stop=[x]"], "a future ends at the horizon"),
        (["generation.run={pretrained}", *FUTURES, "generation.constrained=true"], "only answers have a list"),
        (["generation.run={pretrained}", "generation.engine=vllm"], "vllm does not write answers"),
        (["generation.run={pretrained}", "generation.engine=vllm", *FUTURES], "vllm is not installed"),
        (["generation.run={pretrained}", "generation.targets=[{name: x}]"], "generation.targets.0.codes"),
        (
            [
                "generation.run={pretrained}",
                *FUTURES,
                "generation.targets=[{name: x, codes: [Q//*], horizon_days: 1}]",
            ],
            "`x` names no code that the run knows",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(
    keys: list[str],
    said: str,
    classifier: Path,
    pretrained: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"classifier": classifier, "pretrained": pretrained, "finished": finished, "empty": tmp_path}
    filled = [key.format(**places) if key.startswith("generation.run") else key for key in keys]
    assert generate(*filled) == 2
    assert said in capsys.readouterr().err


def test_a_run_that_answers_by_a_score_head_is_not_asked_for_words(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(f"generation.run={classifier}", "model.head=score") == 2
    assert "never taught to answer in words" in capsys.readouterr().err
