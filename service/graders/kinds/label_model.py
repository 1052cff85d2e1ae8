"""``label_model``: a judge chooses a label."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from service.graders.bounds import EITHER, Interval
from service.graders.kinds.judge import Judge


class LabelModel(Judge):
    """1.0 when the label that the judge ``model`` chooses is one of ``passing_labels``, else 0.0."""

    type: Literal["label_model"]
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=100)]
    passing_labels: Annotated[list[str], Field(min_length=1, max_length=100)]

    @model_validator(mode="after")
    def _check_labels(self) -> "LabelModel":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a label is listed twice in 'labels'")
        unknown = [label for label in self.passing_labels if label not in self.labels]
        if unknown:
            raise ValueError(f"the passing label '{unknown[0][:80]}' is not one of 'labels'")
        return self

    def bounds(self) -> Interval:
        return EITHER
