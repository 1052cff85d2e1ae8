"""The trackers, by the ``type`` of an integration."""

from workers.tracking.mlflow import MlflowRun
from workers.tracking.run import TrackedRun
from workers.tracking.trackio import TrackioRun
from workers.tracking.wandb import WandbRun

TRACKERS: dict[str, type[TrackedRun]] = {"wandb": WandbRun, "mlflow": MlflowRun, "trackio": TrackioRun}
