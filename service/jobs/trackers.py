"""Which trackers the operator has turned on, and where jobs may report."""

import re

from service.jobs.integrations import Integration, MlflowIntegration, TrackioIntegration, WandbIntegration
from service.settings import settings


def refusal(integration: Integration, organization_id: str, project_id: str) -> str | None:
    """Why a job of this project may not report there; None where it may."""
    return _turned_off(integration) or _of_name(integration.destination, organization_id, project_id)


def _turned_off(integration: Integration) -> str | None:
    match integration:
        case WandbIntegration():
            return _of_wandb(integration)
        case MlflowIntegration():
            return _of_mlflow()
        case TrackioIntegration():
            return _of_trackio()


def _of_wandb(integration: WandbIntegration) -> str | None:
    ours = settings()
    if ours.wandb_mode == "off":
        return (
            "Weights & Biases is turned off on this server. Leave it out of 'integrations', or ask the operator to set "
            "TROLL_WANDB_MODE and TROLL_WANDB_API_KEY."
        )
    if ours.wandb_entity is not None and integration.wandb.entity not in (None, ours.wandb_entity):
        return f"Runs go to the entity '{ours.wandb_entity}' alone: name it, or leave 'entity' out."
    return None


def _of_mlflow() -> str | None:
    if settings().mlflow_uri is not None:
        return None
    return (
        "MLflow is turned off on this server. Leave it out of 'integrations', or ask the operator to set "
        "TROLL_MLFLOW_URI."
    )


def _of_trackio() -> str | None:
    if settings().trackio_dir is not None:
        return None
    return (
        "trackio is turned off on this server. Leave it out of 'integrations', or ask the operator to set "
        "TROLL_TRACKIO_DIR."
    )


def _of_name(name: str, organization_id: str, project_id: str) -> str | None:
    allowed = settings().tracker_projects.format(organization=organization_id, project=project_id)
    if re.fullmatch(".*".join(map(re.escape, allowed.split("*"))), name, re.DOTALL):
        return None
    return f"This server reports to projects and experiments named '{allowed}' alone, and '{name}' is none."
