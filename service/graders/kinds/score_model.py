"""``score_model``: a judge gives a number."""

from typing import Literal

from pydantic import field_validator

from service.graders.bounds import Interval
from service.graders.definition import MAX_REWARD
from service.graders.kinds.judge import Judge


class ScoreModel(Judge):
    """The number that the judge ``model`` answers with, clipped to ``range``."""

    type: Literal["score_model"]
    range: tuple[float, float] = (0.0, 1.0)
    pass_threshold: float | None = None

    @field_validator("range")
    @classmethod
    def _check_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"the first bound, {value[0]:g}, must be below the second, {value[1]:g}")
        if max(map(abs, value)) > MAX_REWARD:
            raise ValueError(f"rewards must be from {-MAX_REWARD:,.0f} to {MAX_REWARD:,.0f}")
        return value

    def bounds(self) -> Interval:
        return Interval(*self.range)
