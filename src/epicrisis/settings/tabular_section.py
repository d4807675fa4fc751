"""The keys of `tabular`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from epicrisis.settings.section import Section

CountForm = Literal["binary", "frequency", "recency"]
ValueFeature = Literal["last", "min", "max", "trend"]


class TabularSettings(Section):
    """The classical models on counts."""

    min_subjects: int = Field(5, ge=1)
    """Codes seen in fewer train subjects are no feature."""
    counts: CountForm = "frequency"
    """`binary` (seen or not), `frequency` (log(1 + events)), or `recency` (log(1 + events that fade with age))."""
    half_life_days: float | None = Field(None, gt=0, allow_inf_nan=False)
    """recency: an event this many days old counts half, one twice as old a quarter; 365 where not given."""
    windows_days: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, ...] = Field((None,), min_length=1)
    """Counts of the last so many days, a set of columns each; null is the whole visible history: [30, 365, null]."""
    value_features: tuple[ValueFeature, ...] = ("last",)
    """Of a code's numbers: `last`, `min`, `max`, and `trend`, the slope per year over two or more distinct times."""
    learning_rate: float = Field(0.05, gt=0, le=1)
    """xgboost and lightgbm: the share of each tree's answer that is added; smaller ones need more trees."""

    @field_validator("half_life_days")
    @classmethod
    def _fading(cls, days: float | None, info: ValidationInfo) -> float | None:
        if days is not None and info.data.get("counts", "recency") != "recency":
            raise ValueError("only counts that fade have a half-life: set tabular.counts: recency, or leave it out")
        return days

    @field_validator("windows_days", "value_features")
    @classmethod
    def _distinct(cls, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(given)) < len(given):
            raise ValueError("names one twice: keep it once")
        return given
