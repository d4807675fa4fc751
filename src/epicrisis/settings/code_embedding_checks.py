"""What cannot be true of `behrt`, `exmed` and `clinvec` together with the rest of a config."""

from __future__ import annotations

from pathlib import Path

from epicrisis.settings.problems import Problem
from epicrisis.settings.schema import Settings

EMBEDDED_ARMS = {"behrt": "behrt", "exmed_bert": "exmed"}
"""Arms that add up embeddings, and the section of each."""


def code_embedding_problems(settings: Settings) -> list[Problem]:
    """Settings of these arms that are each valid and together impossible, and JSON patients beside other data."""
    return _patients_problems(settings) + _arm_problems(settings)


def missing_code_embedding_files(settings: Settings) -> list[Problem]:
    """Inputs that are named and do not exist."""
    named = {
        "data.patients_json": settings.data.patients_json,
        "behrt.pretrained": settings.behrt.pretrained,
        "behrt.embedding_path": settings.behrt.embedding_path,
        "exmed.pretrained": settings.exmed.pretrained,
        "clinvec.path": settings.clinvec.path,
    }
    return [
        Problem(key, f"{path} does not exist", "check the path")
        for key, path in named.items()
        if path is not None and not path.exists()
    ]


def _patients_problems(settings: Settings) -> list[Problem]:
    data = settings.data
    if data.patients_json is None:
        return []
    if data.meds_dir or data.data_dir:
        other = "data.meds_dir" if data.meds_dir else "data.data_dir"
        return [Problem("data.patients_json", f"given together with {other}", "keep one of the two")]
    return []


def _arm_problems(settings: Settings) -> list[Problem]:
    section = EMBEDDED_ARMS.get(settings.arm or "")
    clinvec = settings.clinvec
    if section is None:
        what = f"the arm {settings.arm} begins with no vectors"
        return [Problem("clinvec.path", what, "leave it out, or set arm: behrt or exmed_bert")] if clinvec.path else []
    return _beginning_problems(settings, section) + _lora_problems(settings) + _size_problems(settings, section)


def _beginning_problems(settings: Settings, section: str) -> list[Problem]:
    """What embeddings begin as."""
    clinvec, behrt, problems = settings.clinvec, settings.behrt, []
    pretrained: Path | None = getattr(settings, section).pretrained
    own = behrt.embedding_path if section == "behrt" else None
    given = {f"{section}.pretrained": pretrained, "behrt.embedding_path": own, "clinvec.path": clinvec.path}
    named = [key for key, path in given.items() if path is not None]
    if len(named) > 1:
        problems.append(Problem(named[1], f"given together with {named[0]}", "embeddings begin in one way: keep one"))
    if pretrained and settings.stage == "pretrain":
        what = "pretraining makes what this names"
        problems.append(Problem(f"{section}.pretrained", what, "remove it, or set stage: classify"))
    if getattr(settings, section).freeze_embeddings and not (pretrained or own):
        what = "there is nothing to keep: the embeddings begin at random"
        fix = "give pretrained" + (" or embedding_path" if section == "behrt" else "") + "; for ClinVec, clinvec.freeze"
        problems.append(Problem(f"{section}.freeze_embeddings", what, fix))
    if clinvec.freeze and not clinvec.path:
        problems.append(Problem("clinvec.freeze", "no vectors are given", "give clinvec.path, or leave it out"))
    if clinvec.resize != "auto" and not (clinvec.path or own):
        problems.append(Problem("clinvec.resize", "no vectors are given", "give clinvec.path, or leave it out"))
    if not clinvec.vocabularies:
        problems.append(Problem("clinvec.vocabularies", "is empty", "name one, or leave it out for all"))
    return problems


def _lora_problems(settings: Settings) -> list[Problem]:
    behrt = settings.behrt
    if settings.arm == "behrt" and behrt.lora_rank is None and (behrt.lora_feedforward or behrt.lora_dropout):
        key = "behrt.lora_feedforward" if behrt.lora_feedforward else "behrt.lora_dropout"
        return [Problem(key, "there are no adapters", "give behrt.lora_rank, or leave it out")]
    return []


def _size_problems(settings: Settings, section: str) -> list[Problem]:
    """Given widths that given heads do not divide; presets fit."""
    keys = getattr(settings, section)
    width, heads = keys.hidden_size, keys.num_attention_heads
    if width is not None and heads is not None and width % heads:
        what = f"{width} is not divisible by {heads} heads"
        return [Problem(f"{section}.hidden_size", what, f"change it or {section}.num_attention_heads")]
    return []
