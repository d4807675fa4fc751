"""What token ids stand for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from epicrisis.settings.problems import refuse
from epicrisis.tracking.run_directory import replacing

SPECIALS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "[MASK]", "[CLS]", "[SEP]")
"""The first tokens of every vocabulary, ids 0 to 6. Tokenizers write only [UNK]; the others are the models' to set."""

UNKNOWN = SPECIALS.index("[UNK]")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids: `SPECIALS`, then the tokenizer's own, each once."""

    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.tokens[: len(SPECIALS)] != SPECIALS:
            raise ValueError("a vocabulary begins with the special tokens")
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError("a vocabulary holds each token once")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def index(self) -> dict[str, int]:
        """token → id."""
        return {token: place for place, token in enumerate(self.tokens)}

    def id(self, token: str) -> int:
        """The token's id; that of [UNK] where it is not known."""
        return self.index.get(token, UNKNOWN)

    def save(self, path: Path) -> None:
        """Written as JSON, whole or not at all."""
        with replacing(path) as part:
            part.write_text(json.dumps(self.tokens, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """What `save` wrote. Raises InputError where there is none, or it is broken."""
        fix = "point at a folder that a tokenizer was saved in"
        if not path.is_file():
            raise refuse(str(path), "there is no vocabulary here", fix)
        try:
            return cls(tuple(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise refuse(str(path), f"is no vocabulary ({error})", fix) from None
