"""The keys of `encoder`."""

from __future__ import annotations

from epicrisis.settings.section import Section


class EncoderSettings(Section):
    """Text encoders."""
