"""The keys of `tabular`."""

from __future__ import annotations

from pydantic import Field

from epicrisis.settings.section import Section


class TabularSettings(Section):
    """The classical models on counts."""

    min_subjects: int = Field(5, ge=1)
    """Codes seen in fewer train subjects are no feature."""
