"""EHR events as patient narratives, language models adapted to them, and an honest comparison."""

__version__ = "0.1.0"
