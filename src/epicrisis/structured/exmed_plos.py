"""Prolonged length of stay: does a record hold a visit longer than so many days? Learnt beside masked codes.

Source: Rasmy et al. 2021, Med-BERT (npj Digital Medicine 4:86), and Lentzen et al. 2023, ExMed-BERT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.metrics import roc_auc_score
from torch import nn

from epicrisis.cohort import History
from epicrisis.narrative import Lookups
from epicrisis.narrative.patterns import match_codes
from epicrisis.settings import refuse
from epicrisis.structured.age_visit_lessons import MaskedLesson
from epicrisis.structured.age_visit_model import AgeVisitBody, RecordHead
from epicrisis.structured.age_visit_pretraining import MaskedCodes, shares
from epicrisis.structured.age_visit_records import AgeVisitBatch, Records
from epicrisis.structured.exmed_people import KEYS
from epicrisis.structured.tokenizers.visits import END, START, roles_of


def longest_stays(rows: pl.DataFrame, history: History, lookups: Lookups) -> np.ndarray:
    """float64 [n_rows]: days of the longest stay that each row sees; 0 where it sees none.

    A stay lasts from an event that starts a visit to the one that ends it, where none other starts or ends one in
    between; one whose end is not seen lasts to the last event before a week without events.
    """
    parts = [
        _stays(_with_roles(events.select(*KEYS, "time", "code").drop_nulls("time").collect(), lookups))
        for _, events in history.shards()
    ]
    nothing = rows.select(KEYS).with_columns(days=pl.lit(0.0)).clear()
    longest = pl.concat([nothing, *parts]).group_by(KEYS).agg(pl.col("days").max())
    found = rows.select(KEYS).join(longest, on=KEYS, how="left", maintain_order="left")
    return found["days"].fill_null(0).to_numpy()


def _with_roles(events: pl.DataFrame, lookups: Lookups) -> pl.DataFrame:
    """subject_id · prediction_time · time · role, in their order."""
    matched = match_codes(events["code"].unique(maintain_order=True), lookups.patterns)
    roles = matched.select("code").with_columns(role=pl.Series(roles_of(matched)))
    return events.join(roles, on="code", how="left", maintain_order="left").drop("code")


def _stays(events: pl.DataFrame) -> pl.DataFrame:
    """subject_id · prediction_time · days, of each stay."""
    marks = events.filter(pl.col("role").is_in([START, END]))
    since = pl.col("time") - pl.col("time").shift().over(KEYS)
    ends_one = (pl.col("role") == END) & (pl.col("role").shift().over(KEYS) == START)
    whole = marks.select(*KEYS, days=pl.when(ends_one).then(_in_days(since))).drop_nulls()
    stay = [*KEYS, "stay"]
    begun = events.with_columns(stay=(pl.col("role") == START).cum_sum().over(KEYS)).filter(pl.col("stay") > 0)
    ended = (pl.col("role") == END).cast(pl.Int32).cum_sum().shift(fill_value=0).over(stay) > 0
    silent = (pl.col("time").diff() > pl.duration(days=7)).fill_null(False).cum_sum().over(stay) > 0
    seen = begun.filter(~ended & ~silent).group_by(stay).agg(since=pl.col("time").max() - pl.col("time").min())
    return pl.concat([whole, seen.select(*KEYS, days=_in_days(pl.col("since")))])


def _in_days(since: pl.Expr) -> pl.Expr:
    return since.dt.total_seconds() / 86_400


def refuse_constant(labels: np.ndarray, days: float) -> None:
    """Raise InputError where the labels of train are all alike: there would be nothing to learn."""
    if len(np.unique(labels)) < 2:
        what = f"{int(labels.sum())} of the {len(labels)} train records hold a visit of more than {days:g} days"
        raise refuse("exmed.plos_days", what, "choose another number of days, or set exmed.plos_weight: 0")


class MaskedCodesAndStay(nn.Module):
    """A body, logits [k, n_codes] of hidden codes, and logits [n] of a prolonged stay."""

    def __init__(self, body: AgeVisitBody):
        super().__init__()
        self.masked = MaskedCodes(body)
        self.stay = RecordHead(body.shape, 1)

    @property
    def body(self) -> AgeVisitBody:
        return self.masked.body

    def forward(self, batch: AgeVisitBatch) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.body(batch)
        return self.masked.of_states(states, batch), self.stay(states, batch.lengths).squeeze(1)


class StayLesson(MaskedLesson):
    """Masked codes, and whether the record holds a prolonged stay.

    The loss is the mean over hidden codes plus `weight` times the mean over records, whatever is computed at once.
    labels: bool [n_rows], of the whole visible records.
    """

    def __init__(
        self,
        records: Records,
        n_codes: int,
        share: float,
        *,
        labels: np.ndarray,
        weight: float,
        dynamic: bool = True,
    ):
        super().__init__(records, n_codes, share, dynamic=dynamic)
        self._labels = torch.from_numpy(labels.astype(np.float32))
        self.weight = weight
        # The loop divides by hidden codes: so many of them there are for each record.
        self._per_record = self.units(range(self.n_items)) / max(self.n_items, 1)

    def stays(self, items: Sequence[int]) -> torch.Tensor:
        """float32 [n]: 1 where the record holds a prolonged stay."""
        return self._labels[torch.from_numpy(self.rows[list(items)])]

    def losses(
        self, module: nn.Module, batch: AgeVisitBatch, items: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed over hidden codes, and summed over records."""
        codes, stays = module(batch)
        labels = self.stays(items).to(stays.device)
        of_codes = F.cross_entropy(codes, self.answers(batch, items), reduction="sum")
        return of_codes, F.binary_cross_entropy_with_logits(stays, labels, reduction="sum")

    def loss_sum(self, module: nn.Module, batch: AgeVisitBatch, items: Sequence[int]) -> torch.Tensor:
        of_codes, of_stays = self.losses(module, batch, items)
        return of_codes + self.weight * self._per_record * of_stays


def stay_metrics(module: nn.Module, lesson: StayLesson, batch_size: int, accelerator: Accelerator) -> dict[str, float]:
    """loss (both parts), perplexity per hidden code, plos_loss per record, and plos_auroc where both kinds occur."""
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    scores = torch.zeros(lesson.n_items, dtype=torch.float64, device=accelerator.device)
    with torch.inference_mode():
        for items in shares(lesson, batch_size, accelerator):
            batch = lesson.collate(items).to(accelerator.device)
            sums += torch.stack(lesson.losses(module, batch, items)).double()
            scores[list(items)] = module(batch)[1].double()
    scores, labels = accelerator.reduce(scores, "sum").cpu(), lesson.stays(range(lesson.n_items))
    of_codes, of_stays = accelerator.reduce(sums, "sum").tolist()
    masked, stay = of_codes / lesson.units(range(lesson.n_items)), of_stays / lesson.n_items
    metrics = {"loss": masked + lesson.weight * stay, "perplexity": math.exp(min(masked, 50.0)), "plos_loss": stay}
    if len(labels.unique()) == 2:
        metrics["plos_auroc"] = float(roc_auc_score(labels, scores))
    return metrics
