"""The arm `event_encoder`: a small transformer over events whose phrases a frozen encoder has read once."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from epicrisis.cohort import History
from epicrisis.corpus.run_narratives import NARRATOR, Run, check_choice, run_narrator
from epicrisis.encoders.arm import in_order, learn, sequences, targets_of
from epicrisis.encoders.classifier import RecordClassifier
from epicrisis.encoders.event_lessons import EventRows, Events, EventsToFind, finding_metrics
from epicrisis.encoders.event_model import EventBody, EventPretraining
from epicrisis.encoders.event_phrases import PhraseVectors
from epicrisis.encoders.event_table import EventTable, NumberScales, read_events
from epicrisis.encoders.saving import FILE, check_saved, read_about, write_about
from epicrisis.narrative import Lookups, Narrator
from epicrisis.settings import Settings, refuse
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.device import make_accelerator
from epicrisis.training.loop import train
from epicrisis.training.outcome import Outcome, load_outcome, outcome_for, row_predictions

SHAPE = ("event_model", "width", "layers", "heads", "times", "numbers")
"""Keys of `encoder` that the weights of a body go with."""

DECISIVE = (*SHAPE, "pooling", "max_events")
FOLDER = "model"
"""Where a model of events lies in a run directory."""

WEIGHTS, SCALES = "events.safetensors", "numbers.json"


@dataclass(frozen=True)
class EventInputs:
    """How histories become events: the narrator's phrases, their vectors, the scales of their numbers.

    directory: of the run, where vectors are kept.
    """

    settings: Settings
    narrator: Narrator
    phrases: PhraseVectors
    scales: NumberScales
    directory: Path

    def read(self, history: History) -> EventTable:
        """The latest events of the history's rows."""
        return read_events(history, self.narrator, self.settings.encoder.max_events)

    def events(self, table: EventTable) -> Events:
        """With what a model reads of them."""
        return Events(table, self.phrases.vectors(table.texts, self.directory), self.scales.apply(table))

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """The narrator, the scales, and what a model that was fitted on these inputs goes with."""
        self.narrator.save(folder / NARRATOR)
        (folder / SCALES).write_text(json.dumps(dict(self.scales.of), ensure_ascii=False, indent=1))
        told = {**self.narrator.choice(), "base": self.phrases.base, "stage": self.settings.stage}
        write_about(folder, {**about, **told}, self.settings, DECISIVE)


@dataclass
class FittedEvents:
    """A classifier of histories as events."""

    inputs: EventInputs
    module: RecordClassifier
    accelerator: Accelerator
    outcome: Outcome

    @property
    def classes(self) -> tuple[str, ...]:
        """The task's classes, in the order of the probabilities; of a time to an event its risk and horizons."""
        return self.outcome.columns

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """float64 [n_rows, n_columns] in the order of `rows` and of `classes`."""
        settings, table = self.inputs.settings, self.inputs.read(history)
        lesson = EventRows(self.inputs.events(table), settings.encoder.max_events, self.outcome)
        scores = row_predictions(self.module, lesson, sequences(settings), self.accelerator)
        return in_order(rows, table.keys.with_columns(scores=pl.Series(scores.tolist())))

    def save(self, directory: Path) -> None:
        """Weights, narrator, scales; the frozen encoder itself is not changed and not written."""
        folder = directory / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_weights(self.module), folder / WEIGHTS)
        self.inputs.save(folder, self.outcome.saved())


class EventEncoderArm:
    """`arm: event_encoder`."""

    def __init__(self, settings: Settings, lookups: Lookups):
        self._settings = settings
        self._lookups = lookups
        if settings.encoder.pretrained is not None:
            pretrained_folder(settings.encoder.pretrained)

    def fit(self, rows: pl.DataFrame, history: History, run: Run) -> FittedEvents:
        """Train on the train rows, watching tuning. `rows` holds both splits."""
        settings = self._settings
        accelerator = make_accelerator(settings.training)
        outcome = outcome_for(settings, rows)
        inputs, table = _inputs(settings, self._lookups, rows, history, run.dir, accelerator)
        tables = {split: table.of_split(rows, split) for split in ("train", "tuning")}
        body = _body(inputs, tables["train"]).to(accelerator.device)
        if settings.encoder.pretrained is not None:
            _take_over(body, pretrained_folder(settings.encoder.pretrained), inputs)
        if settings.encoder.finetune == "head":
            body.requires_grad_(False)
            if body.summary is not None:
                body.summary.requires_grad_(True)  # it reads for the head, and pretraining had none
        module = _classifier(body, settings, outcome.n_outputs).to(accelerator.device)
        most = settings.encoder.max_events
        lessons = {
            split: EventRows(inputs.events(one), most, outcome, targets_of(outcome, one.keys, rows))
            for split, one in tables.items()
        }
        outcome = learn(module, lessons["train"], lessons["tuning"], settings, accelerator, run)
        return FittedEvents(inputs, module.eval(), accelerator, outcome)

    def load(self, directory: Path) -> FittedEvents:
        """A saved classifier. InputError where the settings are not those that it was trained with."""
        settings, folder = self._settings, directory / FOLDER
        accelerator = make_accelerator(settings.training)
        about = read_about(folder, settings, DECISIVE)
        check_saved("stage", about["stage"], "classify")
        narrator = Narrator.load(folder / NARRATOR, self._lookups)
        check_choice(narrator, settings)
        phrases = PhraseVectors.of(settings, accelerator)
        check_saved("model.model_name", about["base"], phrases.base)
        inputs = EventInputs(settings, narrator, phrases, _scales(folder), directory)
        outcome, weights = load_outcome(about, settings), load_file(folder / WEIGHTS)
        body = EventBody(settings.encoder, weights["body.centre"], 1.0, settings.training.seed)
        module = _classifier(body, settings, outcome.n_outputs)
        module.load_state_dict(weights)
        return FittedEvents(inputs, module.to(accelerator.device).eval(), accelerator, outcome)


def event_encoder(settings: Settings, lookups: Lookups) -> EventEncoderArm:
    """The arm of these settings."""
    return EventEncoderArm(settings, lookups)


def pretrain(settings: Settings, lookups: Lookups, rows: pl.DataFrame, history: History, run: Run) -> dict[str, float]:
    """Train the model of events to find hidden events (encoder) or the next ones (decoder); writes its weights.

    rows: one row per subject of the splits train and tuning; labels are not looked at. Returns loss, its exponential
    (perplexity over the candidates of a batch) and accuracy on tuning before and after. See `EventPretraining`.
    Raises InputError where a split has no row with two events.
    """
    accelerator = make_accelerator(settings.training)
    inputs, table = _inputs(settings, lookups, rows, history, run.dir, accelerator)
    tables = {split: table.of_split(rows, split) for split in ("train", "tuning")}
    encoding, is_main = settings.encoder, accelerator.is_main_process
    share = None if encoding.event_model == "decoder" else encoding.mask_share
    lesson, tuning = (EventsToFind(inputs.events(one), share) for one in tables.values())
    if not (lesson.n_items and tuning.n_items):
        what = "no row of train, or none of tuning, has two events of which one could be found"
        raise refuse("data", what, "give subjects with longer records these splits")
    body = _body(inputs, tables["train"])
    module = EventPretraining(body, encoding.temperature, settings.training.seed).to(accelerator.device)

    def evaluate(module: nn.Module) -> dict[str, float]:
        return finding_metrics(module, tuning, sequences(settings), accelerator)  # type: ignore[arg-type]

    before = evaluate(module.eval())
    checkpoints = Checkpoints(run.dir / "checkpoints", settings.training.save_total_limit, accelerator)
    log = run.log if is_main else lambda **_: None
    train(module, lesson, settings.training, accelerator, checkpoints, title="pretrain", evaluate=evaluate, log=log)
    after = evaluate(module.eval())
    if is_main:
        folder = run.dir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_weights(body), folder / WEIGHTS)
        inputs.save(folder, {})
    accelerator.wait_for_everyone()
    return {
        **{f"{name}_before": value for name, value in before.items()},
        "perplexity_before": math.exp(before["loss"]),
        **after,
        "perplexity": math.exp(after["loss"]),
    }


def pretrained_folder(run: Path) -> Path:
    """Where a finished run of this arm, of either stage, keeps its weights; InputError where it is none."""
    folder = run / FOLDER
    about = json.loads((folder / FILE).read_text(encoding="utf-8")) if (folder / FILE).is_file() else {}
    if about.get("arm") != "event_encoder":
        what = f"{run} is no finished run of this arm"
        raise refuse("encoder.pretrained", what, "run arm: event_encoder, stage: pretrain first")
    return folder


def _inputs(
    settings: Settings,
    lookups: Lookups,
    rows: pl.DataFrame,
    history: History,
    directory: Path,
    accelerator: Accelerator,
) -> tuple[EventInputs, EventTable]:
    """Fitted on train, or as pretraining had them; and the rows' events."""
    earlier = None if settings.encoder.pretrained is None else pretrained_folder(settings.encoder.pretrained)
    with accelerator.main_process_first():
        told_before = None if earlier is None else earlier / NARRATOR
        narrator = run_narrator(settings, lookups, rows, history, directory, told_before)
    table = read_events(history, narrator, settings.encoder.max_events)
    scales = NumberScales.fit(table.of_split(rows, "train")) if earlier is None else _scales(earlier)
    return EventInputs(settings, narrator, PhraseVectors.of(settings, accelerator), scales, directory), table


def _body(inputs: EventInputs, train_table: EventTable) -> EventBody:
    """Untrained, with the middle of the train phrases' vectors, each phrase counted once."""
    used = np.unique(train_table.phrase)
    vectors = inputs.phrases.vectors(train_table.texts, inputs.directory)[used].astype(np.float64)
    centre = vectors.mean(axis=0) if len(used) else np.zeros(vectors.shape[1])
    spread = float((vectors - centre).std()) if len(used) > 1 else 1.0
    encoding, seed = inputs.settings.encoder, inputs.settings.training.seed
    return EventBody(encoding, torch.from_numpy(centre), spread or 1.0, seed)


def _classifier(body: EventBody, settings: Settings, n_outputs: int) -> RecordClassifier:
    encoding, seed = settings.encoder, settings.training.seed
    return RecordClassifier(body, encoding.width, n_outputs, encoding.dropout, seed)


def _take_over(body: EventBody, folder: Path, inputs: EventInputs) -> None:
    """The weights of an earlier run; InputError where the model or what it reads is another one."""
    about = json.loads((folder / FILE).read_text(encoding="utf-8"))
    encoding = inputs.settings.encoder.model_dump(mode="json")
    changed = [f"encoder.{key}" for key in SHAPE if about["encoder"][key] != encoding[key]]
    changed += ["model.model_name"] if about["base"] != inputs.phrases.base else []
    if changed:
        what = "is not what encoder.pretrained was made with"
        raise refuse(", ".join(changed), what, "use what that run's config.yaml says")
    weights = load_file(folder / WEIGHTS)
    if about["stage"] == "pretrain":  # which had nothing to sum up
        weights.pop("summary", None)
    else:  # its head stays behind
        weights = {name.removeprefix("body."): value for name, value in weights.items() if name.startswith("body.")}
    if body.summary is None:
        weights.pop("summary", None)
    body.load_state_dict(weights if body.summary is None else {"summary": body.summary.detach(), **weights})


def _scales(folder: Path) -> NumberScales:
    return NumberScales({phrase: tuple(scale) for phrase, scale in json.loads((folder / SCALES).read_text()).items()})


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
