"""Reinforcement."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator

from service.contracts import response_format as formats
from service.contracts.engines import ENGINES, Engine
from service.files import dataset
from service.graders.schemas import Grader
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from service.jobs.methods.definition import READ_BYTES, Training
from service.jobs.metrics import ReinforcementMetrics
from service.jobs.validation import ValidationSet


class Reinforcement(Training):
    """Answers are sampled and graded, and the better ones become more likely."""

    asked = Hyperparameters
    metrics = ReinforcementMetrics
    needs_validation_file = True

    type: Literal["reinforcement"] = "reinforcement"
    grader: Grader
    hyperparameters: ResolvedHyperparameters
    response_format: dict[str, Any] | None = None
    """As it was sent."""
    validation_sets: list[ValidationSet] = Field(default_factory=list)
    """What is evaluated beside the validation file, with it."""

    @field_validator("response_format")
    @classmethod
    def _is_known(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return formats.known(value)

    @classmethod
    def fits(cls, row: dict[str, Any]) -> bool:
        return bool(dataset.last_role(row) == "user")

    @classmethod
    def check_file(cls, path: Path, grader: Grader | None, give_up_at: float | None = None) -> dataset.DatasetReport:
        return dataset.check_for_reinforcement(path, grader, give_up_at)

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """What answers are held to."""
        return formats.schema_of(self.response_format)

    @property
    def longest_answer(self) -> int:
        return self.hyperparameters.max_completion_tokens

    @property
    def engine(self) -> Engine:
        return ENGINES[self.hyperparameters.rollout_engine]

    @property
    def sets(self) -> Sequence[ValidationSet]:
        return self.validation_sets

    @property
    def samples_ahead(self) -> bool:
        return self.hyperparameters.max_staleness > 0

    @property
    def samples_per_row(self) -> int:
        return self.hyperparameters.group_size

    @property
    def bytes_of_parameter(self) -> int:
        h, trained = self.hyperparameters, super().bytes_of_parameter
        critic = trained if h.advantage == "gae" else 0
        # An adapter's reference is the model without it.
        reference = READ_BYTES if h.kl_coefficient and self.trains_all_weights else 0
        return trained + critic + reference

    @property
    def cost_factors(self) -> tuple[object, ...]:
        h = self.hyperparameters
        others = (h.advantage == "gae", h.kl_coefficient > 0, h.filter_groups)
        return (*super().cost_factors, h.rollout_engine, self.longest_answer, *others)

    def with_answers_of(self, most: int) -> Self:
        sets = [each.with_answers_of(most) for each in self.validation_sets]
        if self.longest_answer <= most:
            return self.model_copy(update={"validation_sets": sets})
        # The part of an answer over which its reward falls stays the same part.
        buffer = self.hyperparameters.overlong_buffer * most // self.longest_answer
        update = {"max_completion_tokens": most, "overlong_buffer": buffer}
        shorter = self.hyperparameters.model_copy(update=update)
        return self.model_copy(update={"hyperparameters": shorter, "validation_sets": sets})
