"""Evaluation, without training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator

from service.contracts import response_format as formats
from service.contracts.engines import ENGINES, Engine
from service.files import dataset
from service.graders.schemas import Grader
from service.jobs.hyperparameters.evaluation import EvaluationHyperparameters, ResolvedEvaluationHyperparameters
from service.jobs.methods.definition import READ_BYTES, MethodDefinition
from service.jobs.metrics import EvaluationMetrics
from service.jobs.validation import ValidationSet


class Evaluation(MethodDefinition):
    """Answers to the rows of validation sets are sampled and graded. Nothing is learned, and no model is made."""

    asked = EvaluationHyperparameters
    metrics = EvaluationMetrics
    trains = False

    type: Literal["evaluation"] = "evaluation"
    grader: Grader | None = None
    hyperparameters: ResolvedEvaluationHyperparameters
    response_format: dict[str, Any] | None = None
    """As it was sent."""
    validation_sets: list[ValidationSet] = Field(min_length=1)
    """In the order in which they are evaluated."""

    @field_validator("response_format")
    @classmethod
    def _is_known(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return formats.known(value)

    @classmethod
    def fits(cls, row: dict[str, Any]) -> bool:
        return False  # A row to be answered is one for reinforcement as well.

    @classmethod
    def check_file(cls, path: Path, grader: Grader | None, give_up_at: float | None = None) -> dataset.DatasetReport:
        return dataset.check_for_reinforcement(path, grader, give_up_at)

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """What answers are held to."""
        return formats.schema_of(self.response_format)

    @property
    def sets(self) -> Sequence[ValidationSet]:
        return self.validation_sets

    @property
    def longest_answer(self) -> int:
        return max(each.max_completion_tokens for each in self.validation_sets)

    @property
    def engine(self) -> Engine:
        return ENGINES[self.hyperparameters.rollout_engine]

    @property
    def total_steps(self) -> int:
        return sum(math.ceil(each.rows / self.hyperparameters.batch_size) for each in self.validation_sets)

    @property
    def samples(self) -> int:
        return sum(each.rows * each.samples_per_row for each in self.validation_sets)

    @property
    def bytes_of_parameter(self) -> int:
        return READ_BYTES

    @property
    def cost_factors(self) -> tuple[object, ...]:
        return (self.hyperparameters.rollout_engine, self.longest_answer)

    def with_answers_of(self, most: int) -> Self:
        sets = [each.with_answers_of(most) for each in self.validation_sets]
        h = self.hyperparameters
        shorter = h.model_copy(update={"max_completion_tokens": min(most, h.max_completion_tokens)})
        return self.model_copy(update={"hyperparameters": shorter, "validation_sets": sets})
