"""Every key of a config is explained in the schema, and docs/configuration.md says the same with its default."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from epicrisis.settings import schema
from epicrisis.settings.generation_section import TargetSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def explanations() -> dict[tuple[str, str], str]:
    """(class, key) → the string that stands below the key in schema.py or in the file of its section."""
    found = {}
    files = [Path(schema.__file__), *Path(schema.__file__).parent.glob("*_section.py")]
    for part in (part for file in files for part in ast.parse(file.read_text()).body):
        if not isinstance(part, ast.ClassDef):
            continue
        for key, text in zip(part.body, part.body[1:], strict=False):
            if isinstance(key, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(key.target, ast.Name):
                found[part.name, key.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def keys() -> Iterator[tuple[str, type[BaseModel], str]]:
    """(key as it is written in an override, the class that holds it, its name)."""
    yield from keys_of(schema.Settings)
    for key in schema.ArmSettings.model_fields:
        yield f"benchmark.arms[].{key}", schema.ArmSettings, key
    for key in TargetSettings.model_fields:
        yield f"generation.targets[].{key}", TargetSettings, key


def keys_of(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """The keys of a section and of the sections inside it, which have no line of their own, after its own keys."""
    nested = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            yield prefix + name, section, name
        elif prefix:
            nested[name] = kind
        else:
            yield from keys_of(kind, f"{name}.")
    for name, kind in nested.items():
        yield from keys_of(kind, f"{prefix}{name}.")


def default_text(kind: type[BaseModel], key: str) -> str:
    """The default as the document writes it: YAML, a dash for null."""
    field = kind.model_fields[key]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`".replace("\n", r"\n")


@pytest.mark.parametrize(("written", "kind", "key"), list(keys()), ids=lambda part: part if "." in str(part) else "")
def test_a_key_is_explained_alike_in_the_schema_and_the_document(written: str, kind: type[BaseModel], key: str) -> None:
    explanation = explanations().get((kind.__name__, key))
    assert explanation, f"{written} has no explanation"
    line = f"| `{written}` | {default_text(kind, key)} | {explanation} |"
    assert line in DOCUMENT.read_text().splitlines(), line


def test_the_document_lists_no_key_that_is_none() -> None:
    listed = [line.split("`")[1] for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    assert listed == [written for written, _, _ in keys()]
