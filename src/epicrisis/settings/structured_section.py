"""The keys of `structured`."""

from __future__ import annotations

from epicrisis.settings.section import Section


class StructuredSettings(Section):
    """Models of codes."""
