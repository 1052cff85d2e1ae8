"""``length``: 1 up to a target, then falling evenly to 0 at a limit. Words are what white space parts."""

from service.graders.kinds.length import Length
from service.graders.settings import GraderSettings
from service.graders.template import Template
from workers.graders.grading import Grade, GraderSample, SingleGrader, fill


class LengthGrader(SingleGrader):
    def __init__(self, definition: Length, settings: GraderSettings) -> None:
        self._templates = (Template.parse(definition.input),)
        self._words = definition.unit == "words"
        self._target, self._limit = definition.target, definition.limit

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        return [self._grade(sample) for sample in samples]

    def _grade(self, sample: GraderSample) -> Grade:
        texts = fill(self._templates, sample)
        if isinstance(texts, Grade):
            return texts
        (text,) = texts
        length = len(text.split()) if self._words else len(text)
        return Grade(min(max((self._limit - length) / (self._limit - self._target), 0.0), 1.0))
