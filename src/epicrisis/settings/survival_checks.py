"""What cannot be learnt of times to an event, told before anything is read."""

from __future__ import annotations

from epicrisis.settings.problems import Problem
from epicrisis.settings.schema import Settings

GRADIENT_FREE = ("oracle", "logistic_regression", "random_forest", "xgboost", "lightgbm")
"""Arms that read no batches."""
LEARNERS = ("llm", "encoder", "event_encoder", "structured", "behrt", "exmed_bert", "oracle")
"""Arms that know times to an event; the others tell classes apart."""


def survival_problems(settings: Settings) -> list[Problem]:
    """What is wrong with the section `survival`, beside the rest."""
    training, problems = settings.training, []
    if settings.survival.head != "cox" or settings.arm in GRADIENT_FREE or settings.stage == "pretrain":
        return []
    if training.batch_size == 1:
        what = "the risk sets of a Cox model are those of a batch, and a row alone has nobody to be compared with"
        problems.append(Problem("training.batch_size", what, "set 8 or more, or survival.head: discrete"))
    if training.batch_size == "auto":
        what = "the risk sets of a Cox model are those of a batch, so its size is no matter of memory alone"
        problems.append(Problem("training.batch_size", what, "give a number, or set survival.head: discrete"))
    return problems
