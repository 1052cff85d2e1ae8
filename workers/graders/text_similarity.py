"""``text_similarity``: how close two texts are, in [0, 1].

``fuzzy_match`` is RapidFuzz's ``fuzz.ratio`` over 100: twice the length of the longest common subsequence over the sum
of both lengths. OpenAI's documentation says "using rapidfuzz" and not which of its scores; its examples use ``ratio``
in one place and ``WRatio`` with lower-casing and removal of punctuation in another. As a reward only ``ratio`` is safe:
it is 1 for equal texts and for no others, and every needless character lowers it. ``WRatio`` pays 0.9 for an answer
that merely contains the reference, so a model learns to list all candidates, and with punctuation removed it cannot
tell -5 from 5.
"""

from rapidfuzz import fuzz

from service.graders.schemas import TextSimilarity
from workers.graders.grading import Comparison, Grade, Sample


def fuzzy_match(text: str, reference: str) -> float:
    return fuzz.ratio(text, reference) / 100.0


_METRICS = {"fuzzy_match": fuzzy_match}


class TextSimilarityGrader:
    def __init__(self, definition: TextSimilarity) -> None:
        metric = _METRICS[definition.evaluation_metric]
        self._comparison = Comparison(definition.input, definition.reference, metric)

    def grade(self, samples: list[Sample]) -> list[Grade]:
        return [self._comparison.grade(sample) for sample in samples]
