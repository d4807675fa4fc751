"""The metrics that training watches on tuning, and which way each of them is better."""

from __future__ import annotations

HIGHER_IS_BETTER = {"loss": False, "perplexity": False, "auroc": True, "c_index": True, "answer_mass": True}
"""Every metric that an evaluation on tuning logs: the one place that says which way is better."""

WATCHED = {"pretrain": ("loss", "perplexity"), "classify": ("loss", "auroc", "c_index")}
"""By stage, what its evaluations log; auroc only where tuning holds both classes, c_index only of times to an event."""


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether `value` beats the best so far; NaN never does, and anything else beats nothing."""
    if value != value:
        return False
    if best is None:
        return True
    return value > best if HIGHER_IS_BETTER[metric] else value < best
