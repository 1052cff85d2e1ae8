"""Where else a job's metrics go: Weights & Biases, if the operator has turned it on."""

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


class Wandb(BaseModel):
    """A run of a project of Weights & Biases. ``entity`` is a team or user; without it, the operator's key decides."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: Name
    entity: Name | None = None
    name: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        None, description="Of the run. Default: the job's id."
    )
    tags: list[Tag] | None = Field(None, max_length=20)


class Integration(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["wandb"]
    wandb: Wandb


class WandbRun(Wandb):
    run_id: str


class IntegrationObject(BaseModel):
    """An integration of a job, and the run that it writes."""

    type: Literal["wandb"] = "wandb"
    wandb: WandbRun

    @classmethod
    def of(cls, integration: Integration, job_id: str, index: int) -> "IntegrationObject":
        return cls(wandb=WandbRun(**integration.wandb.model_dump(), run_id=run_id(job_id, index)))


def run_id(job_id: str, index: int) -> str:
    """The run of a job's integration ``index``. Whoever goes on with a job after a crash or a pause goes on with it."""
    return job_id if index == 0 else f"{job_id}-{index + 1}"


def tags(integration: Integration, model: str, job_id: str) -> list[str]:
    """The run's tags: the given ones behind those that OpenAI's service gives its runs."""
    given = ["openai/finetune", f"openai/{model}"[:TAG_LENGTH], f"openai/{job_id}", *(integration.wandb.tags or [])]
    return list(dict.fromkeys(given))
