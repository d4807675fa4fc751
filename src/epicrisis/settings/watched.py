"""The metrics that runs log, and which way each of them is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epicrisis.settings.schema import Settings

HIGHER_IS_BETTER = {
    **{"loss": False, "perplexity": False, "auroc": True, "c_index": True, "answer_mass": True},
    **{"accuracy": True, "average_precision": True, "plos_loss": False, "plos_auroc": True},
    **{"auprc": True, "brier": False, "ece": False, "c_index_uno": True, "ibs": False},
}
"""Every metric that is taken on tuning: the one place that says which way is better."""

WATCHED = {"pretrain": ("loss", "perplexity"), "classify": ("loss", "auroc", "c_index")}
"""By stage, what its evaluations log; auroc only where tuning holds both classes, c_index only of times to an event."""

GRADIENT_ARMS = ("llm", "encoder", "event_encoder", "structured", "behrt", "exmed_bert")
"""The arms that learn step by step, are evaluated while they do, and log both."""

OF_STEPS = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "useful_token_share",
    "peak_memory_gb",
    "seconds_left",
)

JUDGED = ("auroc", "auprc", "brier", "ece")
"""What predictions of classes are judged by; as a whole, and of several classes also each against the rest."""


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether `value` beats the best so far; NaN never does, and anything else beats nothing."""
    if value != value:
        return False
    if best is None:
        return True
    return value > best if HIGHER_IS_BETTER[metric] else value < best


def higher_is_better(logged: str) -> bool | None:
    """Of a logged metric, `eval/auroc` or `tuning/brier@365` or `tuning/auroc:stroke`; None where nothing is known."""
    name = logged.partition("/")[2] or logged
    for ending in ("@", ":"):
        name = name.partition(ending)[0]
    for average in ("_weighted", "_micro"):
        name = name.removesuffix(average)
    return HIGHER_IS_BETTER.get(name)


def logged_metrics(settings: Settings, kind: str | None = None, classes: Sequence[str] = ()) -> tuple[str, ...]:
    """What a run of `train` with these settings logs of the train and tuning splits, by name in metrics.jsonl.

    kind: the task's (`binary`, `multiclass`, `multilabel`, `survival`), and classes: its classes; without a kind, what
    a task of any kind logs, its classes' own metrics apart. A metric that does not exist on a tuning split, such as
    the AUROC where all its rows are of one class, is not logged after all. Nothing of held_out is among them.
    """
    names = [f"train/{name}" for name in OF_STEPS] if settings.arm in GRADIENT_ARMS else []
    if settings.arm in GRADIENT_ARMS:
        names += [f"eval/{name}" for name in _evaluated(settings, kind)]
    judged = _in_the_end(settings) if settings.stage == "pretrain" else _judged(settings, kind, classes)
    return (*names, *(f"tuning/{name}" for name in judged))


def _evaluated(settings: Settings, kind: str | None) -> tuple[str, ...]:
    if settings.stage == "pretrain":
        return _evaluated_in_pretraining(settings)
    ranked = {None: ("auroc", "c_index"), "survival": ("c_index",)}.get(kind, ("auroc",))
    mass = ("answer_mass",) if settings.arm == "llm" and settings.model.answer_mass else ()
    return ("loss", *ranked, *mass)


def _evaluated_in_pretraining(settings: Settings) -> tuple[str, ...]:
    if settings.arm == "event_encoder":
        return ("loss", "accuracy")
    if settings.arm == "behrt" and settings.behrt.objective == "next_visit":
        return ("loss", "perplexity", "average_precision")
    if settings.arm == "exmed_bert" and settings.exmed.plos_weight:
        return ("loss", "perplexity", "plos_loss", "plos_auroc")
    return ("loss", "perplexity")


def _in_the_end(settings: Settings) -> tuple[str, ...]:
    """What pretraining says of tuning when it is done."""
    return tuple(dict.fromkeys((*_evaluated_in_pretraining(settings), "perplexity")))


def _judged(settings: Settings, kind: str | None, classes: Sequence[str]) -> tuple[str, ...]:
    horizons = settings.survival.horizons_days
    at_horizons = [f"{metric}@{days:g}" for metric in ("auroc", "brier") for days in horizons]
    followed = ("c_index", "c_index_uno", "ibs", *at_horizons)
    averages = [f"{metric}_{average}" for metric in ("auroc", "auprc") for average in ("weighted", "micro")]
    several = (*JUDGED, *averages, *(f"{metric}:{name}" for name in classes for metric in JUDGED))
    by_kind = {"binary": JUDGED, "multiclass": several, "multilabel": several, "survival": followed}
    return by_kind[kind] if kind in by_kind else tuple(dict.fromkeys((*several, *followed)))
