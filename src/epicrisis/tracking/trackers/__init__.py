"""Where a run is shown besides its own directory: Weights & Biases, MLflow, TensorBoard, or any number of them."""

from epicrisis.tracking.trackers.protocol import Tracker
from epicrisis.tracking.trackers.tracked_run import TrackedRun, refuse_uninstalled, track

__all__ = ["TrackedRun", "Tracker", "refuse_uninstalled", "track"]
