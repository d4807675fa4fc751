"""ExMed-BERT: kinds, sex and region enter, a prolonged stay is learnt, and the arm keeps its promises."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import roc_auc_score

from epicrisis.cohort import Cohort
from epicrisis.commands.arms import make_arm
from epicrisis.settings import InputError
from epicrisis.structured.age_visit_lessons import N_SPECIALS, RecordLesson
from epicrisis.structured.age_visit_model import AgeVisitBody, BodyShape, Classifier, CodeTable
from epicrisis.structured.age_visit_records import Records
from epicrisis.structured.exmed import PRESETS, exmed_shape, pretrain
from epicrisis.structured.exmed_heads import make_head
from epicrisis.structured.exmed_people import ENTITIES, KnownPeople, entities_of
from epicrisis.structured.exmed_plos import (
    MaskedCodesAndStay,
    StayLesson,
    longest_stays,
    refuse_constant,
    stay_metrics,
)
from epicrisis.structured.sequences import Sequences
from epicrisis.structured.vocabulary import SPECIALS
from epicrisis.training.class_weights import ClassWeights
from epicrisis.training.outcome import ClassOutcome
from tests.structured.behrt_cohort import NOW, Log, lookups, open_cohort, settings, write_cohort

N_CODES = N_SPECIALS + 6
SHAPE = BodyShape(16, 16, 1, 2, 32, 12, "years", 0.0, n_entities=len(ENTITIES), n_sexes=3, n_regions=3)
KINDS = np.array([ENTITIES.index("special")] * N_SPECIALS + [2, 2, 3, 3, 4, 5])


def sequences(*rows: list[tuple[int, float, int]]) -> Sequences:
    """Of rows of (token, age in days, visit); 0 days are unknown."""
    flat = [token for row in rows for token in row]
    return Sequences(
        pl.DataFrame({"subject_id": range(len(rows)), "prediction_time": [NOW] * len(rows)}),
        np.array([token for token, *_ in flat], dtype=np.int32),
        np.array([days for _, days, _ in flat], dtype=np.float32),
        np.array([visit for *_, visit in flat], dtype=np.int32),
        np.array([number for row in rows for number in range(1, len(row) + 1)], dtype=np.int32),
        np.cumsum([0, *map(len, rows)]),
    )


SEQUENCES = sequences(
    [(7, 20000, 1), (8, 20008, 1), (9, 20100, 2)],
    [(9, 20000, 1), (10, 20007, 1), (11, 20014, 2)],
    [(7, 15000, 1), (11, 15001, 2), (7, 15020, 2)],
    [(8, 15000, 1), (12, 15200, 2)],
)
PEOPLE = np.array([[1, 1], [2, 2], [0, 0], [1, 2]])
RECORDS = Records(SEQUENCES, PEOPLE, "years", 12)


def body(shape: BodyShape = SHAPE) -> AgeVisitBody:
    torch.manual_seed(0)
    return AgeVisitBody(shape, CodeTable(N_CODES, shape.embedding), KINDS)


def test_sex_region_and_kind_of_code_change_the_states() -> None:
    model, batch = body().eval(), RECORDS.batch([0])
    before = model(batch)
    for column in (0, 1):
        people = batch.people.clone()
        for person in (0, 2):
            people[0, column] = person
            moved = model(type(batch)(**{**vars(batch), "people": people}))
            assert not torch.allclose(moved, before, atol=1e-6), "unknown is an id of its own"
    model.embeddings.entity_of[7] = 5
    assert not torch.allclose(model(batch), before, atol=1e-6)


@pytest.mark.parametrize("head", ["ffn", "gru", "lstm"])
def test_each_head_learns_by_heart_reads_no_pads_and_sends_gradients_everywhere(head) -> None:
    model = Classifier(body(), make_head(head, SHAPE, 4))
    outcome = ClassOutcome("multiclass", tuple("abcd"), ClassWeights.even(4))
    lesson = RecordLesson(RECORDS, outcome, np.arange(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = lesson.loss_sum(model, lesson.collate(range(4)), range(4)) / 4
        loss.backward()
        losses.append(float(loss.detach()))
        dead = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
        assert not dead
        optimizer.step()
    assert losses[-1] < 0.1
    model.eval()
    alone = torch.cat([model(RECORDS.batch([row])) for row in range(4)])
    assert torch.allclose(model(RECORDS.batch(range(4))), alone, atol=1e-5)


def test_recurrent_heads_read_more_than_the_first_state() -> None:
    torch.manual_seed(0)
    states, lengths = torch.randn(1, 4, 16), torch.tensor([3])
    other, padded = states.clone(), states.clone()
    other[0, 2] += 1
    padded[0, 3] += 1
    for name, changed in [("ffn", False), ("gru", True), ("lstm", True)]:
        head = make_head(name, SHAPE, 2).eval()
        assert torch.allclose(head(states, lengths), head(other, lengths)) is not changed
        assert torch.equal(head(states, lengths), head(padded, lengths))


def visits_of(root: Path, *records: list[tuple[str, str]]) -> Cohort:
    """A cohort of rows at NOW with these events (day, code), each subject with one long ago and one at the end."""
    told = [
        (subject, datetime.fromisoformat(day), code)
        for subject, events in enumerate(records)
        for day, code in [("1950-01-01", "MEDS_BIRTH"), *events, ("2021-01-01", "END")]
    ]
    (root / "data" / "train").mkdir(parents=True)
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
    pl.DataFrame(told, schema=schema, orient="row").write_parquet(root / "data" / "train" / "0.parquet")
    (root / "labels").mkdir()
    n = len(records)
    labels = {"subject_id": range(n), "prediction_time": [NOW] * n, "boolean_value": [k % 2 == 0 for k in range(n)]}
    pl.DataFrame(labels).write_parquet(root / "labels" / "0.parquet")
    return open_cohort(root)


IN, OUT = "HOSPITAL_ADMISSION//EMERGENCY//HOME", "HOSPITAL_DISCHARGE//HOME"


def test_stays_are_measured_from_the_visits_that_are_seen(tmp_path: Path) -> None:
    cohort = visits_of(
        tmp_path,
        [("2019-01-01", IN), ("2019-01-11T12:00:00", OUT), ("2019-03-01", IN), ("2019-03-02", OUT)],
        [("2019-01-01", IN), ("2019-01-08", OUT), ("2019-01-20", "ICD10CM//I10")],
        [("2019-01-01", IN), ("2019-01-05", "A"), ("2019-01-10", "A"), ("2019-06-01", "A")],  # its end is not recorded
        [("2019-01-01", IN), ("2019-02-01", IN), ("2019-02-03", OUT), ("2019-12-01", OUT)],
        [("2019-01-01", "A"), ("2019-01-20", "A")],
        [("2019-12-30", IN), ("2020-01-20", OUT)],  # ends after the prediction time
    )
    stays = longest_stays(cohort.rows[::-1], cohort.history(cohort.rows), lookups())
    assert stays[::-1].tolist() == [10.5, 7, 9, 2, 0, 0]


def test_labels_that_are_all_alike_are_refused() -> None:
    refuse_constant(np.array([False, True]), 7)
    for labels in ([False, False], [True], []):
        with pytest.raises(InputError, match=r"exmed\.plos_days"):
            refuse_constant(np.array(labels, dtype=bool), 7)


def stays(weight: float) -> StayLesson:
    return StayLesson(RECORDS, N_CODES, 0.3, labels=np.array([True, False, True, False]), weight=weight)


def learn(weight: float, steps: int = 60) -> tuple[MaskedCodesAndStay, list[tuple[float, float]]]:
    """The module after so many steps, and both losses at each."""
    torch.manual_seed(0)
    module, lesson, losses = MaskedCodesAndStay(body()), stays(weight), []
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        batch = lesson.collate(range(4))
        (lesson.loss_sum(module, batch, range(4)) / lesson.units(range(4))).backward()
        losses.append(tuple(float(part.detach()) for part in lesson.losses(module, batch, range(4))))
        optimizer.step()
    return module, losses


def test_a_prolonged_stay_is_learnt_and_only_where_it_weighs_something() -> None:
    assert len(stays(1.0).stays(range(4)).unique()) == 2
    _, losses = learn(1.0)
    assert losses[-1][1] < 0.1 * losses[0][1]
    assert losses[-1][0] < 0.3 * losses[0][0]
    module, unlearnt = learn(0.0)
    assert unlearnt[-1][1] > 0.5 * unlearnt[0][1]
    assert not module.stay.score.weight.grad.any()
    metrics = stay_metrics(learn(1.0)[0].eval(), stays(1.0), 2, Accelerator(cpu=True))
    assert metrics["plos_auroc"] == 1
    assert metrics["loss"] == pytest.approx(np.log(metrics["perplexity"]) + metrics["plos_loss"], rel=1e-5)


def test_the_loss_does_not_depend_on_what_is_computed_at_once() -> None:
    module, lesson = MaskedCodesAndStay(body()).eval(), stays(2.0)
    whole = lesson.loss_sum(module, lesson.collate(range(4)), range(4))
    parts = sum(lesson.loss_sum(module, lesson.collate([item]), [item]) for item in range(4))
    assert whole.item() == pytest.approx(parts.item(), rel=1e-5)
    codes, of_stays = lesson.losses(module, lesson.collate(range(4)), range(4))
    mean = codes.item() / lesson.units(range(4)) + 2 * of_stays.item() / 4
    assert float(whole) / lesson.units(range(4)) == pytest.approx(mean, rel=1e-5)


def test_what_kind_of_code_each_token_is() -> None:
    tokens = {
        "ICD10CM//E11.9": "diagnosis",
        "DIAGNOSIS//ICD//10//E119": "diagnosis",
        "CONDITION//SNOMED//44054006": "diagnosis",
        "ICD10/I10": "diagnosis",
        "ATC//C09AA05": "drug",
        "RxNorm//197361": "drug",
        "MEDICATION//START//Aspirin//1": "drug",
        "CPT//99213": "procedure",
        "LOINC//718-7 || g/dL || 9.1 - 12.3": "measurement",
        "LAB//GLUCOSE": "measurement",
        "HOSPITAL_ADMISSION//EMERGENCY//HOME": "visit",
        "GENDER//F": "person",
        "MEDS_BIRTH": "person",
        "[MASK]": "special",
        "Q3": "other",
    }
    found = entities_of(tuple(tokens), lookups())
    assert dict(zip(tokens, [ENTITIES[place] for place in found], strict=True)) == tokens
    assert set(entities_of(SPECIALS, lookups()).tolist()) == {ENTITIES.index("special")}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    return open_cohort(write_cohort(tmp_path_factory.mktemp("cohort") / "meds"))


def test_sex_and_region_come_from_what_is_visible_and_are_unknown_otherwise(cohort: Cohort) -> None:
    people = KnownPeople.fit(cohort.rows, cohort.history(cohort.rows), lookups())
    assert people.regions == ("R01", "R02", "R03")
    rows = cohort.rows.head(5)[::-1]
    assert people.encode(rows, cohort.history(rows)).tolist() == [[1, 0], [0, 3], [2, 2], [1, 1], [0, 0]]
    fewer = KnownPeople(lookups(), ("R02",)).encode(rows, cohort.history(rows))
    assert fewer[:, 1].tolist() == [0, 0, 1, 0, 0], "a region that training has not seen is unknown"


def learnt_on(cohort: Cohort) -> pl.DataFrame:
    return cohort.rows.filter(pl.col("split") != "held_out")


def fit(cohort: Cohort, place: Path, **changes):
    chosen = settings("exmed_bert", place, **changes)
    rows = learnt_on(cohort)
    place.mkdir(parents=True, exist_ok=True)
    return make_arm(chosen, lookups()).fit(rows, cohort.history(rows), Log(place)), chosen


@pytest.mark.parametrize("head", ["ffn", "gru", "lstm"])
def test_the_arm_learns_saves_and_loads(cohort: Cohort, tmp_path: Path, head: str) -> None:
    fitted, chosen = fit(cohort, tmp_path / "run", **{"exmed.head": head, "training.epochs": 20})
    held_out = cohort.select("held_out")
    scores = fitted.predict(held_out, cohort.history(held_out))
    assert roc_auc_score(held_out["label"].to_numpy(), scores[:, 1]) > 0.9
    fitted.save(tmp_path / "run")
    loaded = make_arm(chosen, lookups()).load(tmp_path / "run")
    assert np.array_equal(loaded.predict(held_out, cohort.history(held_out)), scores)
    other = "gru" if head == "ffn" else "ffn"
    with pytest.raises(InputError, match="weights are not those of this model"):
        make_arm(settings("exmed_bert", tmp_path, **{"exmed.head": other}), lookups()).load(tmp_path / "run")


def test_sex_alone_can_be_learnt_from(tmp_path: Path) -> None:
    cohort = open_cohort(write_cohort(tmp_path / "meds", [subject % 3 == 1 for subject in range(40)]))
    changes = {"structured.tokenizer": {"min_subjects": 1, "demographics": []}, "training.epochs": 20}
    fitted, _ = fit(cohort, tmp_path / "run", **changes)
    rows = cohort.select("held_out")
    scores = fitted.predict(rows, cohort.history(rows))[:, 1]
    with torch.no_grad():
        fitted.module.body.embeddings.sexes.weight.zero_()
    without = fitted.predict(rows, cohort.history(rows))[:, 1]
    labels = rows["label"].to_numpy()
    assert roc_auc_score(labels, scores) > 0.9
    assert np.abs(scores - without).max() > 0.1


def test_events_after_the_prediction_time_change_nothing(cohort: Cohort, tmp_path: Path) -> None:
    fitted, _ = fit(cohort, tmp_path / "run", **{"training.epochs": 1})
    later = [
        (subject, NOW + timedelta(days=1 + subject), code)
        for subject in range(40)
        for code in ("ICD10CM//I10", "GENDER//F", "REGION//R02")
    ]
    other = open_cohort(write_cohort(tmp_path / "other", extra=later))
    before, after = (fitted.predict(c.rows, c.history(c.rows)) for c in (cohort, other))
    assert np.array_equal(before, after)


@pytest.mark.parametrize("stage", ["classify", "pretrain"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(cohort: Cohort, tmp_path: Path, stage: str) -> None:
    changes = {"exmed.dropout": 0.1, "exmed.head": "gru", "training.save_steps": 2, "training.eval_steps": 2}
    changes |= {"training.epochs": 2, "training.save_total_limit": 9, "training.keep_best": False}
    changes |= {"training.lr_scheduler_type": "constant", "training.warmup_steps": 0}
    rows, weights = learnt_on(cohort), []
    for name, more in [("whole", {}), ("half", {"training.max_steps": 2}), ("half", {"training.resume": True})]:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        chosen = settings("exmed_bert", place, stage, **changes, **more)
        if stage == "pretrain":
            pretrain(chosen, lookups(), rows, cohort.history(rows), Log(place))
        else:
            make_arm(chosen, lookups()).fit(rows, cohort.history(rows), Log(place)).save(place)
        weights.append((place / "model" / "model.safetensors").read_bytes())
    assert weights[2] == weights[0] != weights[1]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_pretraining_lowers_the_loss_and_is_begun_from(cohort: Cohort, tmp_path: Path, weight: float) -> None:
    rows, place = learnt_on(cohort), tmp_path / "pretrain"
    place.mkdir()
    chosen = settings("exmed_bert", place, "pretrain", **{"exmed.plos_weight": weight, "training.epochs": 16})
    metrics = pretrain(chosen, lookups(), rows, cohort.history(rows), Log(place))
    assert metrics["perplexity"] < 0.9 * metrics["perplexity_before"]
    if weight:
        assert metrics["plos_auroc"] > 0.7
    assert ("plos_loss" in metrics) is bool(weight)
    keep = {"exmed.pretrained": place, "exmed.freeze_embeddings": True, "training.epochs": 1}
    fitted, _ = fit(cohort, tmp_path / "fine", **keep)
    from safetensors.torch import load_file

    before = load_file(place / "model" / "model.safetensors")
    for name in ("codes", "ages", "visits", "sides", "entities", "sexes", "regions"):
        table = f"body.embeddings.{name}.weight"
        assert torch.equal(fitted.module.state_dict()[table], before[table])
    scratch, _ = fit(cohort, tmp_path / "scratch", **{"training.epochs": 1})
    assert not np.allclose(*(f.predict(rows, cohort.history(rows)) for f in (fitted, scratch)))


def test_no_long_stay_is_told_before_training(cohort: Cohort, tmp_path: Path) -> None:
    rows = learnt_on(cohort)
    chosen = settings("exmed_bert", tmp_path, "pretrain", **{"exmed.plos_days": 400})
    with pytest.raises(InputError, match="0 of the 24 train records"):
        pretrain(chosen, lookups(), rows, cohort.history(rows), Log(tmp_path))


def test_clinvec_vectors_begin_the_arms_embeddings(cohort: Cohort, tmp_path: Path) -> None:
    folder, vector = tmp_path / "ClinVec", np.arange(16, dtype=np.float32) / 4
    folder.mkdir()
    for name, key in [("icd10cm", "E78"), ("atc", "C09AA05")]:
        numbers = ",".join(map(str, vector + (name == "atc")))
        header = ",".join(f"V{place}" for place in range(16))
        (folder / f"ClinVec_{name}.csv").write_text(f"code,{header}\n{key},{numbers}\n")
    changes = {"clinvec.path": folder, "clinvec.freeze": True, "training.epochs": 1}
    fitted, chosen = fit(cohort, tmp_path / "run", **changes)
    table = fitted.module.body.embeddings.codes.table()
    assert np.array_equal(table[fitted.reader.tokens.index("ICD10CM//E78.5")].detach(), vector)
    assert np.array_equal(table[fitted.reader.tokens.index("ATC//C09AA05")].detach(), vector + 1)
    report = pl.read_csv(tmp_path / "run" / "code_vectors.csv")
    assert report.filter(vocabulary="icd10cm").select("exact", "parent").row(0) == (0, 1)
    assert report.filter(vocabulary="atc").select("exact", "parent").row(0) == (1, 0)
    assert report.select(pl.sum_horizontal("exact", "parent", "random").sum()).item() == len(fitted.reader.tokens)
    fitted.save(tmp_path / "run")
    loaded = make_arm(chosen, lookups()).load(tmp_path / "run")
    scores = (f.predict(cohort.rows, cohort.history(cohort.rows)) for f in (fitted, loaded))
    assert np.array_equal(*scores)


def test_a_learned_projection_is_trained_saved_and_loaded(cohort: Cohort, tmp_path: Path) -> None:
    folder = tmp_path / "ClinVec"
    folder.mkdir()
    (folder / "ClinVec_atc.csv").write_text("code,a,b,c\nC09AA05,1,2,3\nC09,4,5,6\n")
    changes = {"clinvec.path": folder, "clinvec.resize": "learned_projection", "training.epochs": 1}
    fitted, chosen = fit(cohort, tmp_path / "run", **changes)
    assert fitted.module.body.embeddings.codes.weight.shape[1] == 3
    fitted.save(tmp_path / "run")
    loaded = make_arm(chosen, lookups()).load(tmp_path / "run")
    scores = (f.predict(cohort.rows, cohort.history(cohort.rows)) for f in (fitted, loaded))
    assert np.array_equal(*scores)


@pytest.mark.parametrize("how", ["orthogonal", "xavier", "kaiming"])
def test_layers_begin_as_asked_for(cohort: Cohort, tmp_path: Path, how: str) -> None:
    arm = make_arm(settings("exmed_bert", tmp_path, **{"exmed.initialization": how}), lookups())
    model = body()
    arm.initialise(model)
    query = model.layers.encoder.layer[0].attention.self.query.weight.detach()
    bounds = {"xavier": (6 / 32) ** 0.5, "kaiming": (6 / 16) ** 0.5}
    if how == "orthogonal":
        assert torch.allclose(query @ query.T, torch.eye(16), atol=1e-5)
    else:
        assert 0.9 * bounds[how] < query.abs().max() <= bounds[how]


def test_presets_are_those_of_the_guide(tmp_path: Path) -> None:
    keys = settings("exmed_bert", tmp_path).exmed
    bare = {"hidden_size": None, "num_hidden_layers": None, "num_attention_heads": None, "intermediate_size": None}
    shapes = [exmed_shape(keys.model_copy(update={**bare, "preset": name}), 1) for name in PRESETS]
    sizes = [(shape.layers, shape.hidden, shape.intermediate, shape.heads) for shape in shapes]
    assert sizes == [(1, 32, 64, 1), (2, 64, 128, 2), (4, 128, 256, 4), (6, 288, 576, 6)]
