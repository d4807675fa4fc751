"""A config file and overrides become one frozen, typed Settings."""

from epicrisis.settings.load import load_settings, merge, settings_from
from epicrisis.settings.problems import InputError, Problem, refuse
from epicrisis.settings.schema import Settings

__all__ = ["InputError", "Problem", "Settings", "load_settings", "merge", "refuse", "settings_from"]
