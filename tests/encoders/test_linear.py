"""The linear head: every kind of task, weights and their correction, strength chosen on tuning; kept embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

from epicrisis.encoders.classifier import RecordEncoder
from epicrisis.encoders.embeddings import Embedded, embed_narratives, ids_fingerprint
from epicrisis.encoders.linear import LinearHead, fit_head
from epicrisis.encoders.text_encoder import load_encoder, load_tokenizer
from epicrisis.encoders.windows import Reading, frame_of
from epicrisis.settings import InputError
from epicrisis.training.class_weights import ClassWeights
from epicrisis.training.outcome import ClassOutcome
from tests.encoders.conftest import Log, fitted

DRAWS = np.random.default_rng(0)
VECTORS = DRAWS.normal(3, 2, size=(200, 5)).astype(np.float32)
SIGNS = VECTORS + DRAWS.normal(size=VECTORS.shape) > 3
TARGETS = {
    "binary": SIGNS[:, 0].astype(np.int64),
    "multiclass": (SIGNS[:, 0] + SIGNS[:, 1]).astype(np.int64),
    "multilabel": SIGNS[:, :3],
}


def task(kind: str, asked="none", corrected: bool = False) -> ClassOutcome:
    n = {"binary": 2, "multiclass": 3, "multilabel": 3}[kind]
    return ClassOutcome(kind, tuple("abc"[:n]), ClassWeights.fit(asked, TARGETS[kind]), corrected)


def head(kind: str, asked="none", metric: str = "auroc") -> tuple[LinearHead, dict]:
    vectors = {"train": VECTORS[:150], "tuning": VECTORS[150:]}
    targets = {"train": TARGETS[kind][:150], "tuning": TARGETS[kind][150:]}
    return fit_head(vectors, targets, task(kind, asked), metric=metric, seed=0)


@pytest.mark.parametrize("kind", TARGETS)
def test_its_probabilities_are_scikit_learns_and_c_is_the_best_on_tuning(kind) -> None:
    found, tried = head(kind, metric="loss")
    c = float(min(tried, key=lambda name: tried[name]["loss"]))
    centre, scale = VECTORS[:150].mean(axis=0), VECTORS[:150].std(axis=0)
    standard, rest = (VECTORS[:150] - centre) / scale, (VECTORS[150:] - centre) / scale
    ours = task(kind).predictions(found.logits(VECTORS[150:]))
    model = LogisticRegression(C=c, max_iter=2000)
    if kind == "multilabel":
        each = [model.fit(standard, has).predict_proba(rest)[:, 1] for has in TARGETS[kind][:150].T]
        assert np.allclose(ours, np.stack(each, axis=1), atol=1e-3)
    else:
        assert np.allclose(ours, model.fit(standard, TARGETS[kind][:150]).predict_proba(rest), atol=1e-3)


def test_weights_move_probabilities_and_the_correction_brings_them_back() -> None:
    rare = (1.0, 20.0)
    plain, weighted = head("binary")[0], head("binary", rare)[0]
    without = task("binary").predictions(plain.logits(VECTORS))[:, 1].mean()
    told = task("binary", rare).predictions(weighted.logits(VECTORS))[:, 1].mean()
    corrected = task("binary", rare, corrected=True).predictions(weighted.logits(VECTORS))[:, 1].mean()
    assert told > without + 0.2
    assert abs(corrected - without) < abs(told - without) / 3


def test_a_metric_that_tuning_does_not_give_is_refused() -> None:
    vectors = {"train": VECTORS[:150], "tuning": VECTORS[150:]}
    targets = {"train": TARGETS["binary"][:150], "tuning": np.zeros(50, dtype=np.int64)}
    with pytest.raises(InputError, match=r"training\.metric_for_best"):
        fit_head(vectors, targets, task("binary"), metric="auroc", seed=0)


def test_each_text_is_embedded_once_and_what_is_kept_is_read_back(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def embed(places: list[int]) -> np.ndarray:
        asked.append(places)
        return np.array([[place, place + 0.5] for place in places], dtype=np.float32)

    one, two, three = (ids_fingerprint(ids) for ids in ([1], [2, 3], [23]))
    kept = Embedded(tmp_path / "e" / "one.safetensors", 2)
    assert kept.of([one, two, one], embed, write=True).tolist() == [[0, 0.5], [1, 1.5], [0, 0.5]]
    again = Embedded(tmp_path / "e" / "one.safetensors", 2)
    assert again.of([two, three], embed, write=True).tolist() == [[1, 1.5], [1, 1.5]]
    assert asked == [[0, 1], [1]]
    assert len(Embedded(tmp_path / "e" / "one.safetensors", 2)) == 3


def test_vectors_stand_in_the_order_of_the_narratives(bert, settings, accelerator) -> None:
    reading = Reading(frame_of(load_tokenizer(str(bert))), 20, 3)
    module = RecordEncoder(load_encoder(str(bert), settings(), accelerator), settings().encoder).eval()
    narratives = [list(range(5, 5 + n)) for n in (7, 60, 3, 25, 41)]
    together = embed_narratives(module, narratives, reading, 4, accelerator)
    alone = [embed_narratives(module, [ids], reading, 4, accelerator)[0] for ids in narratives]
    assert np.allclose(together, alone, atol=1e-5)


def test_the_frozen_encoder_is_not_changed_and_options_of_reading_count(settings, lookups, cohort, tmp_path) -> None:
    rows = cohort.select("held_out")
    found = {}
    for name, changes in {
        "as it is": {},
        "mean": {"encoder.pooling": "mean"},
        "short": {"model.max_length": 48},
        "windows": {"model.max_length": 48, "encoder.long": "chunk"},
        "highest": {"model.max_length": 48, "encoder.long": "chunk", "encoder.chunk_pooling": "max"},
    }.items():
        model = fitted(settings("frozen_encoder", **changes), lookups, cohort, Log(tmp_path / name))
        assert not any(p.requires_grad for p in model.embedder.module.parameters())
        assert not model.embedder.module.encoder.training
        found[name] = model.predict(rows, cohort.history(rows))
        assert len(list((tmp_path / name / "embeddings").glob("*.safetensors"))) == 1
    names = list(found)
    assert all(not np.allclose(found[a], found[b]) for i, a in enumerate(names) for b in names[:i])
    assert pl.Series(found["mean"].sum(axis=1)).is_between(0.999, 1.001).all()
