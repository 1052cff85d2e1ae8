"""The methods of a job on the wire: what is documented of a request, and what is answered.

A request's method is checked by ``service.submission.request``, which takes more shapes than are documented and names
what is wrong with the others; the types of requests here are for the OpenAPI document alone.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.contracts.response_format import ResponseFormat
from service.core.openapi import ShownAs
from service.graders.schemas import Grader
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from service.jobs.hyperparameters.supervised import ResolvedSupervisedHyperparameters, SupervisedHyperparameters
from service.jobs.spec import Reinforcement, Supervised


class RequestedSupervisedParts(BaseModel):
    hyperparameters: SupervisedHyperparameters | None = None


class RequestedSupervised(BaseModel):
    type: Literal["supervised"]
    supervised: RequestedSupervisedParts | None = None


class RequestedReinforcementParts(BaseModel):
    grader: Grader
    hyperparameters: Hyperparameters | None = None
    response_format: ResponseFormat | None = None


class RequestedReinforcement(BaseModel):
    type: Literal["reinforcement"]
    reinforcement: RequestedReinforcementParts


Requested = Annotated[RequestedSupervised | RequestedReinforcement, Field(discriminator="type")]


RequestedMethod = Annotated[dict[str, Any], ShownAs(Requested)]


class ReinforcementParts(BaseModel):
    grader: Grader
    hyperparameters: ResolvedHyperparameters
    response_format: dict[str, Any] | None = None


class ReinforcementMethod(BaseModel):
    type: Literal["reinforcement"] = "reinforcement"
    reinforcement: ReinforcementParts


class SupervisedParts(BaseModel):
    hyperparameters: ResolvedSupervisedHyperparameters


class SupervisedMethod(BaseModel):
    type: Literal["supervised"] = "supervised"
    supervised: SupervisedParts


Method = Annotated[ReinforcementMethod | SupervisedMethod, Field(discriminator="type")]


def method_object(method: Reinforcement | Supervised) -> ReinforcementMethod | SupervisedMethod:
    if isinstance(method, Supervised):
        return SupervisedMethod(supervised=SupervisedParts(hyperparameters=method.hyperparameters))
    parts = ReinforcementParts(
        grader=method.grader, hyperparameters=method.hyperparameters, response_format=method.response_format
    )
    return ReinforcementMethod(reinforcement=parts)
