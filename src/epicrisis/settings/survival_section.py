"""The keys of `survival`."""

from __future__ import annotations

from epicrisis.settings.section import Section


class SurvivalSettings(Section):
    """Time to an event."""
