"""``string_check``: 1.0 when two texts compare as asked, else 0.0. Nothing is trimmed or normalised."""

from collections.abc import Callable

from service.graders.kinds.string_check import StringCheck
from service.graders.settings import GraderSettings
from workers.graders.grading import Comparison, Grade, GraderSample, SingleGrader

_OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


class StringCheckGrader(SingleGrader):
    def __init__(self, definition: StringCheck, settings: GraderSettings) -> None:
        holds = _OPERATIONS[definition.operation]
        self._comparison = Comparison(
            definition.input, definition.reference, lambda text, reference: float(holds(text, reference))
        )

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        return [self._comparison.grade(sample) for sample in samples]
