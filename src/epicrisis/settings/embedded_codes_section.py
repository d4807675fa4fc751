"""The keys of `behrt`, `exmed` and `clinvec`: models that add up embeddings of codes, ages and visits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from epicrisis.settings.section import Section


class BehrtSettings(Section):
    """The arm `behrt`: a BERT over codes, each with its age, its visit and the visit's side."""

    size: Literal["small", "medium", "large"] = "small"
    """Widths, layers and record length together (docs/behrt_exmed.md); each can be set apart below."""
    embedding_size: int | None = Field(None, ge=1)
    """Width of the embeddings: 64, 128 or 256."""
    hidden_size: int | None = Field(None, ge=1)
    """Width of the layers: 128, 256 or 512."""
    num_hidden_layers: int | None = Field(None, ge=1)
    """Layers: 2, 4 or 6."""
    num_attention_heads: int | None = Field(None, ge=1)
    """Heads in each layer: 4, 8 or 8."""
    intermediate_size: int | None = Field(None, ge=1)
    """Width between a layer's two linear maps: 512, 512 or 1024."""
    max_length: int | None = Field(None, ge=4)
    """Tokens of a record, the latest ones, with [CLS] before them: 50, 100 or 200."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of embeddings, attention and layers, in training."""
    age_unit: Literal["months", "years"] = "months"
    """What ages are rounded down to before they are embedded."""
    objective: Literal["mlm", "next_visit"] = "mlm"
    """What pretraining learns: masked codes, or all codes of the visit after a random one."""
    mask_share: float = Field(0.15, gt=0, lt=1)
    """mlm: share of a record's codes that are to be told from the others."""
    pretrained: Path | None = None
    """A finished pretraining run of this arm to begin from; brings its own vocabulary."""
    embedding_path: Path | None = None
    """Code vectors (CSV, Parquet, or .npy with .txt) by the data's own codes, to begin embeddings with."""
    freeze_embeddings: bool = False
    """Keep embeddings as they begin: those of codes with given vectors, or with `pretrained` all of them."""
    lora_rank: int | None = Field(None, ge=1)
    """Train adapters of this rank in the layers, whose own weights stay; no adapters where not given."""
    lora_alpha: float = Field(16, gt=0)
    """Weight of the adapters: their output is scaled by alpha/rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapters' inputs dropped in training."""
    lora_feedforward: bool = False
    """Adapters on the linear maps after attention too, not on attention alone."""


class ExmedSettings(Section):
    """The arm `exmed_bert`: as `behrt`, and each code with its kind, each record with sex and region."""

    preset: Literal["tiny", "small", "medium", "large"] = "small"
    """Widths and layers together (docs/behrt_exmed.md); each can be set apart below."""
    hidden_size: int | None = Field(None, ge=1)
    """Width of embeddings and layers: 32, 64, 128 or 288."""
    num_hidden_layers: int | None = Field(None, ge=1)
    """Layers: 1, 2, 4 or 6."""
    num_attention_heads: int | None = Field(None, ge=1)
    """Heads in each layer: 1, 2, 4 or 6."""
    intermediate_size: int | None = Field(None, ge=1)
    """Width between a layer's two linear maps: 64, 128, 256 or 576."""
    max_length: int = Field(512, ge=4)
    """Tokens of a record, the latest ones, with [CLS] before them."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of embeddings, attention and layers, in training."""
    age_unit: Literal["months", "years"] = "months"
    """What ages are rounded down to before they are embedded."""
    initialization: Literal["orthogonal", "xavier", "kaiming"] = "orthogonal"
    """How the weights of the layers' linear maps begin; heads begin as torch has it."""
    mask_share: float = Field(0.15, gt=0, lt=1)
    """Pretraining: share of a record's codes that are to be told from the others."""
    dynamic_masking: bool = True
    """Mask other codes in each epoch, rather than the same."""
    plos_weight: float = Field(1.0, ge=0)
    """Pretraining: weight of telling whether a record holds a prolonged stay, beside masked codes; 0 leaves it out."""
    plos_days: float = Field(7, gt=0)
    """A visit longer than this is a prolonged stay."""
    head: Literal["ffn", "gru", "lstm"] = "ffn"
    """What classifies: a layer on [CLS], or a recurrent network over all hidden states."""
    pretrained: Path | None = None
    """A finished pretraining run of this arm to begin from; brings its own vocabulary."""
    freeze_embeddings: bool = False
    """With `pretrained`: keep all embeddings as they are."""


class ClinvecSettings(Section):
    """Published code vectors that embeddings of `behrt` and `exmed_bert` begin with."""

    path: Path | None = None
    """The folder of ClinVec_<vocabulary>.csv (.parquet, .npy) and ClinGraph_nodes.csv; random embeddings without."""
    vocabularies: tuple[Literal["icd10cm", "atc", "cpt", "rxnorm", "phecode"], ...] = (
        "icd10cm",
        "atc",
        "cpt",
        "rxnorm",
        "phecode",
    )
    """Whose vectors are taken, where there is a file of them."""
    resize: Literal["auto", "truncate", "pca", "learned_projection", "pad_smart", "pad_random"] = "auto"
    """How vectors of another size are made to fit; `auto` is pca to shrink them and pad_smart to widen them."""
    hierarchy: bool = True
    """Codes without a vector begin as their nearest parent that has one: E11.65, E11.6, E11."""
    freeze: bool = False
    """Keep the vectors as they are; codes that have none are learnt all the same."""
