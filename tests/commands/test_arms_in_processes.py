"""Two CPU processes fit what one does, for the arms beside the language model: same weights, same predictions."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from epicrisis.commands import main
from epicrisis.encoders.tiny_bert import new_bert, train_wordpiece
from epicrisis.events.synthetic import synthesize
from tests.launching import launch

TEXTS = ["63-year-old woman. 2 years before: Asthma; Creatinine 0.9 mg/dL", "last hour: Emergency visit; Weight loss"]
NARROW = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
WIDTHS = [f"{name}={value}" for name, value in {**NARROW, "embedding_size": 16, "max_length": 32, "dropout": 0}.items()]
CODES = ["arm=structured", "structured.size=demo", "structured.context=64", "structured.tokens_per_batch=1024"]
TWO_BATCHES = "training.gradient_accumulation_steps=2"
EIGHT_ROWS = "training.batch_size=8"

PRETRAINED = {
    "gpt2 pretrained": [*CODES, "structured.architecture=gpt2", "structured.dropout=0", TWO_BATCHES],
    "behrt pretrained": ["arm=behrt", EIGHT_ROWS, *(f"behrt.{width}" for width in WIDTHS)],
}
CLASSIFIED = {
    "encoder": ["arm=encoder", EIGHT_ROWS, "encoder.dropout=0"],
    "event_encoder": [
        *(
            "arm=event_encoder",
            EIGHT_ROWS,
            "encoder.dropout=0",
            "encoder.width=16",
            "encoder.layers=1",
            "encoder.heads=2",
        ),
        "encoder.max_events=24",
    ],
    "frozen_encoder": ["arm=frozen_encoder"],
    "structured": [*CODES, "structured.architecture=lstm", EIGHT_ROWS, "structured.dropout=0"],
    "exmed_bert": [
        "arm=exmed_bert",
        EIGHT_ROWS,
        *(f"exmed.{width}" for width in WIDTHS if not width.startswith("embedding")),
    ],
    "xgboost": ["arm=xgboost"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `one` and `two` hold each arm's run, fitted by so many processes."""
    folder = tmp_path_factory.mktemp("processes")
    synthesize(folder / "meds", 60, seed=3, mean_visits=4, split_shares=(0.5, 0.25, 0.25))
    tokenizer = train_wordpiece(TEXTS * 20, 300)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    new_bert(tokenizer, **NARROW, **still, max_position_embeddings=192).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    for arguments in _arguments(folder, "one"):
        assert main(["train", *arguments]) == 0
    (folder / "two.json").write_text(json.dumps(_arguments(folder, "two")))
    ended = launch(Path(__file__).with_name("runs_of.py"), folder / "two.json")
    assert ended.returncode == 0, ended.stderr
    return folder


def _arguments(folder: Path, processes: str) -> list[list[str]]:
    shared = [
        f"data.meds_dir={folder / 'meds'}",
        f"data.labels_dir={folder / 'meds' / 'labels' / 'cancer'}",
        f"model.model_name={folder / 'bert'}",
        "model.max_length=128",
        "training.max_steps=3",
        "training.learning_rate=2e-2",
        "training.bf16=false",
        "training.load_in_4bit=false",
        "evaluation.bootstrap_resamples=100",
    ]
    staged = [("pretrain", PRETRAINED), ("classify", CLASSIFIED)]
    return [
        [*shared, *own, f"stage={stage}", f"training.output_dir={folder / processes / name}"]
        for stage, cases in staged
        for name, own in cases.items()
    ]


@pytest.mark.parametrize("case", PRETRAINED)
def test_two_processes_pretrain_what_one_does(case: str, runs: Path) -> None:
    one, two = (json.loads((runs / processes / case / "summary.json").read_text()) for processes in ("one", "two"))
    assert two["loss_before"] == pytest.approx(one["loss_before"], rel=1e-4)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert abs(one["loss"] - one["loss_before"]) > 5e-3 * one["loss_before"]


@pytest.mark.parametrize("case", CLASSIFIED)
def test_two_processes_predict_what_one_does(case: str, runs: Path) -> None:
    for split in ("tuning", "held_out"):
        tables = [pl.read_parquet(runs / p / case / "predictions" / f"{split}.parquet") for p in ("one", "two")]
        one, two = (table.sort("subject_id", "prediction_time") for table in tables)
        assert one.drop("^predicted.*$").equals(two.drop("^predicted.*$"))
        differences = one["predicted_boolean_probability"] - two["predicted_boolean_probability"]
        assert differences.abs().max() == pytest.approx(0, abs=2e-4)
        assert one["predicted_boolean_probability"].n_unique() > 1
