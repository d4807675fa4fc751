"""What of a finished run may leave the house: an allow-list, with what few patients have, and paths, taken out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import polars as pl
from omegaconf import OmegaConf

from epicrisis.corpus.prepare import Prepared
from epicrisis.narrative.coverage import FEWEST_SUBJECTS
from epicrisis.settings import InputError, Problem, Settings, refuse
from epicrisis.tracking.run_directory import RunDirectory, replacing
from epicrisis.tracking.run_record import PARAMETERS, TRAINED, hyperparameters

_ADAPTER = r"(adapter_config\.json|adapter_model\.safetensors|base\.json|new_tokens\.csv)"
_NARRATOR = r"narrator/(narrator\.json|book\.parquet|classes\.json)"
_TOLD = rf"(narrative\.json|score\.safetensors|{_NARRATOR})"
_TRANSFORMER = (
    r"(config\.json|generation_config\.json|model[\w.-]*\.safetensors|model\.safetensors\.index\.json|vocab\.(json|txt)"
    r"|merges\.txt|tokenizer\.json|tokenizer\.model|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.jinja)"
)
ALLOWED = {
    "adapters": (
        rf"(clinical|downstream)/{_ADAPTER}",
        rf"(clinical/)?{_TOLD}",
        r"head\.safetensors",
        rf"encoder/{_TRANSFORMER}",
    ),
    "model": (
        r"(config\.json|model\.safetensors|events\.safetensors|numbers\.json)",
        rf"(narrative\.json|{_NARRATOR})",
        r"tokenizer/(tokenizer|vocabulary|word_pieces)\.json",
    ),
    "fused": (r"fuse\.json", rf"((\w+/)?{_ADAPTER})", rf"model/{_TRANSFORMER}", _TOLD),
}
"""By the folder of a run, patterns of the files in it that are uploaded; whatever else lies there stays."""

RECORD = ("hyperparameters.json", "config.yaml", "summary.json")
"""Written anew for the upload, out of the run's own."""

_WITH_PATHS = frozenset(
    {"adapter_config.json", "base.json", "fuse.json", "narrative.json", "config.json", "tokenizer_config.json"}
)
_ASKED = frozenset({"prompt", "question", "answers", "classes"})
"""Texts that a model is asked in, whatever they look like."""
_EARLIER_STAGES = {
    "model.clinical_adapter": "adapters/clinical",
    "encoder.pretrained": "",
    "structured.pretrained": "",
    "behrt.pretrained": "",
    "exmed.pretrained": "",
}
"""Keys that name what a run began with, which it has in itself since, and where."""


@dataclass(frozen=True)
class Upload:
    """A folder as it would be uploaded.

    folder: laid out like a run directory. n_codes_left_out: codes of the code book that too few train subjects have.
    overrides: what `predict` needs beside the folder's config.yaml, by key, paths below the folder.
    """

    folder: Path
    config: dict[str, Any]
    n_codes_left_out: int
    overrides: dict[str, str]


def gather(
    run: RunDirectory, config: dict[str, Any], folder: Path, *, fused: str | None, with_vocabulary: bool
) -> Upload:
    """Copy what may leave into `folder`, new or empty. fused: the mode of a fused adapter, in place of the adapters.

    config: as `config_of` gives it.
    with_vocabulary: with codes, texts and value classes that fewer than 10 train subjects have. Raises InputError where
    there is no model, or one that cannot go without them.
    """
    room = _room(run, fused)
    files = allowed_files(run.path / room)
    if not any(file.suffix == ".safetensors" for file in files):
        raise refuse(str(run.path), f"{room}/ holds no weights", "name a finished run with a model or an adapter")
    common = None if with_vocabulary else _common_codes(run, files)
    left_out = 0
    for file in files:
        target = folder / file.relative_to(run.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if common is not None and file.name in _CUT:
            left_out += _CUT[file.name](file, target, common)
        elif file.name in _WITH_PATHS:
            target.write_text(json.dumps(without_paths(json.loads(file.read_text())), indent=2), encoding="utf-8")
        else:
            shutil.copyfile(file, target)
    overrides = _write_record(run, config, folder)
    if fused is not None:
        overrides["model.fused"] = room
    return Upload(folder, config, left_out, overrides)


def allowed_files(room: Path) -> list[Path]:
    """The files below a run's `adapters`, `model` or `fused/<mode>` that the allow-list names; no links."""
    kind = "fused" if room.parent.name == "fused" else room.name
    patterns = [re.compile(pattern) for pattern in ALLOWED[kind]]
    found = sorted(file for file in room.rglob("*") if file.is_file() and not file.is_symlink())
    return [file for file in found if any(p.fullmatch(file.relative_to(room).as_posix()) for p in patterns)]


def without_paths(content: Any) -> Any:
    """Plain JSON with each text that is a path of this machine cut to its last part; hub names and prompts stay."""
    if isinstance(content, Mapping):
        return {key: value if key in _ASKED else without_paths(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_paths(item) for item in content]
    return _name_of(content) if isinstance(content, str) and is_path(content) else content


def is_path(text: str) -> bool:
    """Whether a text names a place on a disk, as far as can be seen."""
    if "\n" in text or len(text) > 1000 or not text.strip():
        return False
    return text.startswith(("/", "~/", "./", "../")) or ("/" in text and Path(text).exists())


def _name_of(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def config_of(run: RunDirectory) -> dict[str, Any]:
    """The resolved config of a finished run. Raises InputError where there is none, and for a benchmark."""
    if not run.finished or not run.config.is_file():
        raise refuse(str(run.path), "holds no finished run", "name the directory of a finished run of `train`")
    loaded: Any = OmegaConf.to_container(OmegaConf.load(run.config))
    if loaded.get("benchmark", {}).get("arms"):
        what = "is a benchmark, which has no model of its own"
        raise refuse(str(run.path), what, "train the arm that you choose as a run of its own, and push that")
    return loaded


def _room(run: RunDirectory, fused: str | None) -> str:
    """The folder of the run that holds the model."""
    if fused is not None:
        room = f"fused/{fused.replace(':', '-')}"
        if not (run.path / room / "fuse.json").is_file():
            raise refuse("--fused", f"{run.path} holds no {room}", "fuse the run's adapters first: `epicrisis fuse`")
        return room
    if (run.path / "arm.json").is_file():
        what = "counts and trees are not uploaded: their thresholds are values of single patients"
        raise refuse(str(run.path), what, "fit it again where it is needed, from its config.yaml")
    return "model" if (run.path / "model").is_dir() else "adapters"


def _common_codes(run: RunDirectory, files: list[Path]) -> set[str] | None:
    """The codes that enough train subjects have; None where no file names codes."""
    names = {file.name for file in files}
    if "numbers.json" in names:
        what = "the scales of measured numbers name phrases that few train subjects have"
        raise refuse("--with_vocabulary", what, "look through model/numbers.json, then give --with_vocabulary")
    if "vocabulary.json" in names:
        what = (
            "the tokenizer names codes, and texts, of few train subjects (structured.tokenizer.min_subjects, "
            "and every code that a parent stands for), and the model cannot be used without it"
        )
        raise refuse("--with_vocabulary", what, "look through model/tokenizer/, then give --with_vocabulary")
    if "book.parquet" not in names:
        return None
    prepared = Prepared(run.path)
    if not any((run.path / "coverage").glob("*.codes.parquet")):
        what = "the run did not count how many train subjects have each code of its code book"
        raise refuse("--with_vocabulary", what, "look through narrator/book.parquet, then give --with_vocabulary")
    counts = (
        prepared.coverage().codes.filter(pl.col("split") == "train").group_by("code").agg(pl.col("n_subjects").sum())
    )
    return set(counts.filter(pl.col("n_subjects") >= FEWEST_SUBJECTS)["code"].to_list())


def _cut_book(source: Path, target: Path, common: set[str]) -> int:
    terms, told = pl.read_parquet(source), pl.read_parquet_metadata(source)
    kept = terms.filter(pl.col("code").is_in(sorted(common)))
    with replacing(target) as part:
        kept.write_parquet(part, compression="zstd", metadata={"style": told["style"]})
    return terms.height - kept.height


def _cut_classes(source: Path, target: Path, common: set[str]) -> int:
    tree = json.loads(source.read_text(encoding="utf-8"))
    tree["classes"] = [line for line in tree["classes"] if line["code"] in common]
    target.write_text(json.dumps(tree), encoding="utf-8")
    return 0


_CUT = {"book.parquet": _cut_book, "classes.json": _cut_classes}


def _write_record(run: RunDirectory, config: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write RECORD; gives the overrides that stand for paths which a model needs."""
    upload = RunDirectory(folder)
    kept = hyperparameters(config)
    sizes = run.read_json(run.hyperparameters.name)
    kept |= {name: sizes[name] for name in (PARAMETERS, TRAINED) if name in sizes}
    upload.write_json(RECORD[0], without_paths(kept))
    own = {key: value for key, value in kept.items() if key not in (PARAMETERS, TRAINED)}
    overrides = {}
    for key, place in _EARLIER_STAGES.items():
        section, name = key.split(".")
        if own.get(section, {}).get(name) is not None:
            overrides[key] = place
    with replacing(folder / RECORD[1]) as part:
        part.write_text(OmegaConf.to_yaml(OmegaConf.create(_without_path_keys(own))), encoding="utf-8")
    upload.write_json(RECORD[2], public_summary(run))
    return overrides


def _without_path_keys(sections: dict[str, Any]) -> dict[str, Any]:
    """The sections without keys that name a file or folder; of a base in a folder its name stays."""
    found: dict[str, Any] = {}
    for name, section in sections.items():
        if not isinstance(section, dict):
            found[name] = section
            continue
        kind: Any = Settings.model_fields[name].annotation
        paths = {
            key for key, field in kind.model_fields.items() if Path in (field.annotation, *get_args(field.annotation))
        }
        found[name] = {key: value for key, value in section.items() if key not in paths}
        if name == "model":
            found[name]["model_name"] = without_paths(section["model_name"])
    return found


def public_summary(run: RunDirectory) -> dict[str, Any]:
    """The run's figures: what was judged, on how many, with what outcome; small counts are left out."""
    summary, metadata = run.read_json(run.summary.name), run.read_json(run.metadata.name)
    told = {key: metadata.get(key) for key in ("arm", "stage", "version")}
    told |= {key: summary.get(key, metadata.get(key)) for key in ("dataset", "task")}
    counts = {key: summary.get(key) for key in ("n", "n_subjects", "n_positive")}
    told |= {key: value for key, value in counts.items() if value is not None and value >= FEWEST_SUBJECTS}
    ended_with = summary.get("metrics", {})
    return {**told, "metrics": {name: value for name, value in ended_with.items() if ":" not in name}}


def refuse_filled(folder: Path, where: str) -> None:
    """Raise InputError unless the folder is new or empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError([Problem(where, f"{folder} already holds something", "name a new or empty folder")])
