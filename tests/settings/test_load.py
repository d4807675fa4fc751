"""A file and overrides become frozen settings, or one error that names every problem with its fix."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from epicrisis.settings import InputError, Settings, load_settings, settings_from


def problems_of(tree: dict[str, Any], *, check_files: bool = False) -> dict[str, str]:
    """What is wrong with a config, by key."""
    with pytest.raises(InputError) as error:
        settings_from(tree, check_files=check_files)
    return {problem.where: f"{problem.what} / {problem.fix}" for problem in error.value.problems}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_with_both_forms_of_override(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "model: {max_length: 512}\ntraining: {learning_rate: 2e-5, seed: 3}\n")
    settings = load_settings(path, ["training.learning_rate=1e-3", "--training.epochs=2", "lora.target_modules=[q, v]"])
    assert settings.model.max_length == 512
    assert settings.training.learning_rate == 1e-3
    assert (settings.training.seed, settings.training.epochs) == (3, 2.0)
    assert settings.lora.target_modules == ("q", "v")
    assert load_settings(path).training.learning_rate == 2e-5


def test_without_a_file_there_are_defaults_and_overrides() -> None:
    assert load_settings(None, ["arm=xgboost", "stage=classify"]).arm == "xgboost"


def test_lists_are_replaced_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "model: {answers: [low, middle, high]}\n")
    assert load_settings(path, ["model.answers=[alive, dead]"]).model.answers == ("alive", "dead")


def test_a_key_may_refer_to_another_which_overrides_change(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "data: {meds_dir: here, labels_dir: '${data.meds_dir}/labels/x'}\n")
    assert load_settings(path, check_files=False).data.labels_dir == Path("here/labels/x")
    settings = load_settings(path, ["data.meds_dir=there"], check_files=False)
    assert settings.data.labels_dir == Path("there/labels/x")
    with pytest.raises(InputError, match=r"data.labels_dir: Interpolation key 'data.med' not found"):
        load_settings(path, ["data.labels_dir=${data.med}/x"], check_files=False)


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.training.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.training = settings.training  # type: ignore[misc]


def test_resolved_settings_load_to_the_same(tmp_path: Path) -> None:
    tree = {
        "stage": "classify",
        "model": {"clinical_adapter": "runs/a", "answers": ["no", "yes"]},
        "training": {"bf16": True, "output_dir": "runs/b"},
        "benchmark": {"arms": [{"name": "x", "overrides": {"arm": "xgboost", "lora.r": 4}}]},
    }
    settings = settings_from(tree, check_files=False)
    path = write(tmp_path / "resolved.yaml", OmegaConf.to_yaml(OmegaConf.create(settings.resolved())))
    assert load_settings(path, check_files=False) == settings


ENCODER = {"num_classes": 2, "model_name": "epicrisis/tiny-bert", "max_length": 512}


@pytest.mark.parametrize(
    ("tree", "arm", "stage"),
    [
        ({}, "llm", "pretrain"),
        ({"lora": {"r": 8}}, "llm", "pretrain"),
        ({"model": ENCODER}, "encoder", "classify"),
        ({"model": ENCODER, "lora": {"r": 8}}, "llm", "classify"),
        ({"arm": "llm", "model": {"num_classes": 2}}, "llm", "classify"),
        ({"arm": "xgboost"}, "xgboost", "classify"),
        ({"stage": "classify"}, "llm", "classify"),
    ],
)
def test_arm_and_stage_are_read_off_the_sections(tree: dict[str, Any], arm: str, stage: str) -> None:
    settings = settings_from(tree)
    assert (settings.arm, settings.stage) == (arm, stage)


def test_unknown_keys_name_the_nearest() -> None:
    found = problems_of(
        {"traning": {}, "training": {"lerning_rate": 1}, "benchmark": {"arms": [{"name": "a", "overides": {}}]}}
    )
    assert "did you mean `training`?" in found["traning"]
    assert "did you mean `learning_rate`?" in found["training.lerning_rate"]
    assert "did you mean `overrides`?" in found["benchmark.arms.0.overides"]
    assert "known keys here: r, lora_alpha" in problems_of({"lora": {"zzz": 1}})["lora.zzz"]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "epochs", "many"),
        ("training", "seed", 1.5),
        ("training", "batch_size", 0),
        ("training", "bf16", "perhaps"),
        ("training", "framework", "keras"),
        ("model", "max_length", 8),
        ("model", "answers", "yes"),
        ("lora", "target_modules", 5),
        ("narrative", "dates", "lunar"),
        ("evaluation", "bootstrap_resamples", 3),
        ("synthetic", "novel_code_probability", 2),
    ],
)
def test_wrong_values_are_told_once_with_the_key_and_what_was_given(section: str, key: str, value: Any) -> None:
    found = problems_of({section: {key: value}})
    assert list(found) == [f"{section}.{key}"]
    assert f"(given: {value!r})" in found[f"{section}.{key}"]


@pytest.mark.parametrize("value", [5, None, "x", [1]])
def test_a_section_must_hold_keys(value: Any) -> None:
    assert list(problems_of({"lora": value})) == ["lora"]


def test_all_problems_are_in_one_error(tmp_path: Path) -> None:
    found = problems_of(
        {
            "arm": "logistc",
            "model": {"max_lenght": 512, "max_length": "abc"},
            "data": {"meds_dir": str(tmp_path / "nowhere")},
            "training": {"fp16": True, "bf16": True, "epochs": "many"},
        },
        check_files=True,
    )
    assert sorted(found) == [
        "arm",
        "data.meds_dir",
        "model.max_lenght",
        "model.max_length",
        "training.epochs",
        "training.fp16",
    ]
    assert all(" / " in text and not text.endswith(" / ") for text in found.values())


@pytest.mark.parametrize(
    "key",
    ["meds_dir", "labels_dir", "medical_lookup_filepath", "time_lookup_filepath", "oracle_dir"],
)
def test_missing_files_are_told_by_key(tmp_path: Path, key: str) -> None:
    tree = {"data": {key: str(tmp_path / "nowhere")}}
    assert f"{tmp_path / 'nowhere'} does not exist" in problems_of(tree, check_files=True)[f"data.{key}"]
    settings_from(tree, check_files=False)


def test_a_missing_clinical_adapter_is_told(tmp_path: Path) -> None:
    tree = {"stage": "classify", "model": {"clinical_adapter": str(tmp_path / "nowhere")}}
    assert "run the pretraining stage first" in problems_of(tree, check_files=True)["model.clinical_adapter"]


@pytest.mark.parametrize(
    ("where", "tree"),
    [
        ("data.data_dir", {"data": {"meds_dir": "a", "data_dir": "b", "vocab_filepath": "c", "labels_filepath": "d"}}),
        ("data.data_dir", {"data": {"data_dir": "b", "vocab_filepath": "c"}}),
        ("data.index_dates_filepath", {"data": {"labels_dir": "a", "index_dates_filepath": "b"}}),
        ("data.cutoff_months", {"data": {"meds_dir": "a", "cutoff_months": 3}}),
        ("stage", {"arm": "xgboost", "stage": "pretrain"}),
        ("model.clinical_adapter", {"stage": "pretrain", "model": {"clinical_adapter": "a"}}),
        ("model.clinical_trainable", {"stage": "classify", "model": {"clinical_trainable": True}}),
        ("model.answers", {"model": {"answers": ["yes", "yes"]}}),
        ("model.answers", {"model": {"answers": ["yes"]}}),
        ("model.answers", {"arm": "llm", "model": {"num_classes": 3}}),
        ("narrative.max_tokens", {"model": {"max_length": 512}, "narrative": {"max_tokens": 512}}),
        ("training.fp16", {"training": {"fp16": True, "bf16": True}}),
        ("training.resume", {"training": {"resume": True, "overwrite_output_dir": True}}),
        ("wandb.project", {"wandb": {"enabled": True}}),
        ("benchmark.arms", {"benchmark": {"arms": [{"name": "a"}, {"name": "a"}]}}),
        ("benchmark.reference", {"benchmark": {"arms": [{"name": "a"}], "reference": "b"}}),
    ],
)
def test_impossible_combinations_are_refused(where: str, tree: dict[str, Any]) -> None:
    assert where in problems_of(tree)


def test_files_that_are_no_config_are_refused(tmp_path: Path) -> None:
    cases = {
        "absent.yaml": (None, "there is no such config file"),
        "syntax.yaml": ("model: {max_length: 3\ndata: [", "is not valid YAML"),
        "twice.yaml": ("lora: {r: 3}\nlora: {r: 4}\n", "is not valid YAML"),
        "list.yaml": ("- a\n- b\n", "holds no mapping of sections"),
        "bytes.yaml": (b"\xff\xfe\xfa", "is not valid YAML"),
    }
    for name, (content, what) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(InputError) as error:
            load_settings(path)
        assert what in str(error.value), name
        assert str(path) in str(error.value), name


@pytest.mark.parametrize("argument", ["training.seed", "=3", "--seed 3", "a=["])
def test_arguments_that_are_no_overrides_are_refused(argument: str) -> None:
    with pytest.raises(InputError, match=r"section\.key=value"):
        load_settings(None, [argument])
