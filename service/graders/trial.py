"""Graders on trial: the wire shapes of checking a definition and of running it on one answer."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.core import ask, broker
from service.core.errors import DomainError, invalid
from service.core.threads import parsing_threads
from service.graders.configured import admit
from service.graders.schemas import Grader

RUN_SECONDS = 150.0
"""How long one answer may take to be graded; a python grader alone may take two minutes."""
LOAD_SECONDS = 60.0
"""How long a grader's code may take to be loaded, its turn included."""


class ValidateGrader(BaseModel):
    model_config = ConfigDict(extra="forbid")

    grader: dict[str, Any]


class ValidatedGrader(BaseModel):
    """The grader as a job would keep it."""

    grader: dict[str, Any]


class LoadedGrader(BaseModel):
    """What keeps a grader's code from being loaded, by field of the request; or why nobody could find out."""

    faults: dict[str, str] = {}
    unavailable: str | None = None


class RunGrader(BaseModel):
    model_config = ConfigDict(extra="forbid")

    grader: dict[str, Any]
    model_sample: str = Field(
        description="What the model said: `sample.output_text`, and `sample.output_json` if JSON."
    )
    item: dict[str, Any] | None = Field(None, description="The dataset row.")


class LoadQuestion(BaseModel):
    """What the control worker is asked to load."""

    model_config = ConfigDict(extra="forbid")

    organization_id: str
    grader: Grader


class RunQuestion(LoadQuestion):
    """What the control worker is asked to grade."""

    model_sample: str
    item: dict[str, Any]


class RunErrors(BaseModel):
    """Why there is no reward: a failed grader is an answer, not an error of the request."""

    model_config = ConfigDict(protected_namespaces=())

    formula_parse_error: bool = False
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    invalid_variable_error: bool = False
    other_error: bool = False
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    model_grader_server_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_server_error_details: str | None = None
    details: str | None = Field(None, description="The reason in words.")


class RunMetadata(BaseModel):
    name: str
    type: str
    execution_time: float = Field(description="Seconds.")
    scores: dict[str, float]
    token_usage: int | None
    sampled_model_name: str | None = None
    errors: RunErrors


class RanGrader(BaseModel):
    """``reward`` is as training counts it: an answer at fault earns the least that the grader gives.

    It is 0 where a jail, a judge or a service failed; training leaves such answers out.
    """

    model_config = ConfigDict(protected_namespaces=())

    reward: float
    metadata: RunMetadata
    sub_rewards: dict[str, float]
    model_grader_token_usage_per_model: dict[str, dict[str, int]]


async def validate(request: ValidateGrader, organization_id: str) -> ValidatedGrader:
    """Check a grader; code is loaded in the control worker's jail. Raises a 400 that names the field at fault."""
    grader = await _admitted(request.grader, organization_id)
    kept = grader.model_dump(mode="json")
    if any(each.loads_code for each in (grader, *grader.parts.values())):
        question = LoadQuestion(organization_id=organization_id, grader=grader).model_dump(mode="json")
        found = ask.read(LoadedGrader, await ask.ask(broker.LOAD_GRADER, question, LOAD_SECONDS))
        if found.unavailable is not None:
            raise DomainError(503, "jail_unavailable", f"The grader could not be loaded: {found.unavailable}.")
        for field, fault in found.faults.items():
            raise invalid(f"The grader cannot be loaded:\n{fault}", field, "invalid_grader")
    return ValidatedGrader(grader=kept)


async def _admitted(raw: dict[str, Any], organization_id: str) -> Grader:
    # Reading the source of a python grader takes its time, in which others are to be answered.
    return await parsing_threads.run_to_end(organization_id, admit, raw, "grader", organization_id)


async def run(request: RunGrader, organization_id: str) -> RanGrader:
    """Grade one answer in the control worker."""
    grader = await _admitted(request.grader, organization_id)
    question = RunQuestion(
        organization_id=organization_id, grader=grader, model_sample=request.model_sample, item=request.item or {}
    )
    return ask.read(RanGrader, await ask.ask(broker.RUN_GRADER, question.model_dump(mode="json"), RUN_SECONDS))
