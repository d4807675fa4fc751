"""The vectors of events' phrases: each distinct one read once by a frozen text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from epicrisis.encoders.classifier import RecordEncoder
from epicrisis.encoders.embeddings import Embedded, embed_narratives, ids_fingerprint, phrase_ids
from epicrisis.encoders.text_encoder import (
    check_encoder,
    encoder_source,
    load_encoder,
    load_tokenizer,
    positions_of,
    weights_fingerprint,
)
from epicrisis.encoders.windows import Reading, frame_of
from epicrisis.settings import Settings
from epicrisis.training.device import compute_dtype


@dataclass(frozen=True)
class PhraseVectors:
    """A frozen encoder of phrases, averaged over tokens. base: a hash of its weights. width: of the vectors."""

    module: RecordEncoder
    tokenizer: object
    reading: Reading
    accelerator: Accelerator
    at_once: int
    base: str
    width: int

    @classmethod
    def of(cls, settings: Settings, accelerator: Accelerator) -> PhraseVectors:
        """The encoder that model.model_name names."""
        source = encoder_source(settings, accelerator)
        config, tokenizer = check_encoder(source), load_tokenizer(source)
        frame = frame_of(tokenizer)
        length = min(settings.model.max_length, positions_of(config) or settings.model.max_length)
        encoder = load_encoder(source, settings, accelerator).requires_grad_(False)
        averaged = settings.encoder.model_copy(update={"pooling": "mean"})
        module = RecordEncoder(encoder, averaged, compute_dtype(settings.training)).eval()
        at_once, base = settings.encoder.embedding_batch, weights_fingerprint(encoder)
        reading = Reading(frame, length - frame.n_tokens)
        return cls(module, tokenizer, reading, accelerator, at_once, base, int(encoder.config.hidden_size))

    def vectors(self, texts: tuple[str, ...], directory: Path) -> np.ndarray:
        """float32 [n_texts, d]; kept in `directory`/embeddings, so that no phrase is read twice."""
        ids = phrase_ids(self.tokenizer, texts, self.reading)  # type: ignore[arg-type]
        file = directory / "embeddings" / f"phrases-{self.base[:12]}.safetensors"
        kept = Embedded(file, self.width)

        def embed(places: list[int]) -> np.ndarray:
            some = [ids[place] for place in places]
            return embed_narratives(self.module, some, self.reading, self.at_once, self.accelerator)

        return kept.of([ids_fingerprint(one) for one in ids], embed, write=self.accelerator.is_main_process)
