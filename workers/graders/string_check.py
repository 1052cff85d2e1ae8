"""``string_check``: 1.0 when two texts compare as asked, else 0.0. Nothing is trimmed or normalised."""

from collections.abc import Callable

from service.graders.schemas import StringCheck
from workers.graders.grading import Comparison, Grade, Sample

_OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


class StringCheckGrader:
    def __init__(self, definition: StringCheck) -> None:
        holds = _OPERATIONS[definition.operation]
        self._comparison = Comparison(
            definition.input, definition.reference, lambda text, reference: float(holds(text, reference))
        )

    def grade(self, samples: list[Sample]) -> list[Grade]:
        return [self._comparison.grade(sample) for sample in samples]
