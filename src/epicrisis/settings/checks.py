"""What cannot be true of a config as a whole: keys that exclude each other, files that are not there."""

from __future__ import annotations

from pathlib import Path

from epicrisis.settings.adapter_checks import adapter_problems
from epicrisis.settings.code_embedding_checks import code_embedding_problems, missing_code_embedding_files
from epicrisis.settings.encoder_checks import encoder_problems
from epicrisis.settings.problems import Problem
from epicrisis.settings.schema import Settings
from epicrisis.settings.structured_checks import structured_problems
from epicrisis.settings.survival_checks import survival_problems
from epicrisis.settings.tracking_checks import tracking_problems
from epicrisis.settings.watched import HIGHER_IS_BETTER, WATCHED

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
    "concept_filepath",
    "codes_filepath",
    "oracle_dir",
)

PRETRAINED_ARMS = ("llm", "event_encoder", "structured", "behrt", "exmed_bert")
"""The arms that have a stage `pretrain`: those of commands.arms.PRETRAINERS."""


def combination_problems(settings: Settings) -> list[Problem]:
    """Settings that are each valid and together impossible."""
    return (
        _data_problems(settings)
        + _model_problems(settings)
        + _asking_problems(settings)
        + _framework_problems(settings)
        + adapter_problems(settings)
        + code_embedding_problems(settings)
        + structured_problems(settings)
        + encoder_problems(settings)
        + survival_problems(settings)
        + _record_problems(settings)
        + _prepare_problems(settings)
        + _training_problems(settings)
        + tracking_problems(settings)
        + _generation_problems(settings)
        + _optimisation_problems(settings)
    )


def missing_file_problems(settings: Settings) -> list[Problem]:
    """Inputs named in the config that do not exist."""
    problems = []
    for key in _FILE_KEYS:
        path: Path | None = getattr(settings.data, key)
        if path is not None and not path.exists():
            problems.append(Problem(f"data.{key}", f"{path} does not exist", "check the path, or make the data first"))
    named = {"model.fused": settings.model.fused, "lora.new_code_tokens": settings.lora.new_code_tokens}
    named |= {f"fuse.adapters[{number}]": path for number, path in enumerate(settings.fuse.adapters)}
    for where, path in named.items():
        if path is not None and not path.exists():
            problems.append(Problem(where, f"{path} does not exist", "check the path"))
    problems += missing_code_embedding_files(settings)
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
    if settings.stage == "pretrain" and settings.arm not in PRETRAINED_ARMS:
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
    asked_in_words = settings.arm == "llm" and model.head == "label_tokens"
    if model.num_classes and asked_in_words and model.num_classes != len(model.answers):
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


def _asking_problems(settings: Settings) -> list[Problem]:
    model, problems = settings.model, []
    for part in ("{narrative}", "{question}"):
        if model.prompt.count(part) != 1:
            what = f"holds {part} {model.prompt.count(part)} times"
            problems.append(Problem("model.prompt", what, "write it once"))
    if model.prior_correction and settings.training.class_weights == "none":
        what = "training sees the classes' true shares already"
        problems.append(Problem("model.prior_correction", what, "set training.class_weights, or leave it out"))
    if model.answer_mass and model.head == "score":
        what = "a score head gives no answer in words"
        problems.append(Problem("model.answer_mass", what, "set model.head: label_tokens, or leave it out"))
    return problems


def _framework_problems(settings: Settings) -> list[Problem]:
    """What Unsloth does otherwise whatever it is told; what hangs on the machine is refused where it loads a base."""
    training, problems = settings.training, []
    if training.framework != "unsloth":
        return []
    fix = "leave it out, or set training.framework: peft"
    if settings.model.attn_implementation == "flash_attention_2":
        what = "on a GPU Unsloth chooses its attention by itself"
        problems.append(Problem("model.attn_implementation", what, fix))
    if training.quant_storage != "uint8":
        problems.append(Problem("training.quant_storage", "Unsloth stores 4-bit weights as uint8 only", fix))
    return problems


def _prepare_problems(settings: Settings) -> list[Problem]:
    prepare = settings.prepare
    if prepare.scheduler and prepare.executor != "dask":
        return [Problem("prepare.scheduler", "only dask has one", "set prepare.executor: dask, or leave it out")]
    if prepare.scheduler and prepare.workers:
        return [Problem("prepare.workers", "a running scheduler has its own workers", "leave one of the two out")]
    return []


def _record_problems(settings: Settings) -> list[Problem]:
    narrative, problems = settings.narrative, []
    if narrative.records == "whole" and settings.stage == "classify":
        problems.append(
            Problem(
                "narrative.records",
                "whole records are cut into windows, and a classifier reads one",
                "set narrative.records: latest, or stage: pretrain",
            )
        )
    if narrative.records == "whole" and narrative.max_tokens:
        problems.append(
            Problem("narrative.max_tokens", "whole records have no budget", "leave it out, or set records: latest")
        )
    if narrative.records == "latest" and narrative.repeat_header:
        problems.append(
            Problem(
                "narrative.repeat_header",
                "the latest events fit one window, so no other could begin with the header",
                "set narrative.records: whole, or leave it out",
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
    names = [arm.name for arm in settings.benchmark.arms]
    if len(set(names)) != len(names):
        problems.append(Problem("benchmark.arms", "two arms have the same name", "give each its own"))
    if settings.benchmark.reference and settings.benchmark.reference not in names:
        problems.append(
            Problem("benchmark.reference", f"no arm is called {settings.benchmark.reference!r}", f"one of {names}")
        )
    return problems


def _optimisation_problems(settings: Settings) -> list[Problem]:
    training, problems = settings.training, []
    if training.effective_batch_size is not None and training.gradient_accumulation_steps != 1:
        what = "effective_batch_size says how many sequences make a step already"
        problems.append(Problem("training.gradient_accumulation_steps", what, "keep one of the two"))
    if training.batch_size == "auto" and training.effective_batch_size is None:
        what = "is looked for, and nothing says how many sequences make an optimiser step"
        problems.append(Problem("training.batch_size", what, "set training.effective_batch_size, e.g. 32"))
    if training.quant_storage != "uint8" and not training.load_in_4bit:
        what = "only 4-bit weights are packed"
        problems.append(Problem("training.quant_storage", what, "leave it out, or set training.load_in_4bit: true"))
    watched = WATCHED.get(settings.stage or "", tuple(HIGHER_IS_BETTER))
    if settings.arm == "llm" and training.metric_for_best not in watched:
        what = f"{training.metric_for_best!r} is not evaluated in the stage {settings.stage}"
        problems.append(Problem("training.metric_for_best", what, f"one of {', '.join(watched)}"))
    return problems


def _generation_problems(settings: Settings) -> list[Problem]:
    generation, problems = settings.generation, []
    futures, answers = generation.mode == "futures", generation.mode == "answer"
    if futures and not generation.targets:
        fix = "give a list of {name, codes, horizon_days}"
        problems.append(Problem("generation.targets", "futures are sampled, and nothing is looked for in them", fix))
    names = [target.name for target in generation.targets]
    if len(set(names)) < len(names):
        problems.append(Problem("generation.targets", "two targets have the same name", "give each its own"))
    if futures and generation.temperature == 0:
        problems.append(
            Problem("generation.temperature", "at 0 all futures of a row are the same one", "leave it out (1)")
        )
    if futures and generation.stop:
        what = "a future ends at the horizon, not at a string"
        problems.append(Problem("generation.stop", what, "leave it out, or set generation.mode: continue"))
    if generation.constrained and not answers:
        what = "only answers have a list of what may be written"
        problems.append(Problem("generation.constrained", what, "leave it out, or set generation.mode: answer"))
    if any(not string for string in generation.stop):
        problems.append(Problem("generation.stop", "one of the strings is empty", "remove it"))
    if generation.engine == "vllm" and answers:
        what = "vllm does not write answers here: their probabilities need every answer scored"
        problems.append(Problem("generation.engine", what, "set generation.engine: transformers"))
    return problems
