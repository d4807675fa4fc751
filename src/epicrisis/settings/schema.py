"""Every key of a config file, with its type, its default and what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of keys that knows no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ModelSettings(Section):
    """Which model, and how it is asked."""

    model_name: str = "epicrisis/tiny-llama"
    """A hub name, a local folder, or an embedded base: `epicrisis/tiny-llama`, `epicrisis/tiny-mistral`."""
    max_length: int = Field(2048, ge=32)
    """Tokens per sequence: the packed window in pretraining, prompt included in classification."""
    num_classes: int | None = Field(None, ge=2)
    """Where given, the number of classes that the task must have."""
    head: Literal["label_tokens", "score"] = "label_tokens"
    """Classify by the answers' token log-probabilities, or by a linear head on the last hidden state."""
    pooling: Literal["last", "mean"] = "last"
    """What the score head reads: the last token's hidden state, or the average over the sequence."""
    question: str = "Will the outcome happen?"
    """Asked after the narrative; never truncated."""
    answers: tuple[str, ...] = ("no", "yes")
    """One word per class, in class order; each must begin with a token of its own."""
    clinical_adapter: Path | None = None
    """A finished pretraining run (or adapter folder) whose adapter lies under the downstream one."""
    clinical_trainable: bool = False
    """Whether the clinical adapter goes on learning while the downstream adapter is trained."""
    cache_dir: Path | None = None
    """Where embedded bases are kept; by default $EPICRISIS_CACHE, else ~/.cache/epicrisis."""


class DataSettings(Section):
    """Where the events and labels are, and what may be seen."""

    meds_dir: Path | None = None
    """A MEDS dataset (0.3 or 0.4)."""
    labels_dir: Path | None = None
    """MEDS label files; without labels a run can only pretrain, on whole train records."""
    index_dates_filepath: Path | None = None
    """A CSV (subject_id, site, cancerdate, is_case) or Parquet of index dates, in place of labels_dir."""
    control_index_dates: Literal["matched", "given"] = "matched"
    """Controls without an index date get one matched to the cases' (or every control brings its own)."""
    cutoff_months: int | None = Field(None, ge=0)
    """Months before the index date (or the labels' prediction_time) in which nothing is seen."""
    data_dir: Path | None = None
    """The text pipeline's tokenised pickles (`<split>/*.pkl`), in place of meds_dir."""
    vocab_filepath: Path | None = None
    """The text pipeline's vocab.csv; goes with data_dir."""
    labels_filepath: Path | None = None
    """The text pipeline's labels.csv; goes with data_dir."""
    medical_lookup_filepath: Path | None = None
    """code,term for diagnoses, procedures, drugs; the shipped table where not given."""
    lab_lookup_filepath: Path | None = None
    """code,term for measurements; the shipped table where not given."""
    region_lookup_filepath: Path | None = None
    """regionid,Description; the shipped table where not given."""
    time_lookup_filepath: Path | None = None
    """code,term for time intervals; the shipped table where not given."""
    oracle_dir: Path | None = None
    """True risks of a synthetic cohort (subject_id, prediction_time, true_risk), for the arm `oracle`."""


class NarrativeSettings(Section):
    """How a history is told."""

    style: str = "timeline"
    """`timeline` or `flat`."""
    dates: Literal["relative", "gap", "calendar"] = "relative"
    """Times told back from the prediction time, as gaps between events, or as calendar dates."""
    max_tokens: int | None = Field(None, ge=16)
    """Token budget of a narrative: header and latest events stay. By default what model.max_length leaves."""


class LoraSettings(Section):
    """The adapter that this run trains."""

    r: int = Field(16, ge=1)
    """Rank: how much the adapter can learn."""
    lora_alpha: float = Field(16, gt=0)
    """Weight of the adapter: its output is scaled by alpha/r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs dropped in training."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Module names that get an adapter; `all-linear` is every linear layer but the output head."""
    use_rslora: bool = False
    """Scale by alpha/sqrt(r) instead of alpha/r."""


class TrainingSettings(Section):
    """How long, how fast, in what precision, and where the run is kept."""

    output_dir: Path = Path("runs/run")
    """The run directory."""
    overwrite_output_dir: bool = False
    """Replace a finished or half-finished run in output_dir."""
    resume: bool = False
    """Go on from the latest whole checkpoint in output_dir."""
    framework: Literal["peft", "unsloth"] = "peft"
    """Which library loads the base and attaches adapters."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the train rows (pretraining: over their packed windows)."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimiser steps, whatever `epochs` says."""
    batch_size: int = Field(4, ge=1)
    """The most sequences that a device holds at once."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """batch_size x this many sequences make one optimiser step, whatever the number of processes."""
    learning_rate: float = Field(2e-4, gt=0)
    """At its highest, after the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's."""
    warmup_steps: int | None = Field(None, ge=0)
    """Optimiser steps in which the learning rate rises from 0; goes before warmup_ratio."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of all steps spent warming up, where warmup_steps is not given."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients longer than this are shortened to it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    load_in_4bit: bool = True
    """NF4 with double quantisation (QLoRA)."""
    fp16: bool = False
    """Half-precision compute, for GPUs without bfloat16; excludes bf16: true."""
    bf16: bool | Literal["auto"] = "auto"
    """bfloat16 compute; `auto` takes it where the GPU, or else the CPU (AMX), has it in hardware."""
    logging_steps: int = Field(10, ge=1)
    """Steps between lines of the log."""
    eval_steps: int | None = Field(None, ge=1)
    """Steps between evaluations on tuning; once an epoch where not given."""
    save_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints; at each evaluation where not given."""
    save_total_limit: int = Field(2, ge=1)
    """Latest checkpoints kept."""
    keep_best: bool = True
    """End with the weights of the lowest tuning loss rather than the last ones."""
    seed: int = 0
    """Of adapters, data order, matching and resampling: the same seed repeats the run."""


class TabularSettings(Section):
    """The classical models on counts."""

    min_subjects: int = Field(5, ge=1)
    """Codes seen in fewer train subjects are no feature."""


class EvaluationSettings(Section):
    """How predictions are judged."""

    bootstrap_resamples: int = Field(1000, ge=100)
    """Resamples of the patients, for the 95% intervals."""
    calibration: Literal["temperature", "none"] = "temperature"
    """Temperature fitted on tuning, applied to held_out."""
    split: Literal["train", "tuning", "held_out"] = "held_out"
    """What `predict` predicts."""
    predictions_dir: Path | None = None
    """Where `predict` writes; the run's own predictions/ where not given."""


class SyntheticSettings(Section):
    """What `synthesize` writes."""

    output_dir: Path | None = None
    """The folder to write; new or empty."""
    n_subjects: int = Field(2000, ge=10)
    """Subjects of all splits together."""
    seed: int = 0
    """The same seed gives the same bytes."""
    mean_visits: float = Field(6.5, ge=4)
    """Visits per subject before the prediction time; the length of a record."""
    shard_size: int = Field(10_000, ge=1)
    """Subjects per event file, before they are sorted into splits."""
    novel_code_probability: float = Field(0.01, ge=0, le=1)
    """Of an everyday diagnosis, to carry a code that no table knows."""


class WandbSettings(Section):
    """Weights & Biases; off unless enabled."""

    enabled: bool | None = None
    """Off by default; on where `project` is given and this is not set to false."""
    project: str | None = None
    """The project that runs are sent to; naming it enables W&B."""
    run_name: str | None = None
    """What this run is called there."""
    mode: Literal["online", "offline"] | None = None
    """Online where WANDB_API_KEY is set, else offline."""


class ArmSettings(Section):
    """One arm of a benchmark: a name and what differs from the rest of the file."""

    name: str
    """What the table calls it; its folder under `arms/` is named after it."""
    overrides: dict[str, Any] = {}
    """Keys of any section but data, evaluation and benchmark: `{arm: xgboost, tabular.min_subjects: 3}`."""


class BenchmarkSettings(Section):
    """Arms that run on the same rows."""

    arms: tuple[ArmSettings, ...] = ()
    """The arms, in the order of the table."""
    reference: str | None = None
    """The arm that others are compared with, pairwise on the same resamples."""


class Settings(Section):
    """One run."""

    arm: Literal["llm", "encoder", "logistic_regression", "xgboost", "oracle"] | None = None
    """The model family; read off the sections where not given (num_classes without lora is an encoder)."""
    stage: Literal["pretrain", "classify"] | None = None
    """pretrain or classify; read off the sections where not given (num_classes means classify)."""
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    narrative: NarrativeSettings = NarrativeSettings()
    lora: LoraSettings = LoraSettings()
    training: TrainingSettings = TrainingSettings()
    tabular: TabularSettings = TabularSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    synthetic: SyntheticSettings = SyntheticSettings()
    wandb: WandbSettings = WandbSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()

    def resolved(self) -> dict[str, Any]:
        """All keys with their values as plain YAML types; loading it again gives an equal Settings."""
        return self.model_dump(mode="json")
