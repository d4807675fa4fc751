"""Area under the ROC curve, ties counted half; equals roc_auc_score."""

from typing import Any

import datasets
import evaluate
import numpy as np

from epicrisis.evaluation.metrics import point_scores, why_undefined

INPUTS = """
Args:
    prediction_scores: the probability of each row's label being true.
    references: the labels, 0 or 1.
Returns:
    auroc: the value, or None where it does not exist.
    reason: why it does not exist, or None.
"""


class Auroc(evaluate.Metric):
    """Hugging Face evaluate metric; see the module's first line."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"prediction_scores": datasets.Value("float64"), "references": datasets.Value("int32")}
        )
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Hanley & McNeil 1982, Radiology 143(1):29-36",
            inputs_description=INPUTS,
            features=features,
        )

    def _compute(self, prediction_scores: Any, references: Any) -> dict[str, float | str | None]:
        labels = np.asarray(references, dtype=bool)
        value = point_scores(labels, np.asarray(prediction_scores, dtype=np.float64))["auroc"]
        return {"auroc": value, "reason": why_undefined("auroc", labels)}
