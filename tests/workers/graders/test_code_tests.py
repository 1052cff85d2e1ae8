"""``code_tests``: programs that pass and fail, and programs that would rather be thought to pass."""

from typing import Any

import pytest

from service.graders.schemas import parse_grader
from service.graders.settings import JailTier
from tests.workers.graders import jails
from workers.graders import Grade, GraderSample, build
from workers.graders.code_tests import BadTestsError, Call, Script, parse_tests, same

ADD = ["assert add(1, 2) == 3", {"call": "add('a', 'b')", "expected": "ab"}]
DOUBLE = [{"stdin": "2\n", "stdout": "4\n"}, {"stdin": "5", "stdout": "10"}]


@pytest.fixture(scope="module")
def tier() -> JailTier:
    """What graders make of a jail's answers is the same in every tier."""
    return jails.first_tier()


def grade(tier: JailTier, answer: str, tests: Any, **fields: Any) -> Grade:
    raw = {"type": "code_tests", "tests": "{{item.tests}}", "timeout_seconds": 20.0, **fields}
    (only,) = build(parse_grader(raw, "grader"), jails.settings(tier)).grade([GraderSample({"tests": tests}, answer)])
    return only


@pytest.mark.parametrize(
    ("answer", "tests"),
    [
        ("def add(a, b): return a + b", ADD),
        ("Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nDone.", ADD),
        ("```\nadd = lambda a, b: 0\n```\nno, wait\n```py\nadd = lambda a, b: a + b\n```", ADD),
        ("print(int(input()) * 2)", DOUBLE),
        ("import sys\nfor line in sys.stdin: print(int(line) * 2, '  ')\nprint()", DOUBLE),
        ("print(6)\nraise SystemExit", [{"stdin": "", "stdout": "6"}]),
        ("def f(): return (1, [2.0000000001, {'k': {1, 2}}])", ["assert f() == (1, [2, {'k': {2, 1}}])"]),
        ("def f(): return {'a': None, 'b': [True]}", [{"call": "f()", "expected": {"b": [True], "a": None}}]),
        ("import numpy\ndef f(): return numpy.arange(3)", ["assert f() == [0, 1, 2]"]),
        (
            "def add(a, b): return a + b\nif __name__ == '__main__': print(add(2, 2))",
            [*ADD, {"stdin": "", "stdout": "4"}],
        ),
    ],
)
def test_programs_that_pass(tier: JailTier, answer: str, tests: Any) -> None:
    assert grade(tier, answer, tests) == Grade(1.0)


@pytest.mark.parametrize(
    ("answer", "tests"),
    [
        ("def add(a, b): return a - b", ADD),
        ("no code at all", ADD),
        ("", ADD),
        ("def add(a, b): return 1 / 0", ADD),
        ("print(int(input()) * 3)", DOUBLE),
        ("print(4); print(4)", DOUBLE),
        ("import sys; print(int(input()) * 2); sys.exit(1)", DOUBLE),
        ("print(int(input()) * 2); 1 / 0", DOUBLE),
        ("while True: print('x' * 1000)", DOUBLE),
    ],
)
def test_programs_that_fail(tier: JailTier, answer: str, tests: Any) -> None:
    assert grade(tier, answer, tests) == Grade(0.0)


@pytest.mark.parametrize(
    ("answer", "tests"), [("def add(a, b):\n    while True: pass", ADD), ("while True: pass", DOUBLE[:1])]
)
def test_programs_that_do_not_end_fail(tier: JailTier, answer: str, tests: Any) -> None:
    assert grade(tier, answer, tests, timeout_seconds=0.7) == Grade(0.0)


@pytest.mark.parametrize(
    "answer",
    [
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "class Yes:\n    __eq__ = lambda self, other: True\ndef add(a, b): return Yes()",
        "class Yes(int):\n    __eq__ = lambda self, other: True\ndef add(a, b): return Yes(3)",
        "class Yes(str):\n    __eq__ = lambda self, other: True\ndef add(a, b): return Yes('ab')",
        'import os\nos.write(3, b\'{"value": "true"}\\n{"value": "true"}\\n\')\nos._exit(0)',
        "import os\nos.write(3, b'{\"reward\": 1.0}\\n' * 9)\nos._exit(0)",
        "import json\njson.dumps = lambda *_, **__: 'true'\ndef add(a, b): return True",
        "import sys\nsys.modules['__main__'].__dict__.clear()\ndef add(a, b): return True",
        "import gc\ndef add(a, b):\n"
        "    seen = [each for each in gc.get_objects() if type(each) is dict and 'expected' in each]\n"
        "    return seen[0]['expected'] if seen else None",
    ],
)
def test_programs_that_would_rather_be_thought_to_pass(tier: JailTier, answer: str) -> None:
    assert grade(tier, answer, ADD).reward == 0.0


def test_partial_credit_is_the_fraction_of_tests(tier: JailTier) -> None:
    answer = "def add(a, b): return 3\nprint(4)"
    assert grade(tier, answer, [*ADD, *DOUBLE], partial=True) == Grade(0.5)


def test_calls_before_the_time_is_up_count(tier: JailTier) -> None:
    answer = "def f(n):\n    while n == 2: pass\n    return n"
    assert grade(tier, answer, [f"assert f({n}) == {n}" for n in range(4)], partial=True, timeout_seconds=2.0) == Grade(
        0.5
    )


def test_a_batch_keeps_its_order(tier: JailTier) -> None:
    raw = {"type": "code_tests", "tests": "{{item.tests}}", "partial": True}
    grader = build(parse_grader(raw, "grader"), jails.settings(tier))
    tests = [{"call": "n", "expected": 1}, {"stdin": "", "stdout": "1"}]
    samples = [GraderSample({"tests": tests}, f"n = {n}\nprint(n % 2)") for n in range(4)] + [GraderSample({}, "")]
    assert [each.reward for each in grader.grade(samples)] == [0.0, 1.0, 0.0, 0.5, None]


@pytest.mark.parametrize(
    ("tests", "says"),
    [
        ("not JSON", "The tests are not JSON"),
        ({"stdin": ""}, "must be a list of 1 to 100, but are an object"),
        ([], "must be a list of 1 to 100"),
        ([{"stdin": "1"}], "tests[0] is none of"),
        ([{"stdin": "1", "stdout": 2}], "tests[0] is none of"),
        ([{"call": "f(", "expected": 1}], "tests[0] is not Python"),
        (["assert f(1)"], "tests[0] must be one 'assert call == literal'"),
        (["assert f(1) == 1", "assert f(1) == g(1)"], "tests[1]: 'g(1)' is not a literal"),
    ],
)
def test_tests_that_cannot_be_read_are_not_the_fault_of_the_sample(tier: JailTier, tests: Any, says: str) -> None:
    result = grade(tier, "x = 1", tests)
    assert (result.reward, result.error, result.sample_at_fault) == (None, "invalid_variable_error", False)
    assert result.detail is not None
    assert says in result.detail


def test_tests_are_parsed_once_and_for_all() -> None:
    text = '[{"stdin": "1", "stdout": "2"}, "assert f(1) == {\'a\': (1, 2)}", {"call": "f(2)", "expected": null}]'
    expected = [Script("1", "2"), Call("f(1)", {"dict": [["a", [1, 2]]]}), Call("f(2)", None)]
    assert parse_tests(text) == expected


def test_no_tests_is_an_error() -> None:
    with pytest.raises(BadTestsError):
        parse_tests("[]")


@pytest.mark.parametrize(
    ("value", "expected", "equal"),
    [
        (1, 1.0, True),
        (0.1 + 0.2, 0.3, True),
        (1, 1.1, False),
        ("1", 1.0, False),
        (10**400, 1.0, False),
        ([1, [2.0]], [1.0, [2]], True),
        ([1], [1, 2], False),
        ({"set": [1]}, {"set": [1]}, True),
        ({"set": [1]}, [1], False),
    ],
)
def test_equality_of_values(value: Any, expected: Any, equal: bool) -> None:
    assert same(value, expected) is equal
