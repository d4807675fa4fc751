"""BEHRT: every embedding, objective and adapter does something, and the arm keeps its promises."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from accelerate import Accelerator

from epicrisis.cohort import Cohort
from epicrisis.commands.arms import make_arm
from epicrisis.settings import InputError
from epicrisis.structured.age_visit_lessons import N_SPECIALS, MaskedLesson, NextVisitLesson, RecordLesson
from epicrisis.structured.age_visit_model import AgeVisitBody, BodyShape, Classifier, CodeTable, RecordHead
from epicrisis.structured.age_visit_pretraining import MaskedCodes, NextVisitCodes, next_visit_metrics
from epicrisis.structured.age_visit_records import CLS, MASK, UNKNOWN_AGE, AgeVisitBatch, Records, age_ids, n_ages
from epicrisis.structured.behrt import SIZES, behrt_shape, pretrain
from epicrisis.structured.behrt_lora import add_lora, merged_state
from epicrisis.structured.sequences import Sequences
from epicrisis.training.class_weights import ClassWeights
from epicrisis.training.outcome import ClassOutcome
from tests.structured.behrt_cohort import NOW, Log, lookups, open_cohort, settings, write_cohort

N_CODES = N_SPECIALS + 12
THREE = ClassOutcome("multiclass", ("a", "b", "c"), ClassWeights.even(3))
SHAPE = BodyShape(8, 16, 1, 2, 32, 12, "years", 0.0)


def sequences(*rows: list[tuple[int, float, int]]) -> Sequences:
    """Of rows of (token, age in years, visit); a token at age 0 has no date. Each token is an event of its own."""
    flat = [token for row in rows for token in row]
    events = [number - sum(age == 0 for _, age, _ in row) + 1 for row in rows for number in range(len(row))]
    keys = pl.DataFrame({"subject_id": range(len(rows)), "prediction_time": [NOW] * len(rows)})
    return Sequences(
        keys,
        np.array([token for token, *_ in flat], dtype=np.int32),
        np.array([age * 365.25 for _, age, _ in flat], dtype=np.float32),
        np.array([visit for *_, visit in flat], dtype=np.int32),
        np.array(events, dtype=np.int32),
        np.cumsum([0, *map(len, rows)]),
    )


def records(*rows: list[tuple[int, float, int]], max_length: int = 12) -> Records:
    return Records(sequences(*rows), np.zeros((len(rows), 2), dtype=np.int64), "years", max_length)


ROWS = records(
    [(7, 0, 0), (8, 40.5, 1), (9, 40.6, 1), (10, 41.2, 2), (11, 44.0, 3), (12, 44.0, 3)],
    [(13, 60.1, 1), (14, 61.0, 2)],
    [(15, 30.0, 1)],
)


def body(shape: BodyShape = SHAPE) -> AgeVisitBody:
    torch.manual_seed(0)
    return AgeVisitBody(shape, CodeTable(N_CODES, shape.embedding))


@pytest.mark.parametrize(
    ("unit", "days", "expected"),
    [
        ("years", [0, 1, 365, 366, 365.25 * 119.9, 365.25 * 200], [0, 1, 1, 2, 120, 121]),
        ("months", [0, 1, 30, 31, 365.25, 365.25 * 200], [0, 1, 1, 2, 13, 1441]),
    ],
)
def test_ages_are_rounded_down_and_unknown_ones_have_an_id_of_their_own(unit, days, expected) -> None:
    found = age_ids(np.array(days, dtype=np.float32), unit)
    assert found.tolist() == expected
    assert found.max() < n_ages(unit)


def test_a_batch_is_laid_as_it_is_written() -> None:
    batch = ROWS.batch([1, 0])
    assert batch.tokens.tolist() == [[CLS, 13, 14, 0, 0, 0, 0], [CLS, 7, 8, 9, 10, 11, 12]]
    assert batch.ages.tolist() == [[62, 61, 62, 0, 0, 0, 0], [45, UNKNOWN_AGE, 41, 41, 42, 45, 45]]
    assert batch.visits.tolist() == [[0, 1, 2, 0, 0, 0, 0], [0, 0, 1, 1, 2, 3, 3]]
    assert batch.lengths.tolist() == [3, 7]
    assert (batch.places, batch.useful_tokens) == (14, 10)


def test_the_front_and_the_latest_events_stay_and_visits_count_from_the_first_in_sight() -> None:
    short = replace(ROWS, max_length=5).batch([0])
    assert short.tokens.tolist() == [[CLS, 7, 10, 11, 12]]
    assert short.visits.tolist() == [[0, 0, 1, 2, 2]]


@pytest.mark.parametrize("part", ["tokens", "ages", "visits"])
def test_each_part_of_a_batch_changes_the_states(part: str) -> None:
    model, batch = body().eval(), ROWS.batch([0])
    other = getattr(batch, part).clone()
    other[0, 3] += 1
    moved = (model(replace(batch, **{part: other})) - model(batch)).abs().amax(dim=(0, 2))
    assert (moved > 1e-6).all(), "through attention, every place sees the change"


def test_visits_enter_by_their_place_and_by_their_side() -> None:
    model, batch = body().eval(), ROWS.batch([0])
    before = model(batch)
    with torch.no_grad():
        model.embeddings.sides.weight.zero_()
    without_sides = model(batch)
    assert not torch.allclose(before, without_sides)
    with torch.no_grad():
        model.embeddings.visits.weight.zero_()
    assert not torch.allclose(without_sides, model(batch))


def test_gradients_reach_every_table_and_layer() -> None:
    model = Classifier(body(), RecordHead(SHAPE, 2))
    torch.nn.functional.cross_entropy(model(ROWS.batch([0, 1])), torch.tensor([0, 1])).backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_pads_change_nothing() -> None:
    model = Classifier(body(), RecordHead(SHAPE, 2)).eval()
    together, alone = model(ROWS.batch([0, 1, 2])), torch.cat([model(ROWS.batch([row])) for row in range(3)])
    assert torch.allclose(together, alone, atol=1e-6)
    batch = ROWS.batch([0, 1])
    odd = replace(
        batch, tokens=torch.where(batch.present, batch.tokens, 9), ages=torch.where(batch.present, batch.ages, 3)
    )
    assert torch.allclose(model(odd), model(batch), atol=1e-6)


def fit_once(module: torch.nn.Module, lesson, steps: int, rate: float = 1e-2) -> list[float]:
    """The mean loss at each of so many steps on all items at once."""
    items = list(range(lesson.n_items))
    optimizer = torch.optim.AdamW([w for w in module.parameters() if w.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = lesson.loss_sum(module, lesson.collate(items), items) / lesson.units(items)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_one_batch_is_learnt_by_heart() -> None:
    lesson = RecordLesson(ROWS, THREE, np.array([0, 1, 2]))
    assert fit_once(Classifier(body(), RecordHead(SHAPE, 3)), lesson, 60)[-1] < 0.05


def masked(share: float = 0.4, **more) -> MaskedLesson:
    return MaskedLesson(ROWS, N_CODES, share, **more)


def test_masks_differ_between_epochs_and_repeat_with_the_seed() -> None:
    lesson, seen = masked(), []
    for epoch, seed in [(0, 1), (1, 1), (0, 2), (0, 1)]:
        lesson.start_epoch(epoch, seed)
        seen.append(lesson.collate([0, 1, 2]))
    places = [batch.hidden.tolist() for batch in seen]
    assert places[3] == places[0]
    assert torch.equal(seen[3].tokens, seen[0].tokens)
    assert places[1] != places[0] != places[2]
    still = masked(dynamic=False)
    still.start_epoch(0, 1)
    first = still.collate([0]).hidden
    still.start_epoch(1, 1)
    assert torch.equal(still.collate([0]).hidden, first)


def test_hidden_codes_are_codes_and_the_answers_are_what_stood_there() -> None:
    lesson = masked()
    for epoch in range(20):
        lesson.start_epoch(epoch, 0)
        batch, whole = lesson.collate([0, 1, 2]), ROWS.batch([0, 1, 2])
        answers = lesson.answers(batch, [0, 1, 2])
        assert (answers >= N_SPECIALS).all()
        assert torch.equal(answers, whole.tokens.flatten()[batch.hidden])
        untouched = torch.ones(batch.places, dtype=torch.bool)
        untouched[batch.hidden] = False
        assert torch.equal(batch.tokens.flatten()[untouched], whole.tokens.flatten()[untouched])
        assert len(answers) == lesson.units([0, 1, 2]) == 2 + 1 + 1


def test_most_hidden_codes_are_masked_and_some_are_left_or_changed() -> None:
    lesson, fates = masked(), []
    for epoch in range(300):
        lesson.start_epoch(epoch, 5)
        batch = lesson.collate([0, 1, 2])
        put, true = batch.tokens.flatten()[batch.hidden], lesson.answers(batch, [0, 1, 2])
        fates.append(torch.stack([put == MASK, put == true]).float())
    is_mask, is_same = torch.cat(fates, dim=1).mean(dim=1).tolist()
    assert is_mask == pytest.approx(0.8, abs=0.04)
    assert is_same == pytest.approx(0.1 + 0.1 / 12, abs=0.04)


def test_masked_codes_are_learnt() -> None:
    losses = fit_once(MaskedCodes(body()), masked(), 60)
    assert losses[-1] < 0.2 < 1.5 < losses[0]


def test_the_next_visit_is_told_from_what_came_before_it_alone() -> None:
    lesson = NextVisitLesson(ROWS, N_CODES)
    assert lesson.n_items == 2
    seen = {}
    for epoch in range(30):
        lesson.start_epoch(epoch, 0)
        batch, answers = lesson.collate([0]), lesson.answers([0])
        seen[tuple(batch.tokens[0].tolist())] = sorted(torch.nonzero(answers[0]).flatten().tolist())
    assert seen == {(CLS, 7, 8, 9): [10], (CLS, 7, 8, 9, 10): [11, 12]}
    first, again = NextVisitLesson(ROWS, N_CODES), NextVisitLesson(ROWS, N_CODES)
    for other in (first, again):
        other.start_epoch(4, 9)
    assert first.cut(0) == again.cut(0)


def test_codes_outside_of_visits_after_the_cut_are_not_seen() -> None:
    lesson = NextVisitLesson(records([(8, 40, 1), (9, 41, 0), (10, 42, 2), (11, 43, 0)]), N_CODES)
    assert lesson.collate([0]).tokens.tolist() == [[CLS, 8, 9]]


def test_the_next_visit_is_learnt_and_ranked() -> None:
    lesson = NextVisitLesson(ROWS, N_CODES)
    module = NextVisitCodes(body())
    accelerator = Accelerator(cpu=True)
    before = next_visit_metrics(module.eval(), lesson, 8, accelerator)
    losses = fit_once(module.train(), lesson, 60)
    after = next_visit_metrics(module.eval(), lesson, 8, accelerator)
    assert losses[-1] < 0.3 * losses[0]
    assert after["average_precision"] > 0.99 > before["average_precision"]


@pytest.mark.parametrize("feed_forward", [False, True])
def test_adapters_do_something_and_nothing_else_moves(feed_forward: bool, tmp_path: Path) -> None:
    keys = settings("behrt", tmp_path, **{"behrt.lora_rank": 2, "behrt.lora_feedforward": feed_forward}).behrt
    model = Classifier(body(), RecordHead(SHAPE, 3))
    batch = ROWS.batch([0, 1, 2])
    before = model.eval()(batch)
    add_lora(model.body.layers, keys)
    assert torch.allclose(model(batch), before, atol=1e-6)
    adapters = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(adapters) == 2 * (6 if feed_forward else 4)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    lesson = RecordLesson(ROWS, THREE, np.array([0, 1, 2]))
    fit_once(model, lesson, 4)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, start[name])}
    layers = {name for name in start if name.startswith("body.layers.")}
    assert moved & layers == adapters
    assert {name for name in start if name.startswith("head.")} <= moved
    trained = model(batch)
    plain = Classifier(AgeVisitBody(SHAPE, CodeTable(N_CODES, 8)), model.head).eval()
    plain.body.load_state_dict(merged_state(model.body))
    assert torch.allclose(plain(batch), trained, atol=1e-5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B" in name:
                weight.zero_()
    assert not torch.allclose(model(batch), trained, atol=1e-4)


def test_sizes_are_those_of_the_guide(tmp_path: Path) -> None:
    counts = []
    for name in SIZES:
        keys = settings("behrt", tmp_path).behrt.model_copy(
            update=dict.fromkeys(("embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads"))
            | {"intermediate_size": None, "max_length": None, "size": name}
        )
        shape = behrt_shape(keys)
        body = AgeVisitBody(shape, CodeTable(1000, shape.embedding))
        counts.append(sum(weight.numel() for weight in body.parameters()))
    assert [round(count / 1e6, 1) for count in counts] == [0.6, 2.5, 13.4]


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hidden_size"):
        settings("behrt", tmp_path, **{"behrt.num_attention_heads": 3})


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    return open_cohort(write_cohort(tmp_path_factory.mktemp("cohort") / "meds"))


def learnt_on(cohort: Cohort) -> pl.DataFrame:
    return cohort.rows.filter(pl.col("split") != "held_out")


def fit(cohort: Cohort, place: Path, **changes):
    chosen = settings("behrt", place, **changes)
    rows, run = learnt_on(cohort), Log(place)
    place.mkdir(parents=True, exist_ok=True)
    return make_arm(chosen, lookups()).fit(rows, cohort.history(rows), run), chosen, run


def test_the_arm_learns_saves_and_loads(cohort: Cohort, tmp_path: Path) -> None:
    fitted, chosen, _ = fit(cohort, tmp_path / "run", **{"training.epochs": 30})
    held_out = cohort.select("held_out")
    scores = fitted.predict(held_out, cohort.history(held_out))
    assert (scores.argmax(axis=1) == held_out["label"].to_numpy()).mean() == 1
    assert fitted.predict(held_out[::-1], cohort.history(held_out)) == pytest.approx(scores[::-1])
    fitted.save(tmp_path / "run")
    assert not [path for path in (tmp_path / "run" / "model").rglob("*") if path.suffix in (".pt", ".bin", ".pkl")]
    loaded = make_arm(chosen, lookups()).load(tmp_path / "run")
    assert np.array_equal(loaded.predict(held_out, cohort.history(held_out)), scores)
    assert loaded.classes == ("false", "true")
    with pytest.raises(InputError, match="use the keys of that run"):
        make_arm(settings("behrt", tmp_path, **{"behrt.hidden_size": 32}), lookups()).load(tmp_path / "run")


@pytest.mark.parametrize("labels", ["multiclass", "multilabel"])
def test_other_kinds_of_task(labels: str, tmp_path: Path) -> None:
    words = [f"c{subject % 3}" for subject in range(40)]
    lists = [["a"] if subject % 4 == 1 else ["a", "b"] if subject % 2 else ["b"] for subject in range(40)]
    given = words if labels == "multiclass" else lists
    root = write_cohort(tmp_path / "meds", given)
    cohort = open_cohort(root)
    fitted, _, _ = fit(cohort, tmp_path / "run", **{"training.epochs": 1})
    scores = fitted.predict(cohort.rows, cohort.history(cohort.rows))
    assert scores.shape == (40, len(fitted.classes))
    if labels == "multiclass":
        assert scores.sum(axis=1) == pytest.approx(np.ones(40))


def test_events_after_the_prediction_time_change_nothing(cohort: Cohort, tmp_path: Path) -> None:
    fitted, _, _ = fit(cohort, tmp_path / "run", **{"training.epochs": 1})
    later = [(s, NOW + timedelta(days=1 + s), code) for s in range(40) for code in ("ICD10CM//I10", "GENDER//F")]
    other = open_cohort(write_cohort(tmp_path / "other", extra=later))
    before, after = (fitted.predict(c.rows, c.history(c.rows)) for c in (cohort, other))
    assert np.array_equal(before, after)
    again, _, _ = fit(other, tmp_path / "again", **{"training.epochs": 1})
    assert np.array_equal(again.predict(cohort.rows, cohort.history(cohort.rows)), before)


@pytest.mark.parametrize("stage", ["classify", "pretrain"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(cohort: Cohort, tmp_path: Path, stage: str) -> None:
    changes = {"behrt.dropout": 0.1, "training.epochs": 2, "training.save_steps": 2, "training.eval_steps": 2}
    changes |= {"training.save_total_limit": 9, "training.keep_best": False}
    rows, weights = learnt_on(cohort), []
    for name, more in [("whole", {}), ("half", {"training.max_steps": 2}), ("half", {"training.resume": True})]:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        extra = {"training.lr_scheduler_type": "constant", "training.warmup_steps": 0}
        chosen = settings("behrt", place, stage, **changes, **extra, **more)
        if stage == "pretrain":
            pretrain(chosen, lookups(), rows, cohort.history(rows), Log(place))
        else:
            make_arm(chosen, lookups()).fit(rows, cohort.history(rows), Log(place)).save(place)
        weights.append((place / "model" / "model.safetensors").read_bytes())
    assert weights[2] == weights[0] != weights[1]


@pytest.mark.parametrize("objective", ["mlm", "next_visit"])
def test_pretraining_lowers_the_loss_and_is_begun_from(cohort: Cohort, tmp_path: Path, objective: str) -> None:
    rows, place = learnt_on(cohort), tmp_path / "pretrain"
    place.mkdir()
    chosen = settings("behrt", place, "pretrain", **{"behrt.objective": objective, "behrt.lora_rank": 2})
    metrics = pretrain(chosen, lookups(), rows, cohort.history(rows), Log(place))
    assert metrics["loss"] < 0.9 * metrics["loss_before"]
    keep = {"behrt.pretrained": place, "behrt.freeze_embeddings": True, "behrt.lora_rank": 2, "training.epochs": 1}
    fitted, _, _ = fit(cohort, tmp_path / "fine", **keep)
    from safetensors.torch import load_file

    before = load_file(place / "model" / "model.safetensors")
    for name in ("embeddings.codes.weight", "embeddings.ages.weight"):
        assert torch.equal(fitted.module.state_dict()[f"body.{name}"], before[f"body.{name}"])
    query = "layers.encoder.layer.0.attention.self.query"
    assert torch.equal(fitted.module.state_dict()[f"body.{query}.base_layer.weight"], before[f"body.{query}.weight"])
    scratch, _, _ = fit(cohort, tmp_path / "scratch", **{"training.epochs": 1, "behrt.lora_rank": 2})
    assert not np.allclose(*(f.predict(rows, cohort.history(rows)) for f in (fitted, scratch)))


@pytest.mark.parametrize("freeze", [False, True])
def test_given_code_vectors_are_where_training_begins_and_stay_where_frozen(
    cohort: Cohort, tmp_path: Path, freeze: bool
) -> None:
    vector = [9.0, -9, 9, -9, 9, -9, 9, -9]
    path = tmp_path / "vectors.csv"
    path.write_text("code," + ",".join("abcdefgh") + f"\nICD10CM//I10,{','.join(map(str, vector))}\n")
    changes = {"behrt.embedding_path": path, "behrt.freeze_embeddings": freeze, "training.epochs": 1}
    fitted, _, run = fit(cohort, tmp_path / "run", **changes, **{"training.weight_decay": 0.1})
    place = fitted.reader.tokens.index("ICD10CM//I10")
    row = fitted.module.body.embeddings.codes.table()[place].tolist()
    assert (row == vector) is freeze
    assert row == pytest.approx(vector, abs=0.5)
    table = pl.read_csv(tmp_path / "run" / "code_vectors.csv")
    assert table.select(pl.sum_horizontal("exact", "parent", "random").sum()).item() == len(fitted.reader.tokens)
    assert [line for line in run.lines if line.get("event") == "code_vectors"]


def test_moving_batches_keeps_what_they_hold() -> None:
    batch = masked().collate([0, 1])
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, AgeVisitBatch)
    assert torch.equal(moved.hidden, batch.hidden)
