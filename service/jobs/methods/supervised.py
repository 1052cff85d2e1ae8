"""Supervised fine-tuning."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from service.files import dataset
from service.graders.schemas import Grader
from service.jobs.hyperparameters.supervised import ResolvedSupervisedHyperparameters, SupervisedHyperparameters
from service.jobs.methods.definition import Training
from service.jobs.metrics import SupervisedMetrics


class Supervised(Training):
    """The assistant's messages of the rows become more likely."""

    asked = SupervisedHyperparameters
    metrics = SupervisedMetrics
    # As OpenAI names them.
    result_columns: ClassVar[dict[str, str]] = {
        "step": "step",
        "train_loss": "train_loss",
        "train_accuracy": "train_mean_token_accuracy",
        "valid_loss": "valid_loss",
        "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    }

    type: Literal["supervised"] = "supervised"
    hyperparameters: ResolvedSupervisedHyperparameters

    @classmethod
    def fits(cls, row: dict[str, Any]) -> bool:
        return bool(dataset.last_role(row) == "assistant")

    @classmethod
    def check_file(cls, path: Path, grader: Grader | None, give_up_at: float | None = None) -> dataset.DatasetReport:
        return dataset.check_for_supervised(path, give_up_at)
