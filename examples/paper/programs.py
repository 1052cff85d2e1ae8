"""Eurus' programming problems into rows: its tests in the form that the grader ``code_tests`` reads.

A problem's ground truth is JSON with ``inputs`` and ``outputs``, and with ``fn_name`` where a function is called and no
script run: an input then is its arguments as JSON, one a line, and an output its value as JSON.
"""

import json
import keyword
from collections.abc import Iterator
from typing import Any

from examples.paper.mathematics import Row, UnusableError, ground_truth, messages_of
from examples.paper.sources import Source
from service.contracts import strict_json
from service.files.dataset import MAX_LINE_BYTES
from workers.graders.code_tests import BadTestsError, parse_tests

MAX_TESTS = 10
"""A problem's first so many are run: verl's number."""

Test = dict[str, Any]


def code(source: Source) -> Row:
    """A row with ``messages`` and ``tests``, as many of the first as a line of a file has room for.

    Raises ``UnusableError``.
    """
    row: Row = {"messages": messages_of(source), "tests": tests_of(ground_truth(source))}
    while len(json.dumps(row).encode()) >= MAX_LINE_BYTES:
        row["tests"].pop()
        if not row["tests"]:
            raise UnusableError("not even one test fits into a line")
    return row


def tests_of(truth: str) -> list[Test]:
    """The first tests of a ground truth. Raises ``UnusableError``."""
    try:
        given = strict_json.loads(truth)
        inputs, outputs, name = given["inputs"], given["outputs"], given.get("fn_name")
    except (ValueError, TypeError, KeyError):
        raise UnusableError("the ground truth is no JSON of inputs and outputs") from None
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise UnusableError("there are not as many outputs as inputs")
    if not inputs:
        raise UnusableError("there are no tests")
    if name is not None and (not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name)):
        raise UnusableError("the function's name is none")
    pairs = zip(inputs[:MAX_TESTS], outputs[:MAX_TESTS], strict=True)
    tests = list(_scripts(pairs) if name is None else _calls(name, pairs))
    try:
        parse_tests(json.dumps(tests, allow_nan=False))
    except (BadTestsError, ValueError):
        raise UnusableError("the grader cannot read the tests") from None
    return tests


def _scripts(pairs: Any) -> Iterator[Test]:
    for given, expected in pairs:
        yield {"stdin": _lines(given), "stdout": _lines(expected)}


def _lines(value: Any) -> str:
    """What a script reads or prints: a text, or a list of its lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _calls(name: str, pairs: Any) -> Iterator[Test]:
    # The function may be one of the module, or a method of the class that LeetCode's problems ask for. The call is
    # written so that the function's name is the only one that the program has to define.
    found = f'globals().get("{name}") or getattr(globals()["Solution"](), "{name}")'
    for given, expected in pairs:
        arguments = ", ".join(map(repr, _arguments(given)))
        yield {"call": f"(lambda {name}: {name}({arguments}))({found})", "expected": _value(expected)}


def _arguments(given: Any) -> list[Any]:
    if isinstance(given, list):
        return given
    try:
        return [strict_json.loads(line) for line in str(given).split("\n") if line.strip()]
    except ValueError:
        raise UnusableError("the arguments of a call are no JSON") from None


def _value(expected: Any) -> Any:
    """A text that is no JSON is the value itself, for verl compares with what would be printed."""
    if not isinstance(expected, str):
        return expected
    try:
        return strict_json.loads(expected)
    except ValueError:
        return expected
