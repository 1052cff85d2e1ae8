"""``length``: full reward for what is short enough, none for what is too long, evenly less in between."""

from typing import Any

import pytest

from service.graders.schemas import GraderError, parse_grader
from workers.graders import Grade, GraderSample, build


def length(**fields: Any) -> dict[str, Any]:
    return {"type": "length", "target": 2, "limit": 6} | fields


def grade(raw: dict[str, Any], output_text: str) -> Grade:
    (result,) = build(parse_grader(raw, "grader")).grade([GraderSample({"answer": "46"}, output_text)])
    return result


@pytest.mark.parametrize(
    ("words", "reward"), [(0, 1.0), (2, 1.0), (3, 0.75), (4, 0.5), (5, 0.25), (6, 0.0), (7, 0.0), (1000, 0.0)]
)
def test_words(words: int, reward: float) -> None:
    assert grade(length(), "\n".join(["word"] * words)) == Grade(reward)


@pytest.mark.parametrize(("text", "reward"), [("", 1.0), ("四六", 1.0), ("四 六!", 0.5), ("forty-six", 0.0)])
def test_characters(text: str, reward: float) -> None:
    assert grade(length(unit="characters"), text) == Grade(reward)


def test_what_is_measured_can_be_a_part_of_the_answer() -> None:
    raw = length(input="{{sample.output_json.summary}}")
    assert grade(raw, '{"summary": "one two three", "notes": "and much more that nobody counts"}') == Grade(0.75)
    failed = grade(raw, "no JSON")
    assert (failed.error, failed.sample_at_fault) == ("sample_parse_error", True)


def test_a_formula_pays_for_short_answers_only_where_they_are_right() -> None:
    exact = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    graders = {"right": exact | {"operation": "like"}, "short": length()}
    raw = {"type": "multi", "graders": graders, "calculate_output": "right * (0.8 + 0.2 * short)"}
    rewards = [grade(raw, text).reward for text in ("46", "I think that it is 46.", "47")]
    assert rewards == pytest.approx([1.0, 0.8, 0.0])
    assert parse_grader(raw, "grader").least_reward() == 0.0


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"limit": 2}, "grader", "'limit', 2, must be above 'target', 2"),
        ({"limit": 1}, "grader", "'limit', 1, must be above 'target', 2"),
        ({"target": -1}, "grader.target", "greater than or equal to 0"),
        ({"unit": "tokens"}, "grader.unit", "Allowed: 'words' or 'characters'"),
        ({"limit": None}, "grader.limit", "Missing required field 'limit'"),
        ({"limit": 1 << 40}, "grader.limit", "less than or equal to"),
        ({"reference": "x"}, "grader.reference", "Unknown field 'reference'"),
    ],
)
def test_what_cannot_be_measured_is_refused(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(GraderError) as refused:
        parse_grader(length(**fields), "grader")
    assert refused.value.param == param
    assert message in refused.value.message
