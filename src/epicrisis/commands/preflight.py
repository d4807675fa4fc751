"""Can this run end well? Asked of the whole input before a run directory is opened or a model is loaded."""

from __future__ import annotations

from epicrisis.cohort import Cohort
from epicrisis.cohort.task import label_matrix
from epicrisis.commands.arms import make_arm
from epicrisis.commands.judging import refuse_unless_judgeable
from epicrisis.narrative import Lookups, get_style
from epicrisis.narrative.narrator import check_dates
from epicrisis.settings import Settings, refuse
from epicrisis.settings.survival_checks import LEARNERS
from epicrisis.settings.survival_section import SurvivalSettings

UNWEIGHTED = ("logistic_regression", "random_forest", "xgboost", "lightgbm", "oracle")
"""Arms without `training.class_weights`."""


def refuse_unless_runnable(settings: Settings, cohort: Cohort, lookups: Lookups) -> None:
    """Raise InputError for an arm, style, task or cohort with which the run would fail later on."""
    make_arm(settings, lookups)
    check_dates(get_style(settings.narrative.style), settings.narrative.dates)
    if settings.arm not in UNWEIGHTED and cohort.select("tuning").is_empty():
        what = "the tuning split has no rows, and training is watched on them"
        raise refuse("data", what, "give some subjects of the cohort the split tuning")
    if settings.arm == "llm":
        refuse_unless_computable(settings)
    if settings.stage == "classify":
        refuse_unless_answerable(settings, cohort)
        refuse_unless_learnable(settings, cohort)
        refuse_unless_judgeable(settings, cohort)


def refuse_unless_computable(settings: Settings) -> None:
    """Raise InputError for an attention that this machine cannot train with."""
    from epicrisis.llm.attention import choose_attention
    from epicrisis.training.device import compute_dtype, make_accelerator

    training = settings.training
    device = make_accelerator(training).device
    choose_attention(settings.model.attn_implementation, device, compute_dtype(training), learning=True)


def refuse_unless_answerable(settings: Settings, cohort: Cohort) -> None:
    """Raise InputError for a cohort without labels, or of another number of classes than the config says."""
    task = cohort.task
    if task.kind == "none":
        raise refuse("data.labels_dir", "is not given", "classification needs labels: give a task's folder")
    expected = settings.model.num_classes
    if expected is not None and expected != len(task.classes):
        what = f"{expected}, but the task `{task.name}` has {len(task.classes)} classes"
        raise refuse("model.num_classes", what, "mend it, or leave it out")


def refuse_unless_learnable(settings: Settings, cohort: Cohort) -> None:
    """Raise InputError where the train rows lack a class, or this arm's head or weights do not fit the classes."""
    task = cohort.task
    if task.kind == "survival":
        refuse_unless_survival_is_learnable(settings, cohort)
        return
    if settings.survival != SurvivalSettings():
        what = f"the labels of `{task.name}` are no times to an event"
        raise refuse("survival", what, "leave the section out, or name labels with float_value and event_observed")
    train = label_matrix(cohort.select("train"), task.classes)
    unseen = [name for name, column in train.to_dict().items() if not column.any()]
    if unseen and task.kind != "binary":  # one class only is judged, and told, arm by arm
        what = f"no train row has {', '.join(unseen)}"
        raise refuse("data.labels_dir", what, "join these classes with others, or leave their rows out")
    if settings.arm == "llm":
        from epicrisis.llm.answering import check_head

        check_head(settings, task.kind, task.classes)
    weights = settings.training.class_weights
    if weights != "none" and settings.arm in UNWEIGHTED:
        what = f"the arm {settings.arm} knows no class weights"
        raise refuse("training.class_weights", what, "leave it out, or choose an arm that learns by gradient")
    if not isinstance(weights, str) and len(weights) != len(task.classes):
        what = f"{len(weights)} weights for the {len(task.classes)} classes {', '.join(task.classes)}"
        raise refuse("training.class_weights", what, "give one for each, in this order")


def refuse_unless_survival_is_learnable(settings: Settings, cohort: Cohort) -> None:
    """Raise InputError for an arm that learns no times to an event, or labels and settings that it cannot learn by."""
    task = cohort.task
    if settings.arm not in LEARNERS:
        what = f"`{settings.arm}` tells classes apart, and the labels of `{task.name}` are times to an event"
        raise refuse("arm", what, f"choose one of {', '.join(LEARNERS)}, or labels that are true or false")
    from epicrisis.training.outcome import outcome_for

    outcome_for(settings, cohort.rows)
    if settings.arm == "llm":
        from epicrisis.llm.answering import check_head

        check_head(settings, task.kind, task.classes)
