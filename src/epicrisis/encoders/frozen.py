"""The arm `frozen_encoder`: narratives embedded by an encoder that learns nothing, a linear head on their vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from accelerate import Accelerator
from safetensors.numpy import load_file, save_file

from epicrisis.cohort import History
from epicrisis.cohort.task import classes_of_labels, label_matrix
from epicrisis.corpus.prepare import Prepared
from epicrisis.corpus.run_narratives import NARRATOR, Run, check_telling, keys_of, prepare_once
from epicrisis.encoders.arm import FOLDER, in_order, targets_of
from epicrisis.encoders.classifier import RecordEncoder
from epicrisis.encoders.embeddings import Embedded, embed_narratives, ids_fingerprint
from epicrisis.encoders.linear import LinearHead, fit_head
from epicrisis.encoders.narratives import Told, tell_as_saved, tell_for_fit
from epicrisis.encoders.saving import check_saved, read_about, write_about
from epicrisis.encoders.text_encoder import load_encoder, weights_fingerprint
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings, refuse
from epicrisis.tracking.progress import say
from epicrisis.training.device import compute_dtype, make_accelerator
from epicrisis.training.outcome import ClassOutcome, Outcome, load_outcome, outcome_for

DECISIVE = ("pooling", "long", "max_chunks", "chunk_pooling")


@dataclass(frozen=True)
class Embedder:
    """A frozen encoder and how records are laid before it. base: a hash of its weights; width: of vectors."""

    settings: Settings
    told: Told
    module: RecordEncoder
    accelerator: Accelerator
    base: str
    width: int

    @classmethod
    def of(cls, settings: Settings, told: Told, accelerator: Accelerator) -> Embedder:
        """For these narratives."""
        encoder = load_encoder(told.source, settings, accelerator).requires_grad_(False)
        base = weights_fingerprint(encoder)
        module = RecordEncoder(encoder, settings.encoder, compute_dtype(settings.training)).eval()
        return cls(settings, told, module, accelerator, base, int(encoder.config.hidden_size))

    def vectors(self, prepared: Prepared, split: str, directory: Path) -> tuple[pl.DataFrame, np.ndarray]:
        """Keys and vectors [n, hidden] of a split's narratives; kept in `directory`/embeddings."""
        tokens = prepared.tokens(split)
        narratives = tokens["input_ids"]
        keys = [ids_fingerprint(ids) for ids in narratives]
        kept = self._kept(directory)
        at_once = self.settings.encoder.embedding_batch

        def embed(places: list[int]) -> np.ndarray:
            missing = [narratives[place] for place in places]
            return embed_narratives(self.module, missing, self.told.reading, at_once, self.accelerator)

        return keys_of(tokens), kept.of(keys, embed, write=self.accelerator.is_main_process)

    def _kept(self, directory: Path) -> Embedded:
        encoding, reading = self.settings.encoder, self.told.reading
        parts = [self.base[:12], encoding.pooling, str(reading.room)]
        parts += [f"{reading.most}{encoding.chunk_pooling}"] if reading.most > 1 else []
        file = directory / "embeddings" / f"{'-'.join(parts)}.safetensors"
        return Embedded(file, self.width)


@dataclass
class FittedFrozen:
    """A linear head on a frozen encoder."""

    embedder: Embedder
    head: LinearHead
    outcome: Outcome
    directory: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """The task's classes, in the order of the probabilities."""
        return self.outcome.columns

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """Probabilities [n_rows, n_classes] in the order of `rows` and of the task's classes."""
        settings, telling = self.embedder.settings, self.embedder.told.telling
        prepared = prepare_once(settings, rows, history, telling, self.directory / "judged", self.embedder.accelerator)
        ordered = []
        for split in sorted(rows["split"].unique()):
            keys, vectors = self.embedder.vectors(prepared, split, self.directory)
            scores = self.outcome.predictions(self.head.logits(vectors))
            ordered.append(keys.with_columns(scores=pl.Series(scores.tolist())))
        return in_order(rows, pl.concat(ordered))

    def save(self, directory: Path) -> None:
        """The head, and what it goes with; the encoder itself is not changed and not written."""
        folder, telling = directory / FOLDER, self.embedder.told.telling
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.head.arrays(), folder / "head.safetensors")
        telling.narrator.save(folder / NARRATOR)
        about = {**self.outcome.saved(), **telling.inputs(), "base": self.embedder.base}
        write_about(folder, about, self.embedder.settings, DECISIVE)


class FrozenEncoderArm:
    """`arm: frozen_encoder`."""

    def __init__(self, settings: Settings, lookups: Lookups):
        self._settings = settings
        self._lookups = lookups

    def fit(self, rows: pl.DataFrame, history: History, run: Run) -> FittedFrozen:
        """Embed train and tuning, fit on train, choose the penalty on tuning."""
        settings = self._settings
        accelerator = make_accelerator(settings.training)
        outcome = _classes(settings, rows)
        told = tell_for_fit(settings, self._lookups, rows, history, run.dir, accelerator)
        embedder = Embedder.of(settings, told, accelerator)
        prepared = prepare_once(settings, rows, history, told.telling, run.dir, accelerator)
        vectors, targets = {}, {}
        for split in ("train", "tuning"):
            keys, vectors[split] = embedder.vectors(prepared, split, run.dir)
            targets[split] = targets_of(outcome, keys, rows)
        metric = settings.training.metric_for_best
        head, tried = fit_head(vectors, targets, outcome, metric=metric, seed=settings.training.seed)
        if accelerator.is_main_process:
            run.log(arm="frozen_encoder", n_train=len(vectors["train"]), tuning_by_C=tried)
            say(f"classify: tuning {metric} by C: {', '.join(f'{c} {m[metric]:.4f}' for c, m in tried.items())}")
        return FittedFrozen(embedder, head, outcome, run.dir)

    def load(self, directory: Path) -> FittedFrozen:
        """A saved head on its encoder. InputError where the settings are not those that it was fitted with."""
        settings, folder = self._settings, directory / FOLDER
        accelerator = make_accelerator(settings.training)
        about = read_about(folder, settings, DECISIVE)
        told = tell_as_saved(settings, self._lookups, folder, accelerator)
        check_telling(about, told.telling)
        embedder = Embedder.of(settings, told, accelerator)
        check_saved("model.model_name", about["base"], embedder.base)
        head = LinearHead.of(load_file(folder / "head.safetensors"))
        return FittedFrozen(embedder, head, load_outcome(about, settings), directory)


def frozen_encoder(settings: Settings, lookups: Lookups) -> FrozenEncoderArm:
    """The arm of these settings."""
    return FrozenEncoderArm(settings, lookups)


def _classes(settings: Settings, rows: pl.DataFrame) -> ClassOutcome:
    """The classes of these rows; InputError for times to an event, and for a class that no train row has."""
    has = label_matrix(rows.filter(pl.col("split") == "train"), classes_of_labels(rows))
    unseen = [name for name in has.columns if not has[name].any()]
    if unseen:
        fix = "join these classes with others, or leave their rows out"
        raise refuse("data.labels_dir", f"no train row has {', '.join(unseen)}", fix)
    outcome = outcome_for(settings, rows)
    assert isinstance(outcome, ClassOutcome)
    return outcome
