"""The run directory and its finished-stage stamps."""

from epicrisis.tracking.run_directory import RunDirectory, open_run, replacing
from epicrisis.tracking.stamps import mark_done, stage_done

__all__ = ["RunDirectory", "mark_done", "open_run", "replacing", "stage_done"]
