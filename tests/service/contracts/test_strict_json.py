"""Strict JSON: what Python's reader lets through and we do not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contracts import strict_json


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value at character 1"),
        ('{"a" 1}', "Expecting ':' delimiter at character 6"),
        ("1 2", "Extra data at character 3"),
        ("NaN", "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ("1e999", "1e999 is too large"),
        ("1" * 5000, "too many digits"),
        ('["a\nb"]', "Invalid control character"),
        ("[" * 100_000, "nested more than 200 levels"),
        ("[" * 201 + "]" * 201, "nested more than 200 levels"),
        ('{"a":' * 201 + "1" + "}" * 201, "nested more than 200 levels"),
    ],
)
def test_refusals(text: str, says: str) -> None:
    with pytest.raises(strict_json.InvalidJSONError, match=says.replace("'", ".")):
        strict_json.loads(text)


def test_the_deepest_nesting_allowed_can_be_written_again() -> None:
    text = "[" * 200 + "]" * 200
    assert strict_json.dumps(strict_json.loads(text)) == text


def test_many_brackets_that_are_not_deep_are_fine() -> None:
    assert strict_json.loads("[" + "[]," * 999 + "[]]") == [[]] * 1000


def test_brackets_in_strings_do_not_count() -> None:
    assert strict_json.loads('"' + "[" * 1000 + '"') == "[" * 1000


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=4)))
def test_round_trip(value: Any) -> None:
    assert strict_json.loads(strict_json.dumps(value)) == value


def test_objects_may_be_bounded() -> None:
    assert strict_json.loads('[{"a": 1, "b": 2}, {"c": 3}]', max_fields=2) == [{"a": 1, "b": 2}, {"c": 3}]
    with pytest.raises(strict_json.InvalidJSONError, match="more than 1 fields"):
        strict_json.loads('[{"a": {"a": 1, "b": 2}}]', max_fields=1)
