"""``score_model``: the number that a judge answers, clipped to a range."""

import math
from typing import Any

from service.contracts import strict_json
from service.graders.kinds.score_model import ScoreModel
from service.graders.settings import GraderSettings
from workers.graders.judge import JudgeGrader


class ScoreModelGrader(JudgeGrader):
    def __init__(self, definition: ScoreModel, settings: GraderSettings) -> None:
        super().__init__(definition, settings, definition.type, {"type": "number"})
        self._low, self._high = definition.range

    def reward(self, result: Any) -> float:
        if isinstance(result, bool) or not isinstance(result, int | float) or not math.isfinite(result):
            raise ValueError(f"'result' is {strict_json.kind(result)}, not a number")
        return float(min(max(result, self._low), self._high))
