"""The only door between raw events and a model: who is asked about, when, and what may be seen by then."""

from epicrisis.cohort.cohort import Cohort, History, build_cohort, rows_fingerprint
from epicrisis.cohort.task import Task
from epicrisis.cohort.visibility import visible

__all__ = ["Cohort", "History", "Task", "build_cohort", "rows_fingerprint", "visible"]
