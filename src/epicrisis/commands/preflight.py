"""Can this run end well? Asked of the whole input before a run directory is opened or a model is loaded."""

from __future__ import annotations

from epicrisis.cohort import Cohort
from epicrisis.cohort.task import label_matrix
from epicrisis.commands.arms import make_arm
from epicrisis.commands.judging import refuse_unless_judgeable
from epicrisis.narrative import Lookups, get_style
from epicrisis.narrative.narrator import check_dates
from epicrisis.settings import Settings, refuse


def refuse_unless_runnable(settings: Settings, cohort: Cohort, lookups: Lookups) -> None:
    """Raise InputError for an arm, style, task or cohort with which the run would fail later on."""
    make_arm(settings, lookups)
    check_dates(get_style(settings.narrative.style), settings.narrative.dates)
    if settings.arm == "llm" and cohort.select("tuning").is_empty():
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
    train = label_matrix(cohort.select("train"), task.classes)
    unseen = [name for name, column in train.to_dict().items() if not column.any()]
    if unseen and task.kind != "binary":  # one class only is judged, and told, arm by arm
        what = f"no train row has {', '.join(unseen)}"
        raise refuse("data.labels_dir", what, "join these classes with others, or leave their rows out")
    if settings.arm == "llm":
        from epicrisis.llm.answering import check_head

        check_head(settings, task.kind, task.classes)
        weights = settings.training.class_weights
        if not isinstance(weights, str) and len(weights) != len(task.classes):
            what = f"{len(weights)} weights for the {len(task.classes)} classes {', '.join(task.classes)}"
            raise refuse("training.class_weights", what, "give one for each, in this order")
    elif settings.training.class_weights != "none":
        what = f"the arm {settings.arm} knows no class weights"
        raise refuse("training.class_weights", what, "leave it out, or set arm: llm")
