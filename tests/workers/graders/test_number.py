"""``number``: the last number of an answer, compared."""

import pytest

from service.graders.schemas import parse_grader
from workers.graders import Grade, GraderSample, build


@pytest.mark.parametrize(
    ("text", "reward"), [("46", 1.0), ("12 + 34 = 46.4", 1.0), ("46 or 47", 0.0), ("-46", 0.0), ("forty-six", 0.0)]
)
def test_the_last_number_counts(text: str, reward: float) -> None:
    grader = build(parse_grader({"type": "number", "reference": "{{item.answer}}", "tolerance": 0.5}, "grader"))
    assert grader.grade([GraderSample({"answer": "46"}, text)]) == [Grade(reward)]
