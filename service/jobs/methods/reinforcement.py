"""Reinforcement."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError, field_validator

from service.contracts.engines import ENGINES, Engine
from service.contracts.response_format import ResponseFormat
from service.files import dataset
from service.graders.schemas import Grader
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from service.jobs.methods.definition import MethodDefinition
from service.jobs.metrics import ReinforcementMetrics


class Reinforcement(MethodDefinition):
    """Answers are sampled and graded, and the better ones become more likely."""

    asked = Hyperparameters
    metrics = ReinforcementMetrics
    needs_validation_file = True

    type: Literal["reinforcement"] = "reinforcement"
    grader: Grader
    hyperparameters: ResolvedHyperparameters
    response_format: dict[str, Any] | None = None
    """As it was sent."""

    @field_validator("response_format")
    @classmethod
    def _is_known(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            ResponseFormat.model_validate(value or {"type": "text"})
        except ValidationError as error:
            raise ValueError("this is not a response format that is known here") from error
        return value

    @classmethod
    def fits(cls, row: dict[str, Any]) -> bool:
        return bool(dataset.last_role(row) == "user")

    @classmethod
    def check_file(cls, path: Path, grader: Grader | None, give_up_at: float | None = None) -> dataset.DatasetReport:
        return dataset.check_for_reinforcement(path, grader, give_up_at)

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """What answers are held to."""
        return None if self.response_format is None else ResponseFormat.model_validate(self.response_format).schema_

    @property
    def longest_answer(self) -> int:
        return self.hyperparameters.max_completion_tokens

    @property
    def engine(self) -> Engine:
        return ENGINES[self.hyperparameters.rollout_engine]

    @property
    def samples_ahead(self) -> bool:
        return self.hyperparameters.max_staleness > 0

    @property
    def samples_per_row(self) -> int:
        return self.hyperparameters.group_size

    @property
    def cost_factors(self) -> tuple[object, ...]:
        return (*super().cost_factors, self.hyperparameters.rollout_engine, self.longest_answer)

    def with_answers_of(self, most: int) -> Self:
        if self.longest_answer <= most:
            return self
        # The part of an answer over which its reward falls stays the same part.
        buffer = self.hyperparameters.overlong_buffer * most // self.longest_answer
        update = {"max_completion_tokens": most, "overlong_buffer": buffer}
        shorter = self.hyperparameters.model_copy(update=update)
        return self.model_copy(update={"hyperparameters": shorter})
