"""Classical models on counts of visible codes: the baseline that every other arm has to beat."""

from epicrisis.tabular.arms import (
    ARMS,
    FittedArm,
    History,
    LightGBMArm,
    LogisticRegressionArm,
    RandomForestArm,
    Run,
    TabularArm,
    XGBoostArm,
    load_arm,
)

__all__ = [
    "ARMS",
    "FittedArm",
    "History",
    "LightGBMArm",
    "LogisticRegressionArm",
    "RandomForestArm",
    "Run",
    "TabularArm",
    "XGBoostArm",
    "load_arm",
]
