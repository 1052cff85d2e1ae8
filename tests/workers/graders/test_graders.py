"""Graders grade: scores of each type, and a reason instead of a reward where there is none."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.graders.schemas import parse_grader
from workers.graders import Grade, GraderSample, build
from workers.graders.text_similarity import fuzzy_match

ITEM = {"answer": "46", "wanted": {"email": "a@b.c"}}


def string_check(
    operation: str = "eq", input: str = "{{sample.output_text}}", reference: str = "{{item.answer}}"
) -> dict[str, Any]:
    return {"type": "string_check", "name": "g", "input": input, "reference": reference, "operation": operation}


def text_similarity(reference: str = "{{item.answer}}") -> dict[str, Any]:
    return {
        "type": "text_similarity",
        "name": "g",
        "input": "{{sample.output_text}}",
        "reference": reference,
        "evaluation_metric": "fuzzy_match",
    }


def multi(formula: str, **graders: dict[str, Any]) -> dict[str, Any]:
    return {"type": "multi", "graders": graders, "calculate_output": formula}


def grade(raw: dict[str, Any], output_text: str, item: dict[str, Any] = ITEM) -> Grade:
    (result,) = build(parse_grader(raw, "grader")).grade([GraderSample(item, output_text)])
    return result


@pytest.mark.parametrize(
    ("operation", "output", "reward"),
    [
        ("eq", "46", 1.0),
        ("eq", "46 ", 0.0),
        ("eq", "47", 0.0),
        ("ne", "46", 0.0),
        ("ne", "47", 1.0),
        ("neq", "47", 1.0),
        ("like", "It is 46.", 1.0),
        ("like", "4 6", 0.0),
    ],
)
def test_string_check(operation: str, output: str, reward: float) -> None:
    assert grade(string_check(operation), output) == Grade(reward)


@pytest.mark.parametrize(
    ("operation", "output", "reward"),
    [("eq", "YES", 0.0), ("like", "oh YES", 0.0), ("ilike", "oh YES", 1.0), ("ilike", "no", 0.0)],
)
def test_string_check_and_case(operation: str, output: str, reward: float) -> None:
    assert grade(string_check(operation, reference="Yes"), output).reward == reward


def test_ilike_ignores_case_beyond_ascii() -> None:
    assert grade(string_check("ilike", reference="STRASSE"), "die Straße").reward == 1.0


def test_numbers_of_the_row_compare_as_json() -> None:
    assert grade(string_check(), "46", {"answer": 46}).reward == 1.0


def test_fuzzy_match_is_twice_the_common_subsequence_over_both_lengths() -> None:
    # "kitten" and "sitting" share i-t-t-n, four characters of 6 + 7.
    assert grade(text_similarity("sitting"), "kitten").reward == pytest.approx(8 / 13)


def common_subsequence(a: str, b: str) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


@given(st.text(max_size=20), st.text(max_size=20))
def test_fuzzy_match_agrees_with_its_definition(a: str, b: str) -> None:
    expected = 2 * common_subsequence(a, b) / (len(a) + len(b)) if a or b else 1.0
    assert fuzzy_match(a, b) == pytest.approx(expected)


@given(st.text(max_size=20), st.text(max_size=20))
def test_fuzzy_match_is_one_for_equal_texts_only(a: str, b: str) -> None:
    assert (fuzzy_match(a, b) == 1.0) == (a == b)


def test_fuzzy_match_does_not_pay_for_listing_every_candidate() -> None:
    assert fuzzy_match("yes no maybe", "no") < fuzzy_match("not", "no")


def test_fuzzy_match_tells_signs_apart() -> None:
    assert fuzzy_match("-5", "5") < 1.0


def test_multi_combines_and_reports_the_parts() -> None:
    result = grade(multi("0.75 * exact + 0.25 * close", exact=string_check(), close=text_similarity()), "4")
    assert result.reward == pytest.approx(0.25 * 2 / 3)
    assert result.sub_rewards == {"exact": 0.0, "close": pytest.approx(2 / 3)}
    assert (result.error, result.sub_errors) == (None, {})


def test_grades_are_in_the_order_of_the_samples() -> None:
    grader = build(parse_grader(multi("exact", exact=string_check()), "grader"))
    samples = [GraderSample({"answer": str(i)}, "3") for i in range(6)]
    assert [each.reward for each in grader.grade(samples)] == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def test_no_samples_no_grades() -> None:
    assert build(parse_grader(multi("exact", exact=string_check()), "grader")).grade([]) == []


def test_fields_of_a_json_answer() -> None:
    raw = string_check(input="{{sample.output_json.email}}", reference="{{item.wanted.email}}")
    assert grade(raw, ' {"email": "a@b.c"}\n').reward == 1.0


@pytest.mark.parametrize(
    "output",
    [
        '```json\n{"email": "a@b.c"}\n```',
        'Here it is:\n```\n{"email":\n "a@b.c"}\n```\nDone.',
        '```json\n{"email": "x"}\n```\nNo:\n  ```JSON\r\n{"email": "a@b.c"}\r\n  ```',
    ],
)
def test_json_in_a_fence_is_read(output: str) -> None:
    raw = string_check(input="{{sample.output_json.email}}", reference="{{item.wanted.email}}")
    assert grade(raw, output).reward == 1.0


def test_many_fences_are_read_in_the_time_of_their_lines() -> None:
    raw = string_check(input="{{sample.output_json.email}}", reference="{{item.wanted.email}}")
    assert grade(raw, "```json\nx\n" * 100_000).error == "sample_parse_error"


CALLED = 'I ask.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><tool_call>{"name": 7}</tool_call>'


def test_tool_calls_are_read() -> None:
    name = string_check(input="{{sample.output_tools[0].function.name}}", reference="add")
    assert grade(name, CALLED).reward == 1.0
    sample = GraderSample({}, CALLED).as_object()
    function = {"name": "add", "arguments": '{"a": 1}'}
    assert sample["output_tools"] == [{"id": "call_0", "type": "function", "function": function}]
    assert sample["choices"][0]["message"]["tool_calls"] == sample["output_tools"]
    missing = grade(name, "I do not ask.")
    assert (missing.error, missing.earns_least) == ("invalid_variable_error", True)


@pytest.mark.parametrize("output", ["", "not json", '{"email": ', '{"email": NaN}', "[" * 100_000])
def test_an_answer_that_is_not_json_has_no_reward(output: str) -> None:
    result = grade(string_check(input="{{sample.output_json.email}}"), output)
    assert (result.reward, result.error, result.sample_at_fault) == (None, "sample_parse_error", True)
    assert result.detail is not None
    assert "the answer is not JSON" in result.detail


@pytest.mark.parametrize("output", ["{}", "7", "[]", '{"email": {}}'])
def test_a_field_the_answer_lacks_is_the_fault_of_the_sample(output: str) -> None:
    result = grade(string_check(input="{{sample.output_json.email.host}}"), output)
    assert (result.reward, result.error, result.sample_at_fault) == (None, "invalid_variable_error", True)


def test_a_template_that_makes_too_long_a_text_has_no_reward() -> None:
    result = grade(string_check(input="{{sample.output_text}}" * 1000), "x" * 100_000)
    assert (result.reward, result.error, result.sample_at_fault) == (None, "other_error", False)
    assert result.detail == "the template makes a text of more than 1,048,576 characters"


def test_a_field_the_row_lacks_is_not() -> None:
    result = grade(string_check(reference="{{item.solution}}"), "46")
    assert (result.reward, result.error, result.sample_at_fault) == (None, "invalid_variable_error", False)
    assert result.detail is not None
    assert "item has no field 'solution'" in result.detail


def test_a_formula_without_a_value_has_raised() -> None:
    result = grade(multi("1 / exact", exact=string_check()), "47")
    assert (result.reward, result.error, result.sample_at_fault) == (None, "formula_parse_error", False)
    assert result.raised
    assert result.earns_least
    assert result.detail == "Division by zero at character 3."
    assert result.sub_rewards == {"exact": 0.0}


def test_a_reward_that_is_too_large_names_the_grader_and_the_bound() -> None:
    result = grade(multi("1e6 + exact", exact=string_check()), "46")
    assert (result.reward, result.error, result.raised) == (None, "formula_parse_error", True)
    assert result.detail is not None
    assert "The grader 'multi' gave 1e+06; rewards must be finite numbers from -1,000,000 to 1,000,000" in result.detail
    assert grade(multi("1e6 * exact", exact=string_check()), "46").reward == 1e6


def test_a_part_that_raised_and_one_that_the_answer_lacks_earn_the_least() -> None:
    parts = {"a": string_check(input="{{sample.output_json.x}}"), "b": string_check()}
    result = grade(multi("a + 1/b", **parts), "?")
    assert result.earns_least
    result = grade(multi("a + b", a=parts["a"], b=string_check(reference="{{item.none}}")), "?")
    assert not result.earns_least


def test_one_failed_sample_leaves_the_others_alone() -> None:
    grader = build(parse_grader(string_check(input="{{sample.output_json.x}}", reference="1"), "grader"))
    grades = grader.grade([GraderSample({}, '{"x": 1}'), GraderSample({}, "?"), GraderSample({}, '{"x": 2}')])
    assert [each.reward for each in grades] == [1.0, None, 0.0]


def test_a_failed_part_fails_the_whole_and_is_named() -> None:
    raw = multi("exact + email", exact=string_check(), email=string_check(input="{{sample.output_json.email}}"))
    result = grade(raw, "46?")
    assert (result.reward, result.error, result.sample_at_fault) == (None, "sample_parse_error", True)
    assert result.detail is not None
    assert result.detail.startswith("email: the answer is not JSON")
    assert result.sub_rewards == {"exact": 0.0}
    assert result.sub_errors == {"email": "sample_parse_error"}


def test_parts_that_fail_for_different_reasons_are_not_the_fault_of_the_sample() -> None:
    raw = multi("a + b", a=string_check(input="{{sample.output_json.x}}"), b=string_check(reference="{{item.none}}"))
    result = grade(raw, "?")
    assert result.sub_errors == {"a": "sample_parse_error", "b": "invalid_variable_error"}
    assert not result.sample_at_fault


def test_a_failed_part_that_the_formula_does_not_use_costs_nothing() -> None:
    raw = multi("exact", exact=string_check(), other=string_check(input="{{sample.output_json.x}}"))
    result = grade(raw, "46")
    assert (result.reward, result.error) == (1.0, None)
    assert result.sub_errors == {"other": "invalid_variable_error"}


@given(st.text(max_size=30))
def test_any_answer_gets_a_finite_reward_or_an_error(output: str) -> None:
    raw = multi("a / (b + c)", a=string_check(), b=text_similarity(), c=string_check(input="{{sample.output_json[0]}}"))
    result = grade(raw, output)
    if result.reward is None:
        assert result.error is not None
        assert result.detail
    else:
        assert math.isfinite(result.reward)
        assert result.error is None
