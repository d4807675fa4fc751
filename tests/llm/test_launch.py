"""What cannot work with the processes that a run was launched with is refused before any model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from bitsandbytes.nn import Params4bit

from epicrisis.llm.base_model import load_base
from epicrisis.llm.fuse import logits_on_random_tokens
from epicrisis.settings import InputError
from epicrisis.settings.schema import TrainingSettings
from epicrisis.training import device
from epicrisis.training.device import Launch, check_storage, launch_problems, make_accelerator

RECIPES = Path(__file__).parents[2] / "configs" / "accelerate"
KINDS = {
    "single_gpu": "NO",
    "multi_gpu_ddp": "MULTI_GPU",
    "cpu_two_processes": "MULTI_GPU",
    "fsdp_qlora": "FSDP",
    "fsdp2": "FSDP",
    "deepspeed_zero2": "DEEPSPEED",
    "deepspeed_zero3": "DEEPSPEED",
}
SHARDED = Launch(on_gpu=True, fsdp=2)
FIT = {"bf16": True, "quant_storage": "bfloat16"}


def test_every_recipe_is_one_that_accelerate_reads() -> None:
    assert {path.stem for path in RECIPES.iterdir()} == set(KINDS)
    for name, kind in KINDS.items():
        assert load_config_from_file(str(RECIPES / f"{name}.yaml")).distributed_type.value == kind
        assert (RECIPES / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize(("name", "training"), [("fsdp_qlora", FIT), ("fsdp2", {"bf16": True, "load_in_4bit": False})])
def test_a_sharding_recipe_arrives_as_a_launch_that_its_own_settings_pass(name: str, training: dict[str, Any]) -> None:
    arguments = launch_command_parser().parse_args(["--config_file", str(RECIPES / f"{name}.yaml"), "train.py"])
    arguments, *_ = _validate_launch_command(arguments)
    launch = Launch.here(prepare_multi_gpu_env(arguments))
    assert (launch.fsdp, launch.fsdp_checkpointing, launch.zero) == (2, False, 0)
    assert launch_problems(TrainingSettings(**training), Launch(True, launch.fsdp)) == []


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("training", [{}, {"load_in_4bit": False, "bf16": True}, {"gradient_checkpointing": True}])
def test_a_deepspeed_recipe_arrives_as_a_launch_that_works(
    stage: int, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(RECIPES / f"deepspeed_zero{stage}.yaml")
    arguments = launch_command_parser().parse_args(["--config_file", recipe, "--main_process_port", "0", "train.py"])
    arguments, *_ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ""
    launch = Launch.here(prepare_deepspeed_cmd_env(arguments)[1])
    assert launch == Launch(torch.cuda.is_available(), zero=stage)
    monkeypatch.setattr(device, "is_deepspeed_available", lambda: True)
    assert launch_problems(TrainingSettings(**training), launch) == []
    monkeypatch.setattr(device, "is_deepspeed_available", lambda: False)
    (problem,) = launch_problems(TrainingSettings(**training), launch)
    assert "epicrisis[deepspeed]" in str(problem)


@pytest.mark.parametrize(
    ("training", "launch", "where", "what"),
    [
        ({"fp16": True}, Launch(False), "training.fp16", "needs a GPU"),
        ({"optimizer": "paged_adamw_8bit"}, Launch(False), "training.optimizer", "would not page"),
        ({"bf16": True}, SHARDED, "training.quant_storage", "stored as uint8 cannot be sharded beside bfloat16"),
        ({**FIT, "quant_storage": "float32"}, SHARDED, "training.quant_storage", "stored as float32"),
        ({**FIT, "optimizer": "paged_adamw_8bit"}, SHARDED, "training.optimizer", "no sharded states"),
        ({**FIT, "optimizer": "adamw_8bit"}, SHARDED, "training.optimizer", "no sharded states"),
        ({**FIT, "framework": "unsloth"}, SHARDED, "training.framework", "no shards"),
        ({**FIT, "gradient_checkpointing": True}, Launch(True, 2, True), "training.gradient_checkpointing", "twice"),
        (FIT, Launch(True, 1), "accelerate", "fsdp_version: 2"),
        (FIT, Launch(False, 2), "accelerate", "pass over it on a CPU"),
        ({}, Launch(True, zero=-1), "accelerate", "no config file of its own"),
        ({}, Launch(True, zero=1), "accelerate", "ZeRO-2 and ZeRO-3"),
        ({}, Launch(True, zero=2, zero_offload=True), "accelerate", "offload_optimizer_device"),
        ({}, Launch(True, zero=3, zero_init=True), "accelerate", "zero3_init_flag: false"),
        ({"fp16": True}, Launch(True, zero=2), "training.fp16", "half precision"),
        ({"optimizer": "adamw_8bit"}, Launch(True, zero=3), "training.optimizer", "no sharded states"),
        ({"framework": "unsloth"}, Launch(True, zero=2), "training.framework", "no shards"),
    ],
)
def test_wrong_combinations_are_named_with_their_key(
    training: dict[str, Any], launch: Launch, where: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "is_deepspeed_available", lambda: True)
    problems = launch_problems(TrainingSettings(**training), launch)
    assert [problem.where for problem in problems] == [where]
    assert what in str(problems[0])


@pytest.mark.parametrize(
    "training", [{}, {"optimizer": "adamw_8bit"}, {"gradient_checkpointing": True}, {"load_in_4bit": False}]
)
def test_what_works_is_not_refused(training: dict[str, Any]) -> None:
    assert launch_problems(TrainingSettings(**training), Launch(False)) == []
    assert launch_problems(TrainingSettings(**training, fp16=True), Launch(True)) == []


def test_a_launch_is_read_from_what_accelerate_sets() -> None:
    sharded = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}
    assert (Launch.here(sharded).fsdp, Launch.here(sharded).fsdp_checkpointing) == (2, True)
    assert Launch.here({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}).zero == 3
    assert Launch.here({"ACCELERATE_USE_DEEPSPEED": "true"}).zero == -1
    own = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    assert Launch.here({**own, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "zero.json"}).zero == -1
    assert Launch.here({**own, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}).zero_offload
    assert Launch.here({**own, "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}).zero_init
    assert (Launch.here({}).fsdp, Launch.here({}).zero) == (0, 0)


def test_the_accelerator_is_not_made_for_a_wrong_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="DeepSpeed"):
        make_accelerator(TrainingSettings())


@pytest.mark.parametrize("storage", ["bfloat16", "float16", "float32"])
def test_4_bit_weights_are_stored_as_asked_for_and_are_the_same(settings, accelerator, storage: str) -> None:
    plain = {"training.bf16": False}
    asked = settings("llama", **plain, **{"training.quant_storage": storage})
    base, usual = load_base(asked, accelerator), load_base(settings("llama", **plain), accelerator)
    check_storage(base, asked.training)
    found = {parameter.dtype for parameter in base.parameters() if isinstance(parameter, Params4bit)}
    assert found == {getattr(torch, storage)}
    assert torch.equal(logits_on_random_tokens(base), logits_on_random_tokens(usual))


def test_a_base_that_is_stored_otherwise_than_asked_for_is_refused(settings, accelerator, tmp_path: Path) -> None:
    """One that was quantised before it was saved keeps what it was stored as."""
    load_base(settings("llama"), accelerator).save_pretrained(tmp_path)
    asked = settings("llama", **{"model.model_name": str(tmp_path), "training.quant_storage": "bfloat16"})
    with pytest.raises(InputError, match="stored as uint8"):
        check_storage(load_base(asked, accelerator), asked.training)
