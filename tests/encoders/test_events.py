"""Models of events: what they read, that all of it counts and padding does not, and what pretraining teaches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from epicrisis.corpus.run_narratives import run_narrator
from epicrisis.encoders.classifier import RecordClassifier
from epicrisis.encoders.event_lessons import EventRows, Events, EventsToFind, finding_metrics
from epicrisis.encoders.event_model import EventBatch, EventBody, EventPretraining
from epicrisis.encoders.event_table import EventTable, NumberScales, read_events
from epicrisis.encoders.events import pretrain
from epicrisis.settings import InputError
from epicrisis.training.class_weights import ClassWeights
from epicrisis.training.outcome import ClassOutcome
from tests.encoders.conftest import Log, fitted

KEYS = pl.DataFrame({"subject_id": [1, 2, 3]})
NAN = float("nan")
TABLE = EventTable(
    KEYS,
    ("woman", "Haemoglobin g/dL", "Weight loss", "Asthma"),
    np.array([0, 1, 2, 3, 1, 3, 2], dtype=np.int32),
    np.array([NAN, 12.5, NAN, NAN, 9.0, NAN, NAN], dtype=np.float32),
    np.array([NAN, 700.0, 30.0, 0.1, 4000.0, 50.0, 3.0], dtype=np.float32),
    np.array([0, 4, 7, 7]),
)
VECTORS = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
SCALES = NumberScales({"Haemoglobin g/dL": (12.0, 2.0)})
DIMENSIONS = ("encoder", "decoder")


def events() -> Events:
    return Events(TABLE, VECTORS, SCALES.apply(TABLE))


def body(settings, model: str = "encoder", **changes) -> EventBody:
    encoding = settings("event_encoder", **{"encoder.event_model": model, **changes}).encoder
    return EventBody(encoding, torch.from_numpy(VECTORS.mean(axis=0)), float(VECTORS.std()), 0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("model", DIMENSIONS)
def test_gradients_reach_every_tensor_and_one_batch_is_overfitted(model, pooling, settings) -> None:
    module = RecordClassifier(body(settings, model, **{"encoder.pooling": pooling}), 16, 2, 0.0, 0).train()
    outcome = ClassOutcome("binary", ("false", "true"), ClassWeights.even(2))
    rows = EventRows(events(), 24, outcome, np.array([0, 1, 1]))
    items, optimizer = [0, 1, 2], torch.optim.AdamW(module.parameters(), lr=2e-2)
    rows.loss_sum(module, rows.collate(items), items).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    for _ in range(200):
        optimizer.zero_grad()
        loss = rows.loss_sum(module, rows.collate(items), items)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.15


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("model", DIMENSIONS)
def test_padding_changes_nothing_even_for_a_row_without_events(model, pooling, settings) -> None:
    module, every = body(settings, model, **{"encoder.pooling": pooling}).eval(), events()
    with torch.no_grad():
        together = module(every.batch([0, 1, 2]))
        alone = torch.cat([module(every.batch([item])) for item in (0, 1, 2)])
    assert torch.isfinite(together).all()
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("model", DIMENSIONS)
def test_everything_that_is_told_counts(model, settings) -> None:
    module, batch = body(settings, model).eval(), events().batch([0])
    changed = {
        "what happened": replace(batch, phrase=batch.phrase[:, [0, 3, 2, 1]]),
        "a number": replace(batch, number=batch.number + 1),
        "whether there is a number": replace(batch, measured=~batch.measured),
        "when": replace(batch, days=batch.days * 2),
        "whether there is a date": replace(batch, dated=~batch.dated),
        "which events there are": replace(batch, mask=torch.tensor([[True, True, True, False]])),
    }
    with torch.no_grad():
        found = module(batch)
        for what, other in changed.items():
            assert not torch.allclose(module(other), found, atol=1e-4), what
        for option, what in (("encoder.numbers", "a number"), ("encoder.times", "when")):
            without = body(settings, model, **{option: False}).eval()
            assert torch.equal(without(changed[what]), without(batch)), option
            assert not torch.allclose(without(batch), found, atol=1e-4)


def test_a_decoders_event_sees_only_those_before_it_and_an_encoders_all(settings) -> None:
    batch = events().batch([0])
    later = replace(batch, phrase=torch.tensor([[0, 1, 2, 0]]))
    for model, sees_later in (("decoder", False), ("encoder", True)):
        module = body(settings, model).eval()
        with torch.no_grad():
            before, after = (module.states(module.content(b), b.mask)[0, :3] for b in (batch, later))
        assert torch.allclose(before, after, atol=1e-6) != sees_later


def test_a_batch_by_hand() -> None:
    batch = events().batch([0, 2], [np.array([False, True, False, False]), np.zeros(0, dtype=bool)])
    assert batch.phrase.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert batch.mask.tolist() == [[True] * 4, [False] * 4]
    assert batch.measured.tolist()[0] == [False, True, False, False]
    assert batch.number[0, 1] == pytest.approx(np.log(1.25))  # (12.5 - 12) / 2 = 0.25
    assert batch.dated.tolist()[0] == [False, True, True, True]
    assert batch.hidden.tolist()[0] == [False, True, False, False]
    assert (batch.places, batch.useful_tokens) == (8, 4)


@pytest.fixture
def narrator(settings, lookups, cohort, tmp_path):
    return run_narrator(settings(), lookups, cohort.rows, cohort.history(cohort.rows), tmp_path / "told")


def test_the_latest_events_are_read_with_birth_and_sex_before_them(narrator, cohort) -> None:
    history = cohort.history(cohort.rows)
    whole, latest = read_events(history, narrator, 10_000), read_events(history, narrator, 6)
    seen = history.events().collect().group_by("subject_id").len().sort("subject_id")["len"].to_numpy()
    order = np.argsort(whole.keys["subject_id"].to_numpy())
    assert (whole.n_events[order] == seen).all()
    assert (latest.n_events == np.minimum(whole.n_events, 6)).all()
    assert len(whole.texts) > 20
    assert list(whole.texts) == sorted(set(whole.texts)), "their order is that of no engine, and the same in every run"
    for row in range(len(latest.keys)):
        all_days, days = (t.days[t.bounds[row] : t.bounds[row + 1]] for t in (whole, latest))
        texts = [latest.texts[p] for p in latest.phrase[latest.bounds[row] : latest.bounds[row + 1]]]
        first = int(np.isnan(days).sum()) + 1  # undated facts and birth, which is some 20 years ago at least
        assert np.nanmax(days[:first]) > 20 * 365
        assert np.array_equal(days[first + 1 :], all_days[-(6 - first - 1) :]), texts
        assert (np.diff(days[first:]) <= 0).all()
        assert (days[~np.isnan(days)] >= 0).all()


def test_numbers_are_told_apart_from_their_phrases_and_scaled_by_train() -> None:
    few = replace(TABLE, number=np.arange(7, dtype=np.float32), phrase=np.ones(7, dtype=np.int32))
    assert NumberScales.fit(few).of == {}, "7 numbers are too few"
    phrase, number = np.repeat([1, 2], [12, 12]).astype(np.int32), np.r_[np.arange(12), np.full(12, 5)].astype("f4")
    many = replace(TABLE, phrase=phrase, number=number)
    scales = NumberScales.fit(many)
    assert scales.of == {"Haemoglobin g/dL": (5.5, 2.75), "Weight loss": (5.0, 5.0)}
    assert np.isnan(scales.apply(TABLE)[[0, 2, 3]]).all()
    assert scales.apply(TABLE)[4] == pytest.approx(np.log1p(3.5 / 2.75))


@pytest.mark.parametrize("model", DIMENSIONS)
def test_pretraining_reaches_what_it_trains_and_finds_what_is_hidden(model, settings) -> None:
    module = EventPretraining(body(settings, model), 0.1, 0).train()
    share = 0.3 if model == "encoder" else None
    lesson = EventsToFind(events(), share)
    assert lesson.n_items == 2, "a row without events teaches nothing"
    assert lesson.units([0, 1]) == (2 if model == "encoder" else 5)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for step in range(80):
        loss = lesson.loss_sum(module, lesson.collate([0, 1]), [0, 1])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            named = {name: p for name, p in module.named_parameters() if p.requires_grad}
            assert [name for name, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
        optimizer.step()
    assert finding_metrics(module.eval(), lesson, 2, _one_process())["accuracy"] == 1


def test_what_is_hidden_differs_between_epochs_and_repeats_with_the_seed() -> None:
    lesson = EventsToFind(events(), 0.3)

    def hidden(epoch: int, seed: int) -> list:
        lesson.start_epoch(epoch, seed)
        return lesson.collate([0, 1]).hidden.tolist()

    assert hidden(0, 1) == hidden(0, 1)
    assert len({str(hidden(epoch, 0)) for epoch in range(8)}) > 1


def test_a_hidden_event_is_told_by_its_time_alone(settings) -> None:
    module, batch = EventPretraining(body(settings), 0.1, 0).eval(), events().batch([0])
    hide = replace(batch, hidden=torch.tensor([[False, True, False, False]]))
    other = replace(hide, phrase=torch.tensor([[0, 3, 2, 3]]), number=hide.number * 0, measured=hide.measured & False)
    with torch.no_grad():
        assert torch.equal(module.scores(hide)[0], module.scores(other)[0])
        assert module.scores(hide)[1].tolist() != module.scores(other)[1].tolist()


@pytest.mark.parametrize("model", DIMENSIONS)
def test_pretrained_weights_are_taken_over_and_a_head_alone_moves_nothing_else(
    model, settings, lookups, cohort, tmp_path
) -> None:
    shape = {"encoder.event_model": model, "encoder.pooling": "mean"}
    pretraining = settings("event_encoder", stage="pretrain", **shape)
    rows = cohort.rows.filter(pl.col("split") != "held_out")
    place = tmp_path / "pretrained"
    metrics = pretrain(pretraining, lookups, rows, cohort.history(rows), Log(place))
    assert metrics["loss"] < metrics["loss_before"]
    assert {"accuracy", "perplexity", "perplexity_before"} <= metrics.keys()
    chosen = settings("event_encoder", **shape, **{"encoder.pretrained": str(place), "encoder.finetune": "head"})
    model_of = fitted(chosen, lookups, cohort, Log(tmp_path / "run"))
    kept = _weights(place)
    now = model_of.module.body.state_dict()
    assert kept.keys() == now.keys()
    assert all(torch.equal(kept[name], now[name]) for name in kept)
    with pytest.raises(InputError, match=r"encoder\.layers: is not what encoder\.pretrained was made with"):
        fitted(
            settings("event_encoder", **shape, **{"encoder.pretrained": str(place), "encoder.layers": 2}),
            *(lookups, cohort, Log(tmp_path / "other")),
        )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_classifier_gives_its_body_to_another_and_keeps_its_head(
    pooling, settings, lookups, cohort, tmp_path
) -> None:
    first = fitted(settings("event_encoder", **{"encoder.pooling": "cls"}), lookups, cohort, Log(tmp_path / "first"))
    first.save(tmp_path / "first")
    body = {name: tensor.clone() for name, tensor in first.module.body.state_dict().items()}
    begun = {"encoder.pretrained": str(tmp_path / "first"), "training.learning_rate": 1e-30}
    chosen = settings("event_encoder", **begun, **{"encoder.pooling": pooling})
    second = fitted(chosen, lookups, cohort, Log(tmp_path / "second")).module
    now = second.body.state_dict()
    assert body.keys() - now.keys() == ({"summary"} if pooling == "mean" else set())
    assert all(torch.equal(body[name], now[name]) for name in now)
    assert not torch.equal(second.head.weight, first.module.head.weight)


def test_gradients_of_phrases_that_come_often_are_the_same_each_time(settings) -> None:
    """Added up in the order in which threads happen to end, they are not."""
    generator = torch.Generator().manual_seed(0)
    n, length, phrases, width = 64, 256, 50, 64
    reader = EventBody(settings("event_encoder", **{"encoder.width": width}).encoder, torch.zeros(width), 1.0, 0)
    batch = EventBatch(
        vectors=torch.randn(phrases, width, generator=generator),
        phrase=torch.randint(phrases, (n, length), generator=generator),
        number=torch.zeros(n, length),
        measured=torch.zeros(n, length, dtype=torch.bool),
        days=torch.zeros(n, length),
        dated=torch.ones(n, length, dtype=torch.bool),
        mask=torch.ones(n, length, dtype=torch.bool),
        hidden=torch.zeros(n, length, dtype=torch.bool),
    )
    wanted = torch.randn(n, length, width, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = [torch.autograd.grad((reader.content(batch) * wanted).sum(), reader.read.weight)[0] for _ in range(10)]
    finally:
        torch.set_num_threads(threads)
    assert found[0].abs().sum() > 0
    assert all(torch.equal(one, found[0]) for one in found[1:])


def test_each_phrase_is_embedded_once_and_a_later_run_embeds_none(settings, lookups, cohort, tmp_path) -> None:
    from epicrisis.encoders.event_phrases import PhraseVectors

    run = Log(tmp_path)
    model = fitted(settings("event_encoder"), lookups, cohort, run)
    file = next((tmp_path / "embeddings").glob("phrases-*.safetensors"))
    written = file.stat().st_mtime_ns
    phrases: PhraseVectors = model.inputs.phrases
    texts = model.inputs.read(cohort.history(cohort.select("train"))).texts
    assert np.allclose(phrases.vectors(texts, tmp_path), phrases.vectors(texts, tmp_path / "new"), atol=1e-5)
    assert file.stat().st_mtime_ns == written


def _weights(place: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(place / "model" / "events.safetensors")


def _one_process():
    from accelerate import Accelerator

    return Accelerator(cpu=True)
