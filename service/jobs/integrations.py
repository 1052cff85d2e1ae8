"""Where else a job's metrics go: the trackers that the operator has turned on."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.contracts.spelling import Spelled

MAX_INTEGRATIONS = 5
TAG_LENGTH = 64

Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128),
    Spelled(r"[^/\\#?%:\x00-\x1f]*", "characters other than / \\ # ? % : and control characters"),
]
"""A project's or an entity's, as W&B allows them."""
Tag = Annotated[str, StringConstraints(min_length=1, max_length=TAG_LENGTH)]
FolderName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128),
    # trackio drops all others from the name of a project's file, which two names would then share.
    Spelled(r"[A-Za-z0-9_-]*", "letters A to Z and a to z, digits, '_' and '-'"),
]
RunName = Annotated[
    str | None, StringConstraints(min_length=1, max_length=128), Field(description="Of the run. Default: the job's id.")
]
TagKey = Annotated[
    str,
    StringConstraints(min_length=1, max_length=TAG_LENGTH),
    Spelled(r"[A-Za-z0-9_. -]*", "letters A to Z and a to z, digits, '_', '.', '-' and spaces"),
]
TagValue = Annotated[str, StringConstraints(max_length=512)]


class Wandb(BaseModel):
    """A run of a project of Weights & Biases. ``entity`` is a team or user; without it, the operator decides."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: Name
    entity: Name | None = None
    name: RunName = None
    tags: list[Tag] | None = Field(None, max_length=20)


class Mlflow(BaseModel):
    """A run of an experiment of the operator's MLflow server, which is made when it is not there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: Name
    name: RunName = None
    tags: dict[TagKey, TagValue] | None = Field(None, max_length=20)


class Trackio(BaseModel):
    """A run of a project in the operator's trackio store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: FolderName
    name: RunName = None


class WandbIntegration(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["wandb"]
    wandb: Wandb

    @property
    def destination(self) -> str:
        return self.wandb.project


class MlflowIntegration(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["mlflow"]
    mlflow: Mlflow

    @property
    def destination(self) -> str:
        return self.mlflow.experiment


class TrackioIntegration(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["trackio"]
    trackio: Trackio

    @property
    def destination(self) -> str:
        return self.trackio.project


Integration = Annotated[WandbIntegration | MlflowIntegration | TrackioIntegration, Field(discriminator="type")]


class WandbRun(Wandb):
    run_id: str


class WandbObject(BaseModel):
    """An integration of a job, and the run that it writes."""

    type: Literal["wandb"] = "wandb"
    wandb: WandbRun


class TrackioRun(Trackio):
    run_id: str


class TrackioObject(BaseModel):
    """An integration of a job, and the run that it writes."""

    type: Literal["trackio"] = "trackio"
    trackio: TrackioRun


IntegrationObject = Annotated[WandbObject | MlflowIntegration | TrackioObject, Field(discriminator="type")]


def shown(integration: Integration, job_id: str, index: int) -> IntegrationObject:
    """An integration as the job's object has it."""
    if isinstance(integration, WandbIntegration):
        return WandbObject(wandb=WandbRun(**integration.wandb.model_dump(), run_id=run_id(job_id, index)))
    if isinstance(integration, TrackioIntegration):
        return TrackioObject(trackio=TrackioRun(**integration.trackio.model_dump(), run_id=run_id(job_id, index)))
    return integration


def run_id(job_id: str, index: int) -> str:
    """The run of a job's integration ``index``. Whoever goes on with a job after a crash or a pause goes on with it."""
    return job_id if index == 0 else f"{job_id}-{index + 1}"


def tags(integration: WandbIntegration, model: str, job_id: str) -> list[str]:
    """The run's tags: the given ones behind those that OpenAI's service gives its runs."""
    given = ["openai/finetune", f"openai/{model}"[:TAG_LENGTH], f"openai/{job_id}", *(integration.wandb.tags or [])]
    return list(dict.fromkeys(given))
