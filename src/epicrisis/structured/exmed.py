"""The arm `exmed_bert`: as BEHRT, and each code with its kind, each record with sex and region.

Source: Lentzen et al. 2023, A transformer-based model trained on large scale claims data for prediction of severe
COVID-19 disease progression (IEEE J Biomed Health Inform 27:4548).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import torch
from torch import nn

from epicrisis.cohort import History
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings
from epicrisis.settings.embedded_codes_section import ExmedSettings
from epicrisis.structured.age_visit_arm import READING_SIZE, AgeVisitArm, Objective, Run
from epicrisis.structured.age_visit_lessons import MaskedLesson
from epicrisis.structured.age_visit_model import AgeVisitBody, BodyShape, freeze_tables
from epicrisis.structured.age_visit_pretraining import MaskedCodes, masked_metrics
from epicrisis.structured.age_visit_reading import Reader
from epicrisis.structured.behrt import refuse_empty, refuse_uneven
from epicrisis.structured.coding import split_of
from epicrisis.structured.exmed_heads import make_head
from epicrisis.structured.exmed_people import ENTITIES, N_SEXES, entities_of
from epicrisis.structured.exmed_plos import (
    MaskedCodesAndStay,
    StayLesson,
    longest_stays,
    refuse_constant,
    stay_metrics,
)

PRESETS = {
    "tiny": {"hidden": 32, "layers": 1, "heads": 1, "intermediate": 64},
    "small": {"hidden": 64, "layers": 2, "heads": 2, "intermediate": 128},
    "medium": {"hidden": 128, "layers": 4, "heads": 4, "intermediate": 256},
    "large": {"hidden": 288, "layers": 6, "heads": 6, "intermediate": 576},
}
"""By `exmed.preset`."""
_INITIAL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "orthogonal": nn.init.orthogonal_,
    "xavier": nn.init.xavier_uniform_,
    "kaiming": nn.init.kaiming_uniform_,
}


class ExmedArm(AgeVisitArm):
    """See the module."""

    section = "exmed"
    persons = True
    keys: ExmedSettings

    def shape(self, n_regions: int) -> BodyShape:
        return exmed_shape(self.keys, n_regions)

    def entities(self, tokens: tuple[str, ...]) -> np.ndarray | None:
        return entities_of(tokens, self.lookups)

    def head(self, shape: BodyShape, n_outputs: int) -> nn.Module:
        return make_head(self.keys.head, shape, n_outputs)

    def initialise(self, body: AgeVisitBody) -> None:
        for module in body.layers.modules():
            if isinstance(module, nn.Linear):
                _INITIAL[self.keys.initialization](module.weight)

    def prepare(self, body: AgeVisitBody, *, pretrained: bool) -> None:
        if pretrained and self.keys.freeze_embeddings:
            freeze_tables(body)

    def objective(
        self, body: AgeVisitBody, reader: Reader, rows: pl.DataFrame, history: History, run: Run
    ) -> Objective:
        keys, n_codes, accelerator = self.keys, len(reader.tokens), reader.coder.accelerator
        splits = {split: split_of(rows, split) for split in ("train", "tuning")}
        train, tuning = (
            reader.read(own, history, body.shape, run.dir / "sequences" / split) for split, own in splits.items()
        )
        watched = MaskedLesson(tuning, n_codes, keys.mask_share)
        refuse_empty(watched.n_items, "any known code")
        if not keys.plos_weight:
            masked = MaskedLesson(train, n_codes, keys.mask_share, dynamic=keys.dynamic_masking)
            return Objective(MaskedCodes(body), masked, lambda m: masked_metrics(m, watched, READING_SIZE, accelerator))
        of_train, of_tuning = (
            longest_stays(own, replace(history, rows=own), self.lookups) > keys.plos_days for own in splits.values()
        )
        refuse_constant(of_train, keys.plos_days)
        weight, dynamic = keys.plos_weight, keys.dynamic_masking
        lesson = StayLesson(train, n_codes, keys.mask_share, labels=of_train, weight=weight, dynamic=dynamic)
        stays = StayLesson(tuning, n_codes, keys.mask_share, labels=of_tuning, weight=weight)
        return Objective(MaskedCodesAndStay(body), lesson, lambda m: stay_metrics(m, stays, READING_SIZE, accelerator))


def exmed_shape(keys: ExmedSettings, n_regions: int) -> BodyShape:
    """What the settings come to. InputError where the heads do not divide the width."""
    preset = PRESETS[keys.preset]
    hidden = keys.hidden_size or preset["hidden"]
    shape = BodyShape(
        embedding=hidden,
        hidden=hidden,
        layers=keys.num_hidden_layers or preset["layers"],
        heads=keys.num_attention_heads or preset["heads"],
        intermediate=keys.intermediate_size or preset["intermediate"],
        max_length=keys.max_length,
        age_unit=keys.age_unit,
        dropout=keys.dropout,
        n_entities=len(ENTITIES),
        n_sexes=N_SEXES,
        n_regions=n_regions,
    )
    refuse_uneven(shape, "exmed")
    return shape


def exmed_bert(settings: Settings, lookups: Lookups) -> ExmedArm:
    """The arm of these settings."""
    arm = ExmedArm(settings, lookups)
    arm.shape(1)
    return arm


def pretrain(settings: Settings, lookups: Lookups, rows: pl.DataFrame, history: History, run: Run) -> dict[str, float]:
    """Pretrain an ExMed-BERT; see AgeVisitArm.pretrain."""
    return exmed_bert(settings, lookups).pretrain(rows, history, run)
