"""All that a fitted tokenizer knows, and how it is stored."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from tokenizers import Tokenizer

from epicrisis.narrative.patterns import Pattern, match_codes
from epicrisis.settings.problems import refuse
from epicrisis.settings.tokenizer_section import TokenizerSettings
from epicrisis.structured.tokenizers.codes import PARENTS, names_of
from epicrisis.structured.tokenizers.counting import FITTED_ON
from epicrisis.structured.tokenizers.kinds import KINDS
from epicrisis.structured.tokenizers.manner import Manner, decided
from epicrisis.structured.tokenizers.values import BINS
from epicrisis.structured.vocabulary import Vocabulary
from epicrisis.tracking.run_directory import replacing

Schema = dict[str, pl.DataType | type[pl.DataType]]
IDS: Schema = {"name": pl.String, "id": pl.Int32}
BIN_TOKENS: Schema = {**BINS, "tokens": pl.List(pl.Int32)}
TEXT_TOKENS: Schema = {"code": pl.String, "text": pl.String, "token": pl.Int32}
PHRASES: Schema = {"code": pl.String, "phrase": pl.String}
SCHEMAS: dict[str, Schema] = {
    "names": IDS,
    "parents": PARENTS,
    "bins": BIN_TOKENS,
    "texts": TEXT_TOKENS,
    "phrases": PHRASES,
}

FILES = ("tokenizer.json", "vocabulary.json", "word_pieces.json")


@dataclass(frozen=True)
class Fitted:
    """What was fitted on train."""

    settings: TokenizerSettings
    patterns: tuple[Pattern, ...]
    """How codes are taken apart, as it was when the tokenizer was fitted."""
    vocabulary: Vocabulary
    names: pl.DataFrame
    """name · id of the codes, levels and parents that have a token."""
    parents: pl.DataFrame
    """code · name: what stands for codes that have none."""
    bins: pl.DataFrame
    """code · unit? · starts · quantiles · tokens, see `fit_bins`; a bin without a token has -1."""
    texts: pl.DataFrame
    """code · text · token."""
    phrases: pl.DataFrame
    """code · phrase, where codes are told in words."""
    word_pieces: Tokenizer | None = None
    fitted_on: str = FITTED_ON

    @cached_property
    def manner(self) -> Manner:
        """The kind, as the settings have it."""
        return decided(KINDS[self.settings.kind], self.settings)

    def named(self, codes: pl.Series) -> pl.DataFrame:
        """code · vocabulary · names of distinct codes, see `names_of`."""
        return names_of(match_codes(codes.unique(maintain_order=True), self.patterns), self.manner.code_levels)

    def save(self, directory: Path) -> None:
        """tokenizer.json, vocabulary.json, and word_pieces.json where there are any."""
        directory.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"label": self.manner.label, "fitted_on": self.fitted_on}
        # Defaults may change: what was decided is written out, but only what was said is said again.
        content["settings"] = self.settings.model_dump(mode="json", exclude_unset=True)
        content["decided"] = self.settings.model_dump(mode="json")
        content["patterns"] = [asdict(pattern) for pattern in self.patterns]
        content |= {name: getattr(self, name).to_dict(as_series=False) for name in SCHEMAS}
        with replacing(directory / FILES[0]) as part:
            part.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
        self.vocabulary.save(directory / FILES[1])
        if self.word_pieces is not None:
            with replacing(directory / FILES[2]) as part:
                self.word_pieces.save(str(part))

    @classmethod
    def load(cls, directory: Path) -> Fitted:
        """What `save` wrote. Raises InputError where it is missing, broken, or of another version."""
        path, fix = directory / FILES[0], "point at a folder that a tokenizer was saved in, or fit it again"
        if not path.is_file():
            raise refuse(str(path), "there is no tokenizer here", fix)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            settings = TokenizerSettings.model_validate(content["settings"])
            patterns = tuple(Pattern(**pattern) for pattern in content["patterns"])
            tables = {name: pl.DataFrame(content[name], schema=schema) for name, schema in SCHEMAS.items()}
        except (ValueError, TypeError, KeyError, pl.exceptions.PolarsError) as error:
            raise refuse(str(path), f"is no tokenizer ({type(error).__name__})", fix) from None
        label = KINDS[settings.kind].label
        if content["label"] != label or content["decided"] != settings.model_dump(mode="json"):
            what = f"was made by {content['label']} or by other defaults; this version has {label}"
            raise refuse(str(path), what, "fit the tokenizer again, with all that is trained on its tokens")
        words = directory / FILES[2]
        pieces = Tokenizer.from_file(str(words)) if KINDS[settings.kind].words else None
        vocabulary = Vocabulary.load(directory / FILES[1])
        return cls(settings, patterns, vocabulary, **tables, word_pieces=pieces, fitted_on=content["fitted_on"])
