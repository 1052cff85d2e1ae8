"""The hyperparameters of evaluation: those of reinforcement that are about answers."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from service.contracts.engines import EngineName
from service.jobs.hyperparameters.option import Asked, Option, ToldToTemplates, asked_of, options
from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters

_OF_TRAINING = options(ResolvedHyperparameters)


class ResolvedEvaluationHyperparameters(ToldToTemplates):
    """Hyperparameters with every ``"auto"`` replaced by the value the run uses."""

    batch_size: Annotated[
        int,
        Option(
            doc="rows per step, after which the job can be paused, or resumed from elsewhere", default=64, ge=1, le=5000
        ),
    ]
    eval_samples: Annotated[int, _OF_TRAINING["eval_samples"]]
    eval_temperature: Annotated[float, _OF_TRAINING["eval_temperature"]]
    max_completion_tokens: Annotated[int, _OF_TRAINING["max_completion_tokens"]]
    reasoning_effort: Annotated[Literal["default", "low", "medium", "high"], _OF_TRAINING["reasoning_effort"]]
    chat_template_kwargs: Annotated[dict[str, Any], _OF_TRAINING["chat_template_kwargs"]]
    rollout_engine: Annotated[EngineName, _OF_TRAINING["rollout_engine"]]


if TYPE_CHECKING:

    class EvaluationHyperparameters(Asked[ResolvedEvaluationHyperparameters]):
        def __init__(self, **asked: Any) -> None: ...

else:
    EvaluationHyperparameters = asked_of(
        ResolvedEvaluationHyperparameters,
        "EvaluationHyperparameters",
        "Hyperparameters of an evaluation as a user gives them.",
    )
