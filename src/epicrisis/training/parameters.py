"""What the optimiser is given: trained parameters by module, each group with its learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from epicrisis.settings.schema import TrainingSettings

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


def _is_of_embeddings(name: str) -> bool:
    return any(part in name for part in _OF_EMBEDDINGS)
