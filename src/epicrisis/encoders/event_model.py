"""A small transformer over events, each told by the frozen vector of its phrase, its number and its time."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn

from epicrisis.encoders.pooling import pool_tokens
from epicrisis.settings.schema import EncoderSettings

_OCTAVES = 8
_LONGEST = 36_525.0
"""Days, a century: the scale of times."""

_N_TIME = 2 * (1 + 2 * _OCTAVES) + 1


@dataclass(frozen=True)
class EventBatch:
    """Events of some rows, padded on the right.

    vectors: float32 [n_distinct, d], of the phrases of this batch. phrase: int64 [n, length], places in `vectors`.
    number: float32 [n, length], 0 where `measured` (bool) is not. days: float32 [n, length] before the prediction
    time, 0 where `dated` (bool) is not. mask: bool [n, length], an event. hidden: bool [n, length], an event whose
    phrase and number are to be found.
    """

    vectors: torch.Tensor
    phrase: torch.Tensor
    number: torch.Tensor
    measured: torch.Tensor
    days: torch.Tensor
    dated: torch.Tensor
    mask: torch.Tensor
    hidden: torch.Tensor

    def to(self, device: torch.device) -> EventBatch:
        return EventBatch(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def places(self) -> int:
        """Places of events, padding included."""
        return self.mask.numel()

    @property
    def useful_tokens(self) -> int:
        """Events."""
        return int(self.mask.sum())


class EventBody(nn.Module):
    """Each row's vector, float32 [n, width]: a summary place's state (pooling cls), or the mean over events.

    centre, spread: [d] and a number, of the train phrases' vectors. Sentence vectors lie in a narrow cone, and what
    they share says nothing (Su et al. 2021, arXiv:2103.15316): they are read less their mean, in units of their
    spread. Pre-norm layers (Xiong et al. 2020, arXiv:2002.04745). There are no positions: what orders events is
    their time, and in a decoder what each may see.
    """

    centre: torch.Tensor
    spread: torch.Tensor

    def __init__(self, encoding: EncoderSettings, centre: torch.Tensor, spread: float, seed: int):
        super().__init__()
        self.causal = encoding.event_model == "decoder"
        self._pooling = encoding.pooling
        self.register_buffer("centre", centre.float())
        self.register_buffer("spread", torch.tensor(float(spread)))
        width = encoding.width
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.read = nn.Linear(len(centre), width)
            self.measure = nn.Linear(3, width, bias=False) if encoding.numbers else None
            self.when = nn.Linear(_N_TIME, width, bias=False) if encoding.times else None
            layer = nn.TransformerEncoderLayer(
                width,
                encoding.heads,
                dim_feedforward=4 * width,
                dropout=encoding.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            norm = nn.LayerNorm(width)
            self.layers = nn.TransformerEncoder(layer, encoding.layers, norm, enable_nested_tensor=False)
            _begin_apart(self.layers)
            self.summary = nn.Parameter(torch.randn(width) * 0.02) if encoding.pooling == "cls" else None

    @property
    def learns(self) -> bool:
        """Whether any weight is trained."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def train(self, mode: bool = True) -> EventBody:
        """A frozen body never drops anything."""
        return super().train(mode and self.learns)

    def meaning(self, vectors: torch.Tensor) -> torch.Tensor:
        """Phrases' vectors less what all have in common, [n, d]."""
        return (vectors - self.centre) / self.spread

    def content(self, batch: EventBatch) -> torch.Tensor:
        """What happened, [n, length, width]: phrase and number."""
        # an embedding, since the gradient of plain indexing adds up in any order, and so rounds otherwise in every run
        told = nn.functional.embedding(batch.phrase, self.read(self.meaning(batch.vectors)))
        if self.measure is None:
            return told
        number, measured = batch.number, batch.measured.float()
        features = torch.stack([measured, number, torch.tanh(number)], dim=-1)
        return told + self.measure(features)

    def moments(self, batch: EventBatch) -> torch.Tensor | float:
        """When it happened, [n, length, width]."""
        return self.when(time_features(batch)) if self.when is not None else 0.0

    def states(self, events: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[n, length, width] of embedded events; mask: bool [n, length], what may be seen.

        Padding is nothing, whatever was embedded there. Where a place would see nothing at all it sees that.
        """
        length, events = events.shape[1], events * mask[..., None]
        mask = mask | _first_of_none(mask)
        later = torch.ones(length, length, dtype=torch.bool, device=events.device).triu(1) if self.causal else None
        return self.layers(events, mask=later, src_key_padding_mask=~mask, is_causal=False)

    def forward(self, batch: EventBatch) -> torch.Tensor:
        events, mask = self.content(batch) + self.moments(batch), batch.mask
        if self.summary is None:
            return pool_tokens(self.states(events, mask), mask, "mean")
        place = self.summary.expand(len(events), 1, -1)
        seen = torch.ones(len(events), 1, dtype=torch.bool, device=mask.device)
        if not self.causal:
            return self.states(torch.cat([place, events], dim=1), torch.cat([seen, mask], dim=1))[:, 0]
        mask = mask | _first_of_none(mask)  # a decoder's first place sees nothing but itself
        events = events * batch.mask[..., None]
        return self.states(torch.cat([events, place], dim=1), torch.cat([mask, seen], dim=1))[:, -1]


class EventPretraining(nn.Module):
    """Summed loss of finding an event's phrase among those of the batch; `found` counts those that are the nearest.

    An encoder is asked for hidden events (Devlin et al. 2019, arXiv:1810.04805), a decoder at each event for the
    next. The state, brought to the phrases' size, is compared by cosine with every distinct phrase of the batch, and
    the right one is to win a softmax: InfoNCE (van den Oord et al. 2018, arXiv:1807.03748). The candidates' vectors
    are frozen, so that no two can fall into one, and each stands there once, so that none is its own rival.
    """

    def __init__(self, body: EventBody, temperature: float, seed: int):
        super().__init__()
        self.body = body
        self._temperature = temperature
        width = body.read.out_features
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)
            self.guess = nn.Linear(width, body.read.in_features)
            self.unknown = None if body.causal else nn.Parameter(torch.randn(width) * 0.02)
        if body.summary is not None:
            body.summary.requires_grad_(False)  # nobody reads it yet

    def forward(self, batch: EventBatch) -> torch.Tensor:
        logits, wanted = self.scores(batch)
        return F.cross_entropy(logits, wanted, reduction="sum")

    def scores(self, batch: EventBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """[n_asked, n_distinct] logits, and which of the batch's phrases is right."""
        body = self.body
        content = body.content(batch)
        if self.unknown is not None:
            content = torch.where(batch.hidden[..., None], self.unknown, content)
        states = body.states(content + body.moments(batch), batch.mask)
        if body.causal:
            asked = batch.mask[:, 1:]
            states, wanted = states[:, :-1][asked], batch.phrase[:, 1:][asked]
        else:
            states, wanted = states[batch.hidden], batch.phrase[batch.hidden]
        candidates = F.normalize(body.meaning(batch.vectors), dim=-1)
        return F.normalize(self.guess(states), dim=-1) @ candidates.T / self._temperature, wanted


def time_features(batch: EventBatch) -> torch.Tensor:
    """[n, length, 35]: days before the prediction and days since the event before, each as its logarithm and waves of
    it in octaves, so that hours and decades are told apart alike; and whether there is a date at all."""
    both = batch.dated[:, 1:] & batch.dated[:, :-1]
    gap = torch.where(both, (batch.days[:, :-1] - batch.days[:, 1:]).clamp(min=0), 0.0)
    parts = [*_waves(batch.days), *_waves(F.pad(gap, (1, 0)))]
    dated = batch.dated.to(batch.days.dtype)
    return torch.cat([torch.cat(parts, dim=-1) * dated[..., None], dated[..., None]], dim=-1)


def _waves(days: torch.Tensor) -> list[torch.Tensor]:
    far = torch.log1p(days.clamp(min=0)) / torch.log1p(torch.tensor(_LONGEST))
    turns = far[..., None] * torch.pi * 2.0 ** torch.arange(_OCTAVES, device=days.device)
    return [far[..., None], torch.sin(turns), torch.cos(turns)]


def _begin_apart(layers: nn.TransformerEncoder) -> None:
    """Draw each layer's weights anew: torch begins all as copies of one."""
    for parameter in layers.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def _first_of_none(mask: torch.Tensor) -> torch.Tensor:
    """bool [n, length]: the first place of rows that have no event."""
    first = torch.zeros_like(mask)
    first[:, 0] = ~mask.any(dim=1)
    return first
