"""``number``: the last number of a text, compared with another. A text without one is far from every number."""

import math
import re

from service.graders.kinds.number import Number
from service.graders.settings import GraderSettings
from workers.graders.grading import Comparison, Grade, GraderSample, SingleGrader

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


class NumberGrader(SingleGrader):
    def __init__(self, definition: Number, settings: GraderSettings) -> None:
        def near(text: str, reference: str) -> float:
            return float(abs(_last(text) - _last(reference)) <= definition.tolerance)

        self._comparison = Comparison(definition.input, definition.reference, near)

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        return [self._comparison.grade(sample) for sample in samples]


def _last(text: str) -> float:
    numbers = _NUMBER.findall(text)
    return float(numbers[-1]) if numbers else math.nan
