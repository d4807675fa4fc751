"""Every key of a config file, with its type, its default and what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from epicrisis.settings.embedded_codes_section import BehrtSettings, ClinvecSettings, ExmedSettings
from epicrisis.settings.encoder_section import EncoderSettings
from epicrisis.settings.generation_section import GenerationSettings
from epicrisis.settings.section import Section
from epicrisis.settings.structured_section import StructuredSettings
from epicrisis.settings.survival_section import SurvivalSettings
from epicrisis.settings.tabular_section import TabularSettings
from epicrisis.settings.tracking_section import MlflowSettings, TensorboardSettings, WandbSettings


class ModelSettings(Section):
    """Which model, and how it is asked."""

    model_name: str = "epicrisis/tiny-llama"
    """A hub name, a local folder, or an embedded base: `epicrisis/tiny-llama`, `epicrisis/tiny-mistral`."""
    max_length: int = Field(2048, ge=32)
    """Tokens per sequence: the packed window in pretraining, prompt included in classification."""
    num_classes: int | None = Field(None, ge=2)
    """Where given, the number of classes that the task must have."""
    head: Literal["label_tokens", "score"] = "label_tokens"
    """Classify by the answers' token log-probabilities, or by a linear head on hidden states (multilabel: this one)."""
    pooling: Literal["last", "mean"] = "last"
    """What the score head reads: the last token's hidden state, or the average over the sequence."""
    question: str = "Will the outcome happen?"
    """Asked after the narrative; never truncated."""
    prompt: str = "{narrative}\n\nQuestion: {question}\nAnswer:"
    """What a narrative is asked in; holds {narrative} and {question} once each. Narratives alone are ever cut."""
    chat_template: bool = False
    """Lay the prompt into the tokenizer's chat template, as a user's turn; for instruction-tuned bases."""
    answers: tuple[str, ...] = ("no", "yes")
    """One answer per class, in class order; cheapest where each begins with a token of its own."""
    answer_mass: bool = False
    """Log on tuning how much of the whole vocabulary's probability the answers have (`answer_mass`)."""
    prior_correction: bool = False
    """Give probabilities for the train rows' own shares of classes, where training.class_weights made it see others."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flex_attention", "flash_attention_2"] = "auto"
    """What computes attention; `auto` is FlashAttention on a GPU that has it installed, else SDPA."""
    clinical_adapter: Path | None = None
    """A finished pretraining run (or adapter folder) whose adapter lies under the downstream one."""
    clinical_trainable: bool = False
    """Whether the clinical adapter goes on learning while the downstream adapter is trained."""
    fused: Path | None = None
    """What `fuse` wrote; `predict` answers with it in place of the run's own adapters."""
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
    patients_json: Path | None = None
    """Patients in JSON (docs/behrt_exmed.md), in place of meds_dir."""
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
    concept_filepath: Path | None = None
    """CONCEPT.csv of an OMOP vocabulary download (Athena); the hierarchy is used where it lies in the same folder."""
    codes_filepath: Path | None = None
    """A Parquet file like MEDS metadata/codes.parquet (code, description, parent_codes), which goes before that one."""
    icd10cm: bool = True
    """Look ICD-10-CM codes that nothing else knows up in simple-icd-10-cm: some two seconds at the first of them."""
    oracle_dir: Path | None = None
    """True risks of a synthetic cohort (subject_id, prediction_time, true_risk), for the arm `oracle`."""


class NarrativeSettings(Section):
    """How a history is told."""

    style: str = "timeline"
    """`timeline`, `flat`, `recent_unique` or `visits`; docs/narratives.md shows each."""
    dates: Literal["relative", "gap", "calendar"] = "relative"
    """Times told back from the prediction time, as gaps between events, or as calendar dates."""
    values: Literal["raw", "words", "deciles"] = "raw"
    """Numbers told as they are, or as classes fitted on train: `words` (very low to very high) or `deciles`."""
    max_tokens: int | None = Field(None, ge=16)
    """Token budget of a narrative: header and latest events stay. By default what model.max_length leaves."""
    records: Literal["latest", "whole"] = "latest"
    """`whole` (pretraining only): no budget; longer records are cut into windows, elsewhere in each epoch."""
    repeat_header: bool = False
    """With records: whole, later windows begin with their record's header (up to half a window), which is only read."""


class PrepareSettings(Section):
    """Where narratives and token ids are made; what is made does not depend on it."""

    executor: Literal["local", "dask"] = "local"
    """`local`: processes of this machine; `dask`: workers of a Dask cluster that see the same files."""
    workers: int | None = Field(None, ge=1)
    """Processes on this machine; by default as many as there are cores and work for."""
    scheduler: str | None = None
    """Address of a Dask scheduler (tcp://host:8786); without one, dask starts its own workers here."""


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
    method: Literal["lora", "adalora", "prefix", "prompt", "p_tuning", "none"] = "lora"
    """How the base is adapted. All but lora are for comparing pretraining; `none` classifies without a new adapter."""
    initial_r: int | None = Field(None, ge=1)
    """AdaLoRA: rank before ranks are shared out to an average of `r`; by default half as much again as `r`."""
    virtual_tokens: int = Field(20, ge=1)
    """prefix, prompt, p_tuning: trained tokens (prefix: keys and values) before every narrative."""
    encoder_hidden_size: int = Field(128, ge=1)
    """p_tuning: width of the network that makes the virtual tokens."""
    use_dora: bool = False
    """Train each weight's length apart from its direction (DoRA): slower, and never fused but by merging."""
    init_lora_weights: Literal["default", "gaussian", "loftq", "pissa"] = "default"
    """How an adapter begins: doing nothing (default, gaussian), or mending the 4-bit rounding (loftq)."""
    modules_to_train: tuple[Literal["embeddings", "head"], ...] = ()
    """Token embedding and output layer trained in full and saved with the adapter; tied ones only both at once."""
    new_code_tokens: Path | None = None
    """A CSV (token,description) of tokens to add, each begun as the mean of its description's tokens."""


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
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 4
    """The most sequences that a device holds at once; `auto` looks for it, given effective_batch_size."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """batch_size x this many sequences make one optimiser step, whatever the number of processes."""
    effective_batch_size: int | None = Field(None, ge=1)
    """Sequences per optimiser step, in place of gradient_accumulation_steps."""
    group_by_length: bool = True
    """Batches of documents, or of packed rows, of like lengths, which need far less padding."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """AdamW, with states in 8 bits (a quarter of their memory), or with those moved to RAM when a GPU is short."""
    learning_rate: float = Field(2e-4, gt=0)
    """At its highest, after the warm-up."""
    embedding_learning_rate: float | None = Field(None, gt=0)
    """Of the token embedding, the output layer and new tokens; `learning_rate` where not given."""
    class_weights: Literal["none", "balanced"] | tuple[Annotated[float, Field(gt=0)], ...] = "none"
    """Weights of classes in the loss: `balanced`, or one each in class order (multilabel: of rows that have it)."""
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
    quant_storage: Literal["uint8", "bfloat16", "float16", "float32"] = "uint8"
    """What packed 4-bit weights are stored as; to be sharded (FSDP) it must be the compute precision."""
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
    """Latest checkpoints kept, and the best weights beside them."""
    keep_every_epochs: int | None = Field(None, ge=1)
    """Keep the checkpoints at the ends of every so many epochs for good, beside the latest: 1 keeps each epoch's."""
    keep_best: bool = True
    """End with the weights that did best on tuning rather than the last ones."""
    metric_for_best: str = "loss"
    """What is best: `loss` or `perplexity` (pretrain), `loss`, `auroc` or `c_index` (classify), on tuning."""
    seed: int = 0
    """Of adapters, data order, matching and resampling: the same seed repeats the run."""


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


class FuseSettings(Section):
    """How `fuse` makes one thing of several adapters."""

    adapters: tuple[Path, ...] = ()
    """Adapter folders, in order; the finished run's clinical and downstream adapter where not given."""
    mode: str = Field("stack", pattern=r"^(stack|cat|merge16|ties|dare|svd:[1-9][0-9]*)$")
    """`stack`, `cat` (one exact adapter), `merge16` (16-bit weights); ablations: `ties`, `dare`, `svd:<rank>`."""
    density: float = Field(0.5, gt=0, le=1)
    """ties and dare: the share of values that is kept."""
    output_dir: Path | None = None
    """The folder to write, new or empty; `fused/<mode>` in the run directory where not given."""


ArmName = Literal[
    "llm",
    "encoder",
    "frozen_encoder",
    "event_encoder",
    "structured",
    "behrt",
    "exmed_bert",
    "logistic_regression",
    "random_forest",
    "xgboost",
    "lightgbm",
    "oracle",
]
"""The model families."""


class ArmSettings(Section):
    """One arm of a benchmark: a name and what differs from the rest of the file."""

    name: str
    """What the table calls it; its folder under `arms/` is named after it."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Keys of any section but data, evaluation and benchmark: `{arm: xgboost, tabular.min_subjects: 3}`."""


class FewShotSettings(Section):
    """Learning curves of all arms, from few train and tuning rows of each class (docs/few_shot.md)."""

    k: tuple[Annotated[int, Field(ge=1)] | Literal["all"], ...] = ()
    """Rows of each class: [1, 2, 4, 8, 16, 32, 64, 128, all], where `all` is all rows, drawn once; [] is no curve."""
    replicates: int | None = Field(None, ge=1)
    """So many draws of each k, with the seed training.seed; 5 where not given."""

    @field_validator("k")
    @classmethod
    def _distinct(cls, given: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if len(set(given)) < len(given):
            raise ValueError("names a number twice: keep it once")
        return given

    @field_validator("replicates")
    @classmethod
    def _of_something(cls, given: int | None, info: ValidationInfo) -> int | None:
        if given is not None and info.data.get("k") == ():
            raise ValueError("nothing is drawn: give benchmark.few_shot.k, or leave it out")
        return given


class BenchmarkSettings(Section):
    """Arms that run on the same rows."""

    arms: tuple[ArmSettings, ...] = ()
    """The arms, in the order of the table."""
    reference: str | None = None
    """The arm that others are compared with, pairwise on the same resamples."""
    few_shot: FewShotSettings = FewShotSettings()
    """Learning curves: `{k: [1, 8, 64, all], replicates: 5}`."""


class Settings(Section):
    """One run."""

    arm: ArmName | None = None
    """The model family; read off the sections where not given (num_classes without lora is an encoder)."""
    stage: Literal["pretrain", "classify"] | None = None
    """pretrain or classify; read off the sections where not given (num_classes means classify)."""
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    narrative: NarrativeSettings = NarrativeSettings()
    prepare: PrepareSettings = PrepareSettings()
    lora: LoraSettings = LoraSettings()
    training: TrainingSettings = TrainingSettings()
    encoder: EncoderSettings = EncoderSettings()
    structured: StructuredSettings = StructuredSettings()
    behrt: BehrtSettings = BehrtSettings()
    exmed: ExmedSettings = ExmedSettings()
    clinvec: ClinvecSettings = ClinvecSettings()
    tabular: TabularSettings = TabularSettings()
    survival: SurvivalSettings = SurvivalSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    synthetic: SyntheticSettings = SyntheticSettings()
    generation: GenerationSettings = GenerationSettings()
    fuse: FuseSettings = FuseSettings()
    wandb: WandbSettings = WandbSettings()
    mlflow: MlflowSettings = MlflowSettings()
    tensorboard: TensorboardSettings = TensorboardSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()

    def resolved(self) -> dict[str, Any]:
        """All keys with their values as plain YAML types; loading it again gives an equal Settings."""
        return self.model_dump(mode="json")
