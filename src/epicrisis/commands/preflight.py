"""Can this run end well? Asked of the whole input before a run directory is opened or a model is loaded."""

from __future__ import annotations

from epicrisis.cohort import Cohort
from epicrisis.commands.arms import make_arm
from epicrisis.commands.judging import refuse_unless_judgeable
from epicrisis.narrative import Lookups, get_style
from epicrisis.settings import Settings, refuse


def refuse_unless_runnable(settings: Settings, cohort: Cohort, lookups: Lookups) -> None:
    """Raise InputError for an arm, style, task or cohort with which the run would fail later on."""
    make_arm(settings, lookups)
    get_style(settings.narrative.style)
    if settings.arm == "llm" and cohort.select("tuning").is_empty():
        what = "the tuning split has no rows, and training is watched on them"
        raise refuse("data", what, "give some subjects of the cohort the split tuning")
    if settings.stage == "classify":
        refuse_unless_answerable(settings, cohort)
        refuse_unless_judgeable(settings, cohort)


def refuse_unless_answerable(settings: Settings, cohort: Cohort) -> None:
    """Raise InputError for a task that no arm of this version can do, or of another size than the config says."""
    task = cohort.task
    if task.kind == "none":
        raise refuse("data.labels_dir", "is not given", "classification needs labels: give a task's folder")
    if task.kind != "binary":
        what = f"the task `{task.name}` is {task.kind}"
        raise refuse("data.labels_dir", what, "the arms of this version answer binary tasks: give boolean_value labels")
    expected = settings.model.num_classes
    if expected is not None and expected != len(task.classes):
        what = f"{expected}, but the task `{task.name}` has {len(task.classes)} classes"
        raise refuse("model.num_classes", what, "mend it, or leave it out")
