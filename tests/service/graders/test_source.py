"""Reading the source of a python grader costs little, whatever it is, and never the process that asks."""

import pytest

from service.graders import source

GOOD = [
    "def grade(sample, item): return 1",
    "from math import sqrt as grade",
    "grade = lambda s, i: 0",
]
HOSTILE = {
    "parentheses": "(" * 10_000,
    "minus": "x = " + "-" * 200_000 + "1",
    "not": "x = " + "not " * 50_000 + "1",
    "attributes": "x = a" + ".b" * 100_000,
    "sum": "x = " + "1+" * 100_000 + "1",
    "calls": "x = a" + "()" * 100_000,
    "lambda": "x = " + "lambda: " * 30_000 + "0",
    "elif": "if a: pass\n" + "elif a: pass\n" * 15_000,
    "powers": "x = " + "1**" * 80_000 + "1",
    "digits": "x = " + "9" * 200_000,
    "half": "x = '\ud800'",
    "nul": "a\0b",
}


@pytest.mark.parametrize("text", GOOD)
def test_a_grader_is_one(text: str) -> None:
    assert source.fault(text) is None


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_source_is_a_fault_in_words(kind: str) -> None:
    fault = source.fault(HOSTILE[kind])
    assert fault is not None
    assert len(fault) < 500


def test_a_source_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PATIENCE", 0.0)
    assert source.fault(GOOD[0]) == "Python cannot read it: it is nested too deep or takes too long"
