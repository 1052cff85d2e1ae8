"""``code_tests``: does the program in an answer pass the tests of its row?

The program runs in a jail; the verdict is reached outside of it. Scripts are judged by what they print, calls by the
values they return, and what is expected never enters the jail, so that the only way to pass is to compute it.
"""

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.contracts import strict_json
from service.graders.kinds.code_tests import CodeTests
from service.graders.settings import GraderSettings
from service.graders.template import Template
from workers.graders import jail
from workers.graders.confinement import ensure_confined
from workers.graders.grading import Grade, GraderSample, SingleGrader, fill
from workers.graders.lanes import JAILED_BATCH, run_all
from workers.graders.programs import names_called, program_of
from workers.sandbox.programs import plain

MAX_TESTS = 100
TOLERANCE = 1e-6
"""Relative difference of floats that count as equal."""
_SHAPES = '{"stdin", "stdout"}, {"call", "expected"} or "assert call == literal"'


class BadTestsError(ValueError):
    """The tests of a row cannot be read. The message says which and why."""


@dataclass(frozen=True)
class Script:
    """Passes when the program, given ``stdin``, prints ``stdout``; space at the ends of lines does not count."""

    stdin: str
    stdout: str


@dataclass(frozen=True)
class Call:
    """Passes when ``expression`` has the value ``expected``, in the form of ``workers.sandbox.programs.plain``."""

    expression: str
    expected: Any


class CodeTestsGrader(SingleGrader):
    """Raises ``JailError`` where no jail holds."""

    batch_size = JAILED_BATCH

    def __init__(self, definition: CodeTests, settings: GraderSettings) -> None:
        ensure_confined(settings)
        self._templates = (Template.parse(definition.input), Template.parse(definition.tests))
        self._seconds = min(definition.timeout_seconds, settings.jail_limits.seconds)
        self._partial = definition.partial
        self._settings = settings

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        prepared = [self._prepare(sample) for sample in samples]
        runs = [each for each in prepared if isinstance(each, _Run)]
        programs = [program for run in runs for program in run.programs(self._seconds)]
        outcomes = iter(run_all(programs, self._settings))
        return [each if isinstance(each, Grade) else self._judge(each, outcomes) for each in prepared]

    def _prepare(self, sample: GraderSample) -> "_Run | Grade":
        texts = fill(self._templates, sample)
        if isinstance(texts, Grade):
            return texts
        try:
            tests = parse_tests(texts[1])
        except BadTestsError as error:
            return Grade(None, error="invalid_variable_error", detail=str(error))
        called = names_called([test.expression for test in tests if isinstance(test, Call)])
        return _Run(program_of(texts[0], called), tests)

    def _judge(self, run: "_Run", outcomes: Any) -> Grade:
        own = [next(outcomes) for _ in run.programs(self._seconds)]
        broken = [outcome for outcome in own if isinstance(outcome, jail.JailError)]
        if broken:
            return Grade(None, error="python_grader_server_error", detail=str(broken[0]))
        passed = run.passed(own)
        return Grade(passed / len(run.tests) if self._partial else float(passed == len(run.tests)))


@dataclass(frozen=True)
class _Run:
    """An answer's program and the tests it has to pass: one run in the jail per script, and one for all calls."""

    source: str
    tests: list[Script | Call]

    def programs(self, seconds: float) -> list[jail.Program]:
        common = {"source": self.source, "seconds": seconds}
        scripts = [{"kind": "script", "stdin": test.stdin, **common} for test in self._scripts()]
        expressions = [test.expression for test in self._calls()]
        return scripts + ([{"kind": "call", "expressions": expressions, **common}] if expressions else [])

    def passed(self, outcomes: Sequence[jail.Outcome]) -> int:
        scripts = self._scripts()
        good = sum(_printed(test, outcome) for test, outcome in zip(scripts, outcomes, strict=False))
        return good + (_returned(self._calls(), outcomes[-1]) if len(outcomes) > len(scripts) else 0)

    def _scripts(self) -> list[Script]:
        return [test for test in self.tests if isinstance(test, Script)]

    def _calls(self) -> list[Call]:
        return [test for test in self.tests if isinstance(test, Call)]


def _printed(test: Script, outcome: jail.Outcome) -> bool:
    ended_well = outcome.stopped is None and outcome.exit == 0 and not outcome.report
    return ended_well and _lines(outcome.stdout) == _lines(test.stdout)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _returned(tests: Sequence[Call], outcome: jail.Outcome) -> int:
    # One line per call, in order. A program may forge lines, but it does not know what to write in them.
    return sum(_is_value(line, test.expected) for line, test in zip(outcome.lines(), tests, strict=False))


def _is_value(line: dict[str, Any], expected: Any) -> bool:
    text = line.get("value")
    if not isinstance(text, str):
        return False
    try:
        return same(strict_json.loads(text), expected)
    except strict_json.InvalidJSONError:
        return False


def same(value: Any, expected: Any) -> bool:
    """Equality of two values in the form of ``plain``: numbers by value, floats within ``TOLERANCE``."""
    if isinstance(value, float) or isinstance(expected, float):
        numbers = isinstance(value, int | float) and isinstance(expected, int | float)
        return numbers and _close(value, expected)
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(same(a, b) for a, b in zip(value, expected, strict=True))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key]) for key in value)
    return bool(value == expected)


def _close(value: float, expected: float) -> bool:
    try:
        return math.isclose(value, expected, rel_tol=TOLERANCE, abs_tol=1e-12)
    except OverflowError:
        # An integer too large for a float.
        return False


def parse_tests(text: str) -> list[Script | Call]:
    """The tests in ``text``, a JSON list. Raises ``BadTestsError``."""
    try:
        raw = strict_json.loads(text)
    except strict_json.InvalidJSONError as error:
        raise BadTestsError(f"The tests are not JSON: {error}.") from None
    if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_TESTS:
        raise BadTestsError(f"The tests must be a list of 1 to {MAX_TESTS}, but are {strict_json.kind(raw)}.")
    return [_parse_test(each, f"tests[{index}]") for index, each in enumerate(raw)]


def _parse_test(raw: Any, where: str) -> Script | Call:
    match raw:
        case str():
            return _parse_assert(raw, where)
        case {"stdin": str(stdin), "stdout": str(stdout), **rest} if not rest:
            return Script(stdin, stdout)
        case {"call": str(call), "expected": expected, **rest} if not rest:
            _parse(call, "eval", where)
            return Call(call, plain(expected))
    raise BadTestsError(f"{where} is none of {_SHAPES}.")


def _parse_assert(text: str, where: str) -> Call:
    tree = _parse(text.strip(), "exec", where)
    match tree:
        case ast.Module(body=[ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]))]):
            pass
        case _:
            raise BadTestsError(f"{where} must be one 'assert call == literal', but is '{text[:80]}'.")
    try:
        expected = plain(ast.literal_eval(right))
    except Exception:
        raise BadTestsError(f"{where}: '{ast.unparse(right)[:80]}' is not a literal.") from None
    return Call(ast.unparse(left), expected)


def _parse(text: str, mode: str, where: str) -> ast.AST:
    try:
        return ast.parse(text, mode=mode)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadTestsError(f"{where} is not Python: {error}.") from None
