"""What the arms `behrt` and `exmed_bert` have in common: fit, predict, save, load, and pretraining."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from epicrisis.cohort import History
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings, refuse
from epicrisis.structured.age_visit_lessons import RecordLesson
from epicrisis.structured.age_visit_model import AgeVisitBody, BodyShape, Classifier, CodeTable, code_table
from epicrisis.structured.age_visit_reading import Reader, fit_reader, load_reader
from epicrisis.structured.behrt_lora import merged_state
from epicrisis.structured.clinvec import InitialVectors, from_clinvec, report_text
from epicrisis.structured.coding import split_of
from epicrisis.structured.pretrain import autocast_of
from epicrisis.structured.store import save_model
from epicrisis.tracking.progress import say
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.device import make_accelerator
from epicrisis.training.lessons import Lesson
from epicrisis.training.loop import train
from epicrisis.training.outcome import Outcome, completed, load_outcome, outcome_for, row_metrics, row_predictions
from epicrisis.training.sharding import full

MODEL = "model"
BODY = "body."
READING_SIZE = 64
"""Records that are read at once without gradients."""


class Run(Protocol):
    """What an arm needs of a run directory."""

    @property
    def dir(self) -> Path: ...

    def log(self, **fields: Any) -> None: ...


@dataclass(frozen=True)
class Objective:
    """A way of pretraining a body: what is learnt, what is watched, and the module that learns."""

    module: nn.Module
    lesson: Lesson
    metrics: Callable[[nn.Module], dict[str, float]]


@dataclass
class FittedAgeVisit:
    """A classifier of records."""

    settings: Settings
    reader: Reader
    module: Classifier
    accelerator: Accelerator
    outcome: Outcome
    directory: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """The task's classes, in the order of the probabilities; of a time to an event its risk and horizons."""
        return self.outcome.columns

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """float64 [n_rows, n_columns] in the order of `rows` and of `classes`."""
        shape = self.module.body.shape
        records = self.reader.read(rows, history, shape, self.directory / "sequences" / "judged")
        lesson = RecordLesson(records, self.outcome)
        return row_predictions(self.module.eval(), lesson, READING_SIZE, self.accelerator)

    def save(self, directory: Path) -> None:
        """`model/`: all weights, those of adapters too, the tokenizer, and what else `load` needs."""
        outcome = self.outcome.saved()
        about = {
            "arm": self.settings.arm,
            "stage": "classify",
            "task": outcome.pop("kind"),
            **outcome,
            **_body_facts(self.module.body, self.reader),
        }
        save_model(directory / MODEL, _state(self.module), about, self.reader.coder.tokenizer)


class AgeVisitArm(ABC):
    """An arm whose body adds up embeddings; each kind says below how it is built."""

    section: ClassVar[Literal["behrt", "exmed"]]
    persons: ClassVar[bool]
    """Whether sex, region and kinds of codes are embedded."""

    def __init__(self, settings: Settings, lookups: Lookups):
        self.settings = settings
        self.lookups = lookups
        self.keys = getattr(settings, self.section)

    @abstractmethod
    def shape(self, n_regions: int) -> BodyShape:
        """Of the body that the settings ask for. InputError where its parts do not go together."""

    @abstractmethod
    def entities(self, tokens: tuple[str, ...]) -> np.ndarray | None:
        """The kind of each code; None where the body embeds none."""

    @abstractmethod
    def head(self, shape: BodyShape, n_outputs: int) -> nn.Module:
        """What gives an outcome's logits, untrained."""

    @abstractmethod
    def objective(
        self, body: AgeVisitBody, reader: Reader, rows: pl.DataFrame, history: History, run: Run
    ) -> Objective:
        """How the body is pretrained on the train rows, and watched on the tuning rows."""

    def begun(self, tokens: tuple[str, ...], n_dims: int) -> InitialVectors | None:
        """The vectors that embeddings of codes begin with; None for random ones."""
        clinvec = self.settings.clinvec
        if clinvec.path is None:
            return None
        return from_clinvec(
            tokens,
            n_dims,
            clinvec.path,
            vocabularies=clinvec.vocabularies,
            method=clinvec.resize,
            hierarchy=clinvec.hierarchy,
            seed=self.settings.training.seed,
        )

    def frozen_codes(self) -> bool:
        """Whether codes with vectors of their own keep them."""
        return self.settings.clinvec.freeze

    def prepare(self, body: AgeVisitBody, *, pretrained: bool) -> None:
        """What is left to do to a body that has its weights: adapters, frozen parts."""
        return

    def initialise(self, body: AgeVisitBody) -> None:
        """How weights that are not embeddings begin."""
        return

    def fit(self, rows: pl.DataFrame, history: History, run: Run) -> FittedAgeVisit:
        """Train on the train rows, watching tuning. `rows` holds both splits."""
        settings, training = self.settings, self.settings.training
        accelerator = make_accelerator(training)
        outcome = outcome_for(settings, rows)
        reader, body = self._body(rows, history, run, accelerator)
        splits = {split: split_of(rows, split) for split in ("train", "tuning")}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            module = Classifier(body, self.head(body.shape, outcome.n_outputs))
        lessons = {
            split: RecordLesson(
                reader.read(own, history, body.shape, run.dir / "sequences" / split),
                outcome,
                outcome.targets(own),
            )
            for split, own in splits.items()
        }

        def evaluate(module: nn.Module) -> dict[str, float]:
            return row_metrics(module, lessons["tuning"], READING_SIZE, accelerator)

        learn(module, lessons["train"], settings, accelerator, run, evaluate)
        outcome = completed(module, lessons["train"], READING_SIZE, accelerator)
        return FittedAgeVisit(settings, reader, module.eval(), accelerator, outcome, run.dir)

    def load(self, directory: Path) -> FittedAgeVisit:
        """What `save` wrote. InputError for a folder of another arm or shape."""
        accelerator = make_accelerator(self.settings.training)
        folder, about = self._saved(directory, "classify")
        reader = load_reader(folder / "tokenizer", about["regions"], self.lookups, accelerator)
        body = self._empty_body(reader, about, load_file(folder / "model.safetensors"))
        self.prepare(body, pretrained=self.keys.pretrained is not None)
        outcome = load_outcome({**about, "kind": about["task"]}, self.settings)
        module = Classifier(body, self.head(body.shape, outcome.n_outputs))
        _load_state(module, load_file(folder / "model.safetensors"), folder)
        return FittedAgeVisit(
            self.settings, reader, module.to(accelerator.device).eval(), accelerator, outcome, directory
        )

    def pretrain(self, rows: pl.DataFrame, history: History, run: Run) -> dict[str, float]:
        """Pretrain on the rows' visible records; writes `<run>/model/`, adapters merged.

        rows: one row per subject of the splits train and tuning. Returns what was watched on tuning, before and after.
        """
        accelerator = make_accelerator(self.settings.training)
        reader, body = self._body(rows, history, run, accelerator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.training.seed)
            objective = self.objective(body, reader, rows, history, run)
        module = objective.module.to(accelerator.device)
        if not objective.lesson.n_items:
            raise refuse("data", "no train record has what this objective learns from", "choose another objective")
        before = objective.metrics(module.eval())
        learn(module, objective.lesson, self.settings, accelerator, run, objective.metrics)
        after = objective.metrics(module.eval())
        if accelerator.is_main_process:
            weights = {BODY + name: tensor.cpu().contiguous().clone() for name, tensor in merged_state(body).items()}
            about = {"arm": self.settings.arm, "stage": "pretrain", **_body_facts(body, reader)}
            save_model(run.dir / MODEL, weights, about, reader.coder.tokenizer)
        accelerator.wait_for_everyone()
        early = {f"{name}_before": before[name] for name in ("loss", "perplexity")}
        return {
            **early,
            **after,
            "parameters": sum(p.numel() for p in body.parameters()),
            "vocabulary": len(reader.tokens),
        }

    def _body(
        self, rows: pl.DataFrame, history: History, run: Run, accelerator: Accelerator
    ) -> tuple[Reader, AgeVisitBody]:
        """A reader and a body to be trained: new ones, or those of a pretraining run."""
        if self.keys.pretrained is not None:
            folder, about = self._saved(self.keys.pretrained, "pretrain")
            reader = load_reader(folder / "tokenizer", about["regions"], self.lookups, accelerator)
            weights = load_file(folder / "model.safetensors")
            body = self._empty_body(reader, about, weights)
            _load_state(body, {name.removeprefix(BODY): tensor for name, tensor in weights.items()}, folder)
        else:
            place = run.dir / "sequences" / "tokenizer"
            persons = self.persons
            reader = fit_reader(self.settings, self.lookups, rows, history, place, accelerator, persons=persons)
            body = self._new_body(reader, run, accelerator)
        self._set_up(body)
        self.prepare(body, pretrained=self.keys.pretrained is not None)
        return reader, body

    def _new_body(self, reader: Reader, run: Run, accelerator: Accelerator) -> AgeVisitBody:
        shape = self.shape(0 if reader.people is None else reader.people.n_regions)
        begun = self.begun(reader.tokens, shape.embedding)
        if begun is not None and accelerator.is_main_process:
            say(report_text(begun.report))
            run.log(event="code_vectors", method=begun.method, vectors=begun.report.to_dicts())
            begun.report.write_csv(run.dir / "code_vectors.csv")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.training.seed)
            codes = code_table(shape, len(reader.tokens), begun, freeze=self.frozen_codes())
            body = AgeVisitBody(shape, codes, self.entities(reader.tokens))
            self.initialise(body)
        return body

    def _empty_body(self, reader: Reader, about: dict[str, Any], weights: dict[str, torch.Tensor]) -> AgeVisitBody:
        """A body of a saved one's shape, whose weights are then loaded."""
        table = weights[f"{BODY}embeddings.codes.weight"]
        shape = BodyShape(**about["body"])
        width = table.shape[1] if f"{BODY}embeddings.codes.projection.weight" in weights else None
        fixed = weights[f"{BODY}embeddings.codes.is_fixed"].numpy()
        codes = CodeTable(len(table), shape.embedding, width, fixed)
        with torch.random.fork_rng(devices=[]):
            body = AgeVisitBody(shape, codes, self.entities(reader.tokens))
        self._set_up(body)
        return body

    def _set_up(self, body: AgeVisitBody) -> None:
        body.autocast = autocast_of(self.settings.training)
        if self.settings.training.gradient_checkpointing:
            body.layers.gradient_checkpointing_enable({"use_reentrant": False})

    def _saved(self, run: Path, stage: str) -> tuple[Path, dict[str, Any]]:
        """The folder of a saved model and what it says of itself; InputError for another arm's, stage's or shape's."""
        folder = run / MODEL if (run / MODEL).is_dir() else run
        fix = f"name a finished run of arm {self.settings.arm}, stage {stage}"
        try:
            about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            found, saved = (about["arm"], about["stage"]), BodyShape(**about["body"])
        except (OSError, ValueError, KeyError, TypeError):
            raise refuse(str(run), "holds no model of this kind", fix) from None
        if found != (self.settings.arm, stage):
            raise refuse(str(run), f"it holds a model of arm {found[0]}, stage {found[1]}", fix)
        asked = self.shape(saved.n_regions)
        odd = [name for name, value in asked.saved().items() if name != "dropout" and value != saved.saved()[name]]
        if odd:
            what = "; ".join(
                f"{name} {getattr(asked, name)}, and the saved model has {getattr(saved, name)}" for name in odd
            )
            raise refuse(self.section, what, "use the keys of that run's config.yaml")
        about["body"]["dropout"] = asked.dropout
        return folder, about


def learn(
    module: nn.Module,
    lesson: Lesson,
    settings: Settings,
    accelerator: Accelerator,
    run: Run,
    evaluate: Callable[[nn.Module], dict[str, float]],
) -> None:
    """Train as the settings say, with checkpoints in the run's folder."""
    if settings.training.batch_size == "auto":
        raise refuse("training.batch_size", f"the arm {settings.arm} does not look for it", "set a number, e.g. 32")
    checkpoints = Checkpoints(run.dir / "checkpoints", settings.training.save_total_limit, accelerator)
    log = run.log if accelerator.is_main_process else lambda **_: None
    module.to(accelerator.device)
    train(
        module,
        lesson,
        settings.training,
        accelerator,
        checkpoints,
        title=str(settings.stage),
        evaluate=evaluate,
        log=log,
    )


def _body_facts(body: AgeVisitBody, reader: Reader) -> dict[str, Any]:
    regions = None if reader.people is None else list(reader.people.regions)
    return {"body": body.shape.saved(), "regions": regions}


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: full(tensor.detach()).cpu().contiguous().clone() for name, tensor in module.state_dict().items()}


def _load_state(module: nn.Module, state: dict[str, torch.Tensor], where: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError:
        own = module.state_dict()
        odd = (own.keys() ^ state.keys()) | {n for n in own.keys() & state.keys() if own[n].shape != state[n].shape}
        what = f"{len(odd)} weights are not those of this model, e.g. {min(odd)}"
        raise refuse(str(where), what, "use the settings of the config.yaml of its run") from None
