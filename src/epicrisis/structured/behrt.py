"""The arm `behrt`: codes, ages, visits and their sides added up, BERT's layers over them.

Source: Li et al. 2020, BEHRT: transformer for electronic health records (arXiv:1907.09538), with its two objectives,
masked codes and the codes of the next visit.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from torch import nn

from epicrisis.cohort import History
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings, refuse
from epicrisis.settings.embedded_codes_section import BehrtSettings
from epicrisis.structured.age_visit_arm import READING_SIZE, AgeVisitArm, Objective, Run
from epicrisis.structured.age_visit_lessons import MaskedLesson, NextVisitLesson
from epicrisis.structured.age_visit_model import AgeVisitBody, BodyShape, RecordHead, freeze_tables
from epicrisis.structured.age_visit_pretraining import MaskedCodes, NextVisitCodes, masked_metrics, next_visit_metrics
from epicrisis.structured.age_visit_reading import Reader
from epicrisis.structured.behrt_lora import add_lora
from epicrisis.structured.clinvec import InitialVectors, from_file
from epicrisis.structured.coding import split_of

SIZES = {
    "small": {"embedding": 64, "hidden": 128, "layers": 2, "heads": 4, "intermediate": 512, "max_length": 50},
    "medium": {"embedding": 128, "hidden": 256, "layers": 4, "heads": 8, "intermediate": 512, "max_length": 100},
    "large": {"embedding": 256, "hidden": 512, "layers": 6, "heads": 8, "intermediate": 1024, "max_length": 200},
}
"""By `behrt.size`; with 1,000 codes about 0.6, 2.7 and 13.5 million weights."""


class BehrtArm(AgeVisitArm):
    """See the module."""

    section = "behrt"
    persons = False
    keys: BehrtSettings

    def shape(self, n_regions: int) -> BodyShape:
        return behrt_shape(self.keys)

    def entities(self, tokens: tuple[str, ...]) -> np.ndarray | None:
        return None

    def head(self, shape: BodyShape, n_outputs: int) -> nn.Module:
        return RecordHead(shape, n_outputs)

    def begun(self, tokens: tuple[str, ...], n_dims: int) -> InitialVectors | None:
        path, settings = self.keys.embedding_path, self.settings
        if path is None:
            return super().begun(tokens, n_dims)
        return from_file(tokens, n_dims, path, method=settings.clinvec.resize, seed=settings.training.seed)

    def frozen_codes(self) -> bool:
        return self.keys.freeze_embeddings if self.keys.embedding_path else super().frozen_codes()

    def prepare(self, body: AgeVisitBody, *, pretrained: bool) -> None:
        if pretrained and self.keys.freeze_embeddings:
            freeze_tables(body)
        if self.keys.lora_rank is not None:
            add_lora(body.layers, self.keys)

    def objective(
        self, body: AgeVisitBody, reader: Reader, rows: pl.DataFrame, history: History, run: Run
    ) -> Objective:
        splits = {split: split_of(rows, split) for split in ("train", "tuning")}
        whole, n_codes = self.keys.objective == "next_visit", len(reader.tokens)
        train, tuning = (
            reader.read(own, history, body.shape, run.dir / "sequences" / split, whole=whole)
            for split, own in splits.items()
        )
        accelerator = reader.coder.accelerator
        if whole:
            visits = NextVisitLesson(tuning, n_codes)
            refuse_empty(visits.n_items, "two visits with known codes")
            module = NextVisitCodes(body)
            lesson = NextVisitLesson(train, n_codes)
            return Objective(module, lesson, lambda m: next_visit_metrics(m, visits, READING_SIZE, accelerator))
        watched = MaskedLesson(tuning, n_codes, self.keys.mask_share)
        refuse_empty(watched.n_items, "any known code")
        masked = MaskedLesson(train, n_codes, self.keys.mask_share)
        return Objective(MaskedCodes(body), masked, lambda m: masked_metrics(m, watched, READING_SIZE, accelerator))


def behrt_shape(keys: BehrtSettings) -> BodyShape:
    """What the settings come to. InputError where the heads do not divide the layers' width."""
    size = SIZES[keys.size]
    shape = BodyShape(
        embedding=keys.embedding_size or size["embedding"],
        hidden=keys.hidden_size or size["hidden"],
        layers=keys.num_hidden_layers or size["layers"],
        heads=keys.num_attention_heads or size["heads"],
        intermediate=keys.intermediate_size or size["intermediate"],
        max_length=keys.max_length or size["max_length"],
        age_unit=keys.age_unit,
        dropout=keys.dropout,
    )
    refuse_uneven(shape, "behrt")
    return shape


def refuse_uneven(shape: BodyShape, section: str) -> None:
    """Raise InputError where heads cannot share the width."""
    if shape.hidden % shape.heads:
        what = f"{shape.heads} heads cannot share a width of {shape.hidden}"
        raise refuse(f"{section}.num_attention_heads", what, "choose a number that divides it")


def refuse_empty(n_items: int, what: str) -> None:
    """Raise InputError where nothing of tuning can be watched."""
    if not n_items:
        raise refuse("data", f"no tuning record has {what}", "give the split tuning more subjects")


def behrt(settings: Settings, lookups: Lookups) -> BehrtArm:
    """The arm of these settings."""
    arm = BehrtArm(settings, lookups)
    arm.shape(0)
    return arm


def pretrain(settings: Settings, lookups: Lookups, rows: pl.DataFrame, history: History, run: Run) -> dict[str, float]:
    """Pretrain a BEHRT; see AgeVisitArm.pretrain."""
    return behrt(settings, lookups).pretrain(rows, history, run)
