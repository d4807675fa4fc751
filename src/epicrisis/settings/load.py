"""One YAML file and dotted overrides become one frozen Settings, or one error that names every problem."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from epicrisis.settings.checks import combination_problems, missing_file_problems
from epicrisis.settings.problems import InputError, Problem, refuse
from epicrisis.settings.schema import Settings


def load_settings(config_filepath: Path | None, overrides: Sequence[str] = (), *, check_files: bool = True) -> Settings:
    """Read a config file, lay the overrides (`a.b=c` or `--a.b=c`) over it, validate everything.

    Raises InputError with all problems: unknown keys, wrong types, missing files, impossible combinations.
    """
    tree = read_yaml(config_filepath) if config_filepath else {}
    return settings_from(merge(tree, parse_overrides(overrides)), check_files=check_files)


def settings_from(tree: dict[str, Any], *, check_files: bool = True) -> Settings:
    """Validate a plain tree of keys; see load_settings."""
    tree = _with_arm_and_stage(tree)
    problems: list[Problem] = []
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        details = error.errors()
        problems += _explain_all(details)
        # what is sound is judged too, with defaults in place of the rest, so that all problems are told at once
        settings = Settings.model_validate(_without(tree, [_key_of(detail["loc"]) for detail in details]))
    problems += combination_problems(settings)
    if check_files:
        problems += missing_file_problems(settings)
    if problems:
        raise InputError(problems)
    return settings


def read_yaml(path: Path) -> dict[str, Any]:
    """The file as a plain tree, `${...}` left as written; InputError where it is missing, broken, or no mapping."""
    if not path.is_file():
        raise refuse(str(path), "there is no such config file", "check --config_filepath")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise refuse(str(path), f"is not valid YAML ({reason})", "mend the line named there") from None
    if not isinstance(tree, dict):
        raise refuse(str(path), "holds no mapping of sections", "write `section:` and keys under it")
    return {str(key): value for key, value in tree.items()}


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Dotted overrides as a tree; InputError lists the arguments that are none."""
    arguments = [argument.removeprefix("--") for argument in overrides]
    bad = [argument for argument in arguments if "=" not in argument or argument.startswith("=")]
    if bad:
        raise InputError([Problem(a, "is not an override", "write it as section.key=value") for a in bad])
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(arguments))  # type: ignore[return-value]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise refuse("overrides", reason, "write each as section.key=value") from None


def merge(tree: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`overrides` laid over `tree`, section by section; lists are replaced whole.

    `${section.key}` stands for that key's value after the overrides. Raises InputError where there is none.
    """
    try:
        return OmegaConf.to_container(OmegaConf.merge(tree, overrides), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        where, reason = error.full_key or "config", str(error).partition("\n")[0]
        raise refuse(where, reason, "mend its `${...}`, or write the value itself") from None


def _with_arm_and_stage(tree: dict[str, Any]) -> dict[str, Any]:
    """Fill `arm` and `stage` in as the text pipeline's files imply them: they have neither key."""
    model = tree.get("model") or {}
    has_classes = isinstance(model, dict) and model.get("num_classes") is not None
    arm = tree.get("arm") or ("encoder" if has_classes and "lora" not in tree else "llm")
    default_stage = "pretrain" if arm == "llm" and not has_classes else "classify"
    return {**tree, "arm": arm, "stage": tree.get("stage") or default_stage}


def _explain_all(details: Sequence[Any]) -> list[Problem]:
    """One problem per key, though a key that admits several types is reported once for each of them."""
    by_key: dict[tuple[int | str, ...], list[Any]] = {}
    for detail in details:
        by_key.setdefault(_key_of(detail["loc"]), []).append(detail)
    return [_explain(key, same) for key, same in by_key.items()]


def _explain(key: tuple[int | str, ...], details: Sequence[Any]) -> Problem:
    where = ".".join(map(str, key))
    if details[0]["type"] == "extra_forbidden":
        return Problem(where, "is no key of a config", _nearest_key(key))
    messages = dict.fromkeys(detail["msg"][0].lower() + detail["msg"][1:] for detail in details)
    given = details[0].get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    if isinstance(given, bool) and details[0]["type"] == "string_type":
        what = f"should be text, and YAML reads an unquoted no or yes as {given}"
        return Problem(where, what, "put quotes around it: ['no', 'yes']")
    return Problem(where, f"{', or '.join(messages)}{shown}", f"see {_section_of(where)}")


def _key_of(loc: Sequence[int | str]) -> tuple[int | str, ...]:
    """The key that an error is about: `loc` goes deeper, into the items and the admitted types of its value."""
    section: type[BaseModel] = Settings
    for depth, part in enumerate(loc, start=1):
        if isinstance(part, int):  # of a list of sections
            continue
        field = section.model_fields.get(part)
        inner = None if field is None else _section_in(field.annotation)
        if inner is None:
            return tuple(loc[:depth])
        section = inner
    return tuple(loc)


def _without(tree: dict[str, Any], keys: Sequence[tuple[int | str, ...]]) -> dict[str, Any]:
    """The tree without these keys of its sections (or whole sections); an item of a list takes the list along."""
    sound = {name: dict(part) if isinstance(part, dict) else part for name, part in tree.items()}
    for section, *rest in keys:
        if rest and isinstance(sound.get(str(section)), dict):
            sound[str(section)].pop(str(rest[0]), None)
        else:
            sound.pop(str(section), None)
    return sound


def _section_of(where: str) -> str:
    return f"`{where.split('.')[0]}` in src/epicrisis/settings/schema.py or docs/configuration.md"


def _nearest_key(loc: Sequence[int | str]) -> str:
    section: type[BaseModel] = Settings
    for part in (name for name in loc[:-1] if isinstance(name, str)):
        section = _section_in(section.model_fields[part].annotation) or section
    known = list(section.model_fields)
    near = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, or a list of them; None for a plain value."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
