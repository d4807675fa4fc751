"""The bodies of BEHRT and ExMed-BERT: embeddings that are added up, and BERT's layers over them.

Sources: Li et al. 2020, BEHRT: transformer for electronic health records (Scientific Reports 10:7155,
arXiv:1907.09538); Lentzen et al. 2023, A transformer-based model trained on large scale claims data for prediction of
severe COVID-19 disease progression (IEEE J Biomed Health Inform 27:4548).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel

from epicrisis.structured.age_visit_records import PAD, AgeUnit, AgeVisitBatch, n_ages
from epicrisis.structured.clinvec import InitialVectors

SPREAD = 0.02
"""Standard deviation of random embeddings, as in BERT."""


@dataclass(frozen=True)
class BodyShape:
    """Sizes of a body; n_entities, n_sexes and n_regions are 0 where a model has no such embedding.

    max_length: tokens of a record, [CLS] included, and so the most visits in sight.
    """

    embedding: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    max_length: int
    age_unit: AgeUnit
    dropout: float
    n_entities: int = 0
    n_sexes: int = 0
    n_regions: int = 0

    def saved(self) -> dict[str, Any]:
        """As plain JSON, for `BodyShape(**saved)`."""
        return asdict(self)


class CodeTable(nn.Module):
    """Embeddings of codes, some of which may be fixed, and which a trained layer may bring to another size.

    fixed: bool [n_codes], whose rows are never trained, not even by weight decay. width: of the rows, where it differs
    from that of the embeddings.
    """

    is_fixed: torch.Tensor
    kept: torch.Tensor

    def __init__(self, n_codes: int, embedding: int, width: int | None = None, fixed: np.ndarray | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_codes, width or embedding) * SPREAD)
        is_fixed = torch.zeros(n_codes, dtype=torch.bool) if fixed is None else torch.from_numpy(fixed)
        self.register_buffer("is_fixed", is_fixed)
        self.register_buffer("kept", torch.zeros_like(self.weight[is_fixed]).detach())
        self.projection = nn.Linear(width, embedding, bias=False) if width else None

    def begin(self, vectors: np.ndarray) -> None:
        """Take these as the rows' values, float32 [n_codes, width]."""
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(vectors))
            self.kept.copy_(self.weight[self.is_fixed])

    def table(self) -> torch.Tensor:
        """All embeddings, [n_codes, embedding]."""
        rows: torch.Tensor = self.weight
        if len(self.kept):
            rows = rows.masked_scatter(self.is_fixed[:, None], self.kept)
        return rows if self.projection is None else self.projection(rows)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[..., embedding] of int64 [...]."""
        return F.embedding(tokens, self.table())


class AddedEmbeddings(nn.Module):
    """Sums of the embeddings of code, age, visit and its side A or B, and where there are such: kind, sex, region.

    entities: int64 [n_codes], the kind of each code; None where codes have no kind.
    """

    entity_of: torch.Tensor

    def __init__(self, shape: BodyShape, codes: CodeTable, entities: np.ndarray | None = None):
        super().__init__()
        size = shape.embedding
        self.codes = codes
        self.ages = nn.Embedding(n_ages(shape.age_unit), size)
        self.visits = nn.Embedding(shape.max_length, size)
        self.sides = nn.Embedding(3, size)
        self.entities = nn.Embedding(shape.n_entities, size) if shape.n_entities else None
        self.sexes = nn.Embedding(shape.n_sexes, size) if shape.n_sexes else None
        self.regions = nn.Embedding(shape.n_regions, size) if shape.n_regions else None
        kinds = np.zeros(len(codes.weight), dtype=np.int64) if entities is None else entities
        self.register_buffer("entity_of", torch.from_numpy(kinds))
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(shape.dropout)
        self.widen = nn.Linear(size, shape.hidden) if shape.hidden != size else nn.Identity()
        for table in self.tables()[1:]:
            nn.init.normal_(table.weight, std=SPREAD)  # type: ignore[arg-type]

    def tables(self) -> list[nn.Module]:
        """The embeddings that are added, that of codes first."""
        known = (self.codes, self.ages, self.visits, self.sides, self.entities, self.sexes, self.regions)
        return [table for table in known if table is not None]

    def forward(self, batch: AgeVisitBatch) -> torch.Tensor:
        """[n, width, hidden]"""
        sides = torch.where(batch.visits > 0, 1 + batch.visits % 2, 0)
        added = self.codes(batch.tokens) + self.ages(batch.ages) + self.visits(batch.visits) + self.sides(sides)
        if self.entities is not None:
            added = added + self.entities(self.entity_of[batch.tokens])
        if self.sexes is not None:
            added = added + self.sexes(batch.people[:, :1])
        if self.regions is not None:
            added = added + self.regions(batch.people[:, 1:])
        return self.widen(self.dropout(self.norm(added)))


class _AsGiven(nn.Module):
    """In the place of BERT's own embeddings, which would add its places and segments."""

    def forward(self, inputs_embeds: torch.Tensor, **_: Any) -> torch.Tensor:
        return inputs_embeds


class AgeVisitBody(nn.Module):
    """Records to states [n, width, hidden]; pads change nothing.

    autocast: the precision of products, None for the weights' own.
    """

    autocast: torch.dtype | None = None

    def __init__(self, shape: BodyShape, codes: CodeTable, entities: np.ndarray | None = None):
        super().__init__()
        self.shape = shape
        self.embeddings = AddedEmbeddings(shape, codes, entities)
        config = BertConfig(
            vocab_size=1,
            max_position_embeddings=1,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.intermediate,
            hidden_dropout_prob=shape.dropout,
            attention_probs_dropout_prob=shape.dropout,
        )
        self.layers = BertModel(config, add_pooling_layer=False)
        self.layers.embeddings = _AsGiven()  # type: ignore[assignment]

    def forward(self, batch: AgeVisitBatch) -> torch.Tensor:
        with torch.autocast(batch.tokens.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            states = self.layers(inputs_embeds=self.embeddings(batch), attention_mask=batch.present.long())
        return states.last_hidden_state.float()


class MaskedCodeHead(nn.Module):
    """States to logits over codes, whose weights are the embeddings of codes themselves."""

    def __init__(self, shape: BodyShape, codes: CodeTable):
        super().__init__()
        self.narrow = nn.Linear(shape.hidden, shape.embedding)
        self.norm = nn.LayerNorm(shape.embedding)
        self.bias = nn.Parameter(torch.zeros(len(codes.weight)))

    def forward(self, states: torch.Tensor, codes: CodeTable) -> torch.Tensor:
        return F.linear(self.norm(F.gelu(self.narrow(states))), codes.table(), self.bias)


class RecordHead(nn.Module):
    """The state of [CLS] through a layer and tanh to logits, as BERT's pooler and classifier."""

    def __init__(self, shape: BodyShape, n_outputs: int):
        super().__init__()
        self.pool = nn.Linear(shape.hidden, shape.hidden)
        self.dropout = nn.Dropout(shape.dropout)
        self.score = nn.Linear(shape.hidden, n_outputs)

    def forward(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.score(self.dropout(torch.tanh(self.pool(states[:, 0]))))


class Classifier(nn.Module):
    """A body and a head: an outcome's logits [n, n_outputs] of a batch."""

    def __init__(self, body: AgeVisitBody, head: nn.Module):
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, batch: AgeVisitBatch) -> torch.Tensor:
        return self.head(self.body(batch), batch.lengths)


def code_table(shape: BodyShape, n_codes: int, begun: InitialVectors | None, *, freeze: bool = False) -> CodeTable:
    """The embeddings of codes, at random or as they are given; frozen are those that a vector was found for."""
    if begun is None:
        return CodeTable(n_codes, shape.embedding)
    width = begun.vectors.shape[1] if begun.projected else None
    codes = CodeTable(n_codes, shape.embedding, width, begun.known if freeze else None)
    vectors = begun.vectors.copy()
    vectors[PAD] = 0
    codes.begin(vectors)
    return codes


def freeze_tables(body: AgeVisitBody) -> None:
    """Keep all embeddings that are added as they are; the norm and the layer after them still learn."""
    for table in body.embeddings.tables():
        table.requires_grad_(False)
