"""``label_model``: 1 when a judge chooses a label that passes, else 0."""

from typing import Any

from service.graders.kinds.label_model import LabelModel
from service.graders.settings import GraderSettings
from workers.graders.judge import JudgeGrader


class LabelModelGrader(JudgeGrader):
    def __init__(self, definition: LabelModel, settings: GraderSettings) -> None:
        super().__init__(definition, settings, definition.type, {"type": "string", "enum": definition.labels})
        self._labels, self._passing = set(definition.labels), set(definition.passing_labels)

    def reward(self, result: Any) -> float:
        if not isinstance(result, str) or result not in self._labels:
            raise ValueError("'result' is none of the labels")
        return float(result in self._passing)
