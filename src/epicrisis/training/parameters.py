"""A module's parameters: what the optimiser is given, by learning rate, and how many there are."""

from __future__ import annotations

from typing import Any

from torch import nn

from epicrisis.settings.schema import TrainingSettings
from epicrisis.tracking.run_record import PARAMETERS, TRAINED

_OF_EMBEDDINGS = (".modules_to_save.", ".trainable_tokens_delta.")


def parameter_groups(model: nn.Module, training: TrainingSettings) -> list[dict[str, Any]]:
    """The parameters that require gradients, as optimiser groups: adapters and heads, then embeddings.

    Embeddings are the token embedding, the output layer and new tokens, where they are trained; they have
    `training.embedding_learning_rate`. Each group has `params` and `lr`; there is no empty group.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    rates = {False: training.learning_rate, True: training.embedding_learning_rate or training.learning_rate}
    groups = []
    for of_embeddings, rate in rates.items():
        parameters = [parameter for name, parameter in trained if _is_of_embeddings(name) == of_embeddings]
        if parameters:
            groups.append({"params": parameters, "lr": rate})
    return groups


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """How many parameters the model has, and how many are trained, as a run's record names them.

    Shared ones count once, 4-bit ones for what they stand for.
    """
    counted = [(_numel(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return {PARAMETERS: sum(n for n, _ in counted), TRAINED: sum(n for n, trained in counted if trained)}


def _numel(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    # Two 4-bit weights lie in each byte; what they were before says how many there are.
    return parameter.numel() if state is None else state.shape.numel()


def _is_of_embeddings(name: str) -> bool:
    return any(part in name for part in _OF_EMBEDDINGS)
