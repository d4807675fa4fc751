"""What holds for every arm of the room: any kind of task, saved and loaded, blind to the future, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from epicrisis.cohort import build_cohort
from epicrisis.commands.arms import make_arm
from epicrisis.settings import InputError
from tests.encoders.conftest import ARMS, KINDS, Log, fitted, of_kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arm", ARMS)
def test_a_fitted_arm_predicts_saves_and_loads_alike(arm, kind, settings, lookups, cohort, tmp_path) -> None:
    chosen = settings(arm, **{"training.class_weights": "balanced", "model.prior_correction": True})
    model = fitted(chosen, lookups, cohort, Log(tmp_path), kind)
    held_out = of_kind(cohort.select("held_out"), kind)
    found = model.predict(held_out, cohort.history(held_out))
    assert found.shape == (held_out.height, {"binary": 2, "multiclass": 3, "multilabel": 2}[kind])
    assert ((found > 0) & (found < 1)).all()
    sums = found.sum(axis=1)
    assert (kind == "multilabel") != bool(np.allclose(sums, 1)), "only labels have probabilities of their own"
    model.save(tmp_path)
    written = {
        path.suffix
        for path in (tmp_path / ("model" if arm == "event_encoder" else "adapters")).rglob("*")
        if path.is_file()
    }
    assert written <= {".json", ".safetensors", ".parquet"}
    again = make_arm(chosen, lookups).load(tmp_path)
    assert again.classes == model.classes
    assert np.array_equal(again.predict(held_out, cohort.history(held_out)), found)
    shuffled = held_out.sample(fraction=1, shuffle=True, seed=1)
    places = shuffled.join(
        held_out.with_row_index("place"), on=["subject_id", "prediction_time"], maintain_order="left"
    )["place"]
    assert np.allclose(again.predict(shuffled, cohort.history(shuffled)), found[places.to_numpy()], atol=1e-6)


@pytest.mark.parametrize("finetune", ["lora", "head"])
def test_an_adapter_and_a_head_are_saved_without_the_base_and_load_alike(
    finetune, settings, lookups, cohort, tmp_path
) -> None:
    chosen = settings("encoder", **{"encoder.finetune": finetune})
    model = fitted(chosen, lookups, cohort, Log(tmp_path))
    rows = cohort.select("held_out")
    found = model.predict(rows, cohort.history(rows))
    model.save(tmp_path)
    assert not (tmp_path / "adapters" / "encoder").exists()
    again = make_arm(chosen, lookups).load(tmp_path)
    assert np.array_equal(again.predict(rows, cohort.history(rows)), found)


@pytest.mark.parametrize("arm", ARMS)
def test_events_after_the_cutoff_change_no_prediction(arm, settings, lookups, cohort, dataset, tmp_path) -> None:
    model = fitted(settings(arm), lookups, cohort, Log(tmp_path / "run"))
    rows = cohort.select("held_out")
    found = model.predict(rows, cohort.history(rows))
    later = tmp_path / "later"
    shutil.copytree(dataset, later)
    bounds = rows.select("subject_id", "prediction_time")
    for path in (later / "data").rglob("*.parquet"):
        events = pl.read_parquet(path)
        future = (pl.col("time") > pl.col("prediction_time")).fill_null(False)
        changed = events.join(bounds, on="subject_id", how="left", maintain_order="left").with_columns(
            code=pl.when(future).then(pl.lit("ICD10CM//C50")).otherwise("code"),
            numeric_value=pl.when(future).then(pl.lit(99.0)).otherwise("numeric_value").cast(pl.Float32),
        )
        assert events.height == 0 or not changed.filter(future.not_())["code"].is_empty()
        changed.drop("prediction_time").write_parquet(path)
    other = build_cohort(later, labels_dir=later / "labels" / "cancer")
    assert np.array_equal(model.predict(rows, other.history(rows)), found)


@pytest.mark.parametrize("arm", ARMS)
def test_what_a_saved_arm_does_not_go_with_is_refused(arm, settings, lookups, cohort, bert, tmp_path) -> None:
    from epicrisis.encoders.tiny_bert import new_bert

    model = fitted(settings(arm), lookups, cohort, Log(tmp_path))
    model.save(tmp_path)
    for changes in ({"narrative.values": "words"}, {"encoder.pooling": "mean"}):
        with pytest.raises(InputError, match=r"is not what this (checkpoint|model) was trained with"):
            make_arm(settings(arm, **changes), lookups).load(tmp_path)
    if arm == "encoder":  # all of its weights are its own
        return
    other = tmp_path / "other"
    shutil.copytree(bert, other)
    config = json.loads((bert / "config.json").read_text())
    shape = {name: config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    new_bert(_tokenizer(bert), seed=1, max_position_embeddings=160, **shape).save_pretrained(other)
    with pytest.raises(InputError, match=r"model\.model_name: is not what this model was trained with"):
        make_arm(settings(arm, **{"model.model_name": str(other)}), lookups).load(tmp_path)


def _tokenizer(folder: Path):
    from epicrisis.encoders.text_encoder import load_tokenizer

    return load_tokenizer(str(folder))


@pytest.mark.parametrize("arm", ARMS)
def test_rows_without_labels_are_refused(arm, settings, lookups, cohort, tmp_path) -> None:
    rows = cohort.rows.filter(pl.col("split") != "held_out").with_columns(label=pl.lit(None))
    with pytest.raises(InputError, match="holds no label to learn"):
        make_arm(settings(arm), lookups).fit(rows, cohort.history(rows), Log(tmp_path))


def test_a_logistic_regression_needs_classes_and_all_of_them(settings, lookups, cohort, tmp_path) -> None:
    rows = cohort.rows.filter(pl.col("split") != "held_out")
    for label, message in (
        (pl.struct(days=pl.lit(1.0), observed=pl.lit(True)), "tells classes apart"),
        (pl.lit(False), "no train row has true"),
    ):
        wrong = rows.with_columns(label=label)
        with pytest.raises(InputError, match=message):
            make_arm(settings("frozen_encoder"), lookups).fit(wrong, cohort.history(wrong), Log(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.model_name": "epicrisis/tiny-llama"}, "is a decoder"),
        ({"model.model_name": "epicrisis/tiny-bert", "model.max_length": 1024}, "more than the 512 positions"),
        ({"model.clinical_adapter": "runs/pretrain"}, r"model.clinical_adapter: the arm `encoder` has no such thing"),
        ({"lora.method": "prefix"}, r"lora.method: the arm `encoder` has no such thing"),
        ({"training.framework": "unsloth"}, "training.framework"),
        ({"training.batch_size": "auto", "training.effective_batch_size": 8}, "training.batch_size"),
        ({"training.metric_for_best": "answer_mass"}, "is not evaluated"),
        ({"encoder.long": "chunk", "narrative.max_tokens": 64}, "narrative.max_tokens"),
        ({"encoder.pretrained": "runs/events"}, "only models of events are pretrained"),
        ({"encoder.finetune": "lora", "lora.init_lora_weights": "loftq"}, "lora.init_lora_weights"),
        ({"arm": "event_encoder", "encoder.long": "chunk"}, "encoder.long"),
        ({"arm": "event_encoder", "encoder.heads": 3}, "encoder.width"),
        ({"arm": "event_encoder", "encoder.finetune": "lora"}, "is frozen"),
        ({"arm": "event_encoder", "encoder.finetune": "head"}, "has learnt nothing"),
        ({"arm": "frozen_encoder", "training.gradient_checkpointing": True}, "training.gradient_checkpointing"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message, settings) -> None:
    with pytest.raises(InputError, match=message):
        settings(**changes)


def test_a_base_that_is_no_encoder_or_too_short_is_refused(settings, lookups, cohort, bert, tmp_path) -> None:
    with pytest.raises(InputError, match="500 tokens are more than the 160 positions"):
        fitted(settings("encoder", **{"model.max_length": 500}), lookups, cohort, Log(tmp_path))
    decoder = tmp_path / "decoder"
    shutil.copytree(bert, decoder)
    config = json.loads((bert / "config.json").read_text())
    (decoder / "config.json").write_text(json.dumps({**config, "is_decoder": True}))
    with pytest.raises(InputError, match="is no encoder"):
        fitted(settings("encoder", **{"model.model_name": str(decoder)}), lookups, cohort, Log(tmp_path))
    with pytest.raises(InputError, match=r"encoder\.pretrained: .* is no finished run of this arm"):
        make_arm(settings("event_encoder", **{"encoder.pretrained": str(tmp_path)}), lookups)
