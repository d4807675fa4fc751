"""The keys of `survival`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from epicrisis.settings.section import Section


class SurvivalSettings(Section):
    """Time to an event: labels that are days (float_value) with event_observed."""

    head: Literal["discrete", "cox"] = "discrete"
    """The hazard of each of several intervals, or one relative risk (Cox), learnt within the risk sets of a batch."""
    n_intervals: int | None = Field(None, ge=1)
    """discrete: intervals, each with as many of the train rows' events as any other; 20 where not given."""
    horizons_days: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field((30, 90, 365), min_length=1)
    """Days from the prediction time by which the probability of the event is given and judged, in rising order."""

    @field_validator("n_intervals")
    @classmethod
    def _of_intervals(cls, given: int | None, info: ValidationInfo) -> int | None:
        if given is not None and info.data.get("head") == "cox":
            raise ValueError("a Cox model has no intervals: set survival.head: discrete, or leave it out")
        return given

    @field_validator("horizons_days")
    @classmethod
    def _rising(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        if any(after <= before for before, after in pairwise(given)):
            raise ValueError("name each once, the nearest first: [30, 90, 365]")
        return given
