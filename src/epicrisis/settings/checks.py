"""What cannot be true of a config as a whole: keys that exclude each other, files that are not there."""

from __future__ import annotations

from pathlib import Path

from epicrisis.settings.problems import Problem
from epicrisis.settings.schema import Settings

_FILE_KEYS = (
    "meds_dir",
    "labels_dir",
    "index_dates_filepath",
    "data_dir",
    "vocab_filepath",
    "labels_filepath",
    "medical_lookup_filepath",
    "lab_lookup_filepath",
    "region_lookup_filepath",
    "time_lookup_filepath",
    "oracle_dir",
)


def combination_problems(settings: Settings) -> list[Problem]:
    """Settings that are each valid and together impossible."""
    return _data_problems(settings) + _model_problems(settings) + _training_problems(settings)


def missing_file_problems(settings: Settings) -> list[Problem]:
    """Inputs named in the config that do not exist."""
    problems = []
    for key in _FILE_KEYS:
        path: Path | None = getattr(settings.data, key)
        if path is not None and not path.exists():
            problems.append(Problem(f"data.{key}", f"{path} does not exist", "check the path, or make the data first"))
    adapter = settings.model.clinical_adapter
    if adapter is not None and not adapter.exists():
        problems.append(
            Problem("model.clinical_adapter", f"{adapter} does not exist", "run the pretraining stage first")
        )
    return problems


def _data_problems(settings: Settings) -> list[Problem]:
    data, problems = settings.data, []
    if data.meds_dir and data.data_dir:
        problems.append(Problem("data.data_dir", "given together with data.meds_dir", "keep one of the two"))
    if data.data_dir and not (data.vocab_filepath and data.labels_filepath):
        problems.append(
            Problem("data.data_dir", "needs its vocabulary and labels", "give vocab_filepath and labels_filepath")
        )
    if data.labels_dir and data.index_dates_filepath:
        problems.append(Problem("data.index_dates_filepath", "given together with data.labels_dir", "keep one"))
    if data.cutoff_months is not None and not (data.labels_dir or data.index_dates_filepath or data.labels_filepath):
        problems.append(
            Problem("data.cutoff_months", "there is no label or index date to count back from", "give labels_dir")
        )
    return problems


def _model_problems(settings: Settings) -> list[Problem]:
    model, problems = settings.model, []
    if settings.stage == "pretrain" and settings.arm != "llm":
        problems.append(Problem("stage", f"arm `{settings.arm}` has no pretraining", "set stage: classify"))
    if settings.stage == "pretrain" and model.clinical_adapter:
        problems.append(
            Problem(
                "model.clinical_adapter",
                "pretraining makes this adapter",
                "remove it, or set stage: classify",
            )
        )
    if model.clinical_trainable and not model.clinical_adapter:
        problems.append(
            Problem("model.clinical_trainable", "there is no clinical adapter", "give model.clinical_adapter")
        )
    if model.pooling == "mean" and model.head != "score":
        problems.append(Problem("model.pooling", "answers are read off the last token only", "set model.head: score"))
    if len(set(model.answers)) != len(model.answers) or len(model.answers) < 2:
        problems.append(Problem("model.answers", "answers must be two or more, all different", "e.g. [no, yes]"))
    if model.num_classes and settings.arm == "llm" and model.num_classes != len(model.answers):
        problems.append(
            Problem(
                "model.answers",
                f"{len(model.answers)} answers for {model.num_classes} classes",
                "one per class",
            )
        )
    if settings.narrative.max_tokens and settings.narrative.max_tokens >= model.max_length:
        problems.append(
            Problem(
                "narrative.max_tokens",
                f"{settings.narrative.max_tokens} leaves no room within model.max_length {model.max_length}",
                "make it smaller than model.max_length, or leave it out",
            )
        )
    return problems


def _training_problems(settings: Settings) -> list[Problem]:
    training, problems = settings.training, []
    if training.fp16 and training.bf16 is True:
        problems.append(Problem("training.fp16", "fp16 and bf16 exclude each other", "keep one of the two"))
    if training.resume and training.overwrite_output_dir:
        problems.append(
            Problem("training.resume", "resume and overwrite_output_dir exclude each other", "keep one of the two")
        )
    if settings.wandb.enabled and not settings.wandb.project:
        problems.append(Problem("wandb.project", "W&B is enabled without a project", "name the project"))
    names = [arm.name for arm in settings.benchmark.arms]
    if len(set(names)) != len(names):
        problems.append(Problem("benchmark.arms", "two arms have the same name", "give each its own"))
    if settings.benchmark.reference and settings.benchmark.reference not in names:
        problems.append(
            Problem("benchmark.reference", f"no arm is called {settings.benchmark.reference!r}", f"one of {names}")
        )
    return problems
