"""A grader's bounds: below every reward it can give, and reached where the formula allows to know."""

import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.graders.bounds import ANY, TOLERANCE, Interval, formula_bounds
from service.graders.formula import Formula, FormulaError
from service.graders.schemas import parse_grader

EXACT = {"type": "string_check", "name": "g", "input": "a", "reference": "b", "operation": "eq"}
CLOSE = {"type": "text_similarity", "name": "g", "input": "a", "reference": "b", "evaluation_metric": "bleu"}
OWN = {"type": "python", "source": "def grade(sample, item): return 1"}
JUDGE = {"type": "score_model", "name": "g", "model": "m", "input": [{"role": "user", "content": "a"}], "range": [1, 5]}
RANGES = {"a": Interval(0.0, 1.0), "b": Interval(0.0, 1.0, two_valued=True), "c": Interval(-2.0, 3.0), "d": ANY}
UNITS = {name: Interval(0.0, 1.0) for name in ("a", "b")}


def multi(formula: str, **graders: Any) -> dict[str, Any]:
    return {"type": "multi", "graders": graders, "calculate_output": formula}


def of(formula: str, ranges: dict[str, Interval]) -> tuple[float, float]:
    found = formula_bounds(Formula.parse(formula, ranges), ranges)
    return found.low, found.high


@pytest.mark.parametrize(
    ("grader", "low", "high"),
    [
        (EXACT, 0, 1),
        (CLOSE, 0, 1),
        (JUDGE, 1, 5),
        ({"type": "math_verify", "reference": "1"}, 0, 1),
        ({"type": "code_tests", "tests": "[]"}, 0, 1),
        (OWN, -math.inf, math.inf),
        ({"type": "http", "url": "https://a.example"}, -math.inf, math.inf),
        (multi("a*2-1", a=EXACT), -1, 1),
        (multi("0.8*a + 0.2*b", a=EXACT, b=CLOSE), 0, 1),
        (multi("b - a", a=EXACT, b=JUDGE), 0, 5),
        (multi("max(p, 0) + a", a=EXACT, p=OWN), 0, math.inf),
        (multi("1e9 * a - 5e8", a=EXACT), -1e6, 1e6),
    ],
)
def test_of_graders(grader: dict[str, Any], low: float, high: float) -> None:
    found = parse_grader(grader, "grader").bounds()
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(
    ("formula", "low", "high"),
    [
        ("a", 0, 1),
        ("-a^2", -1, 0),
        ("a - 0.5*a", 0, 0.5),
        ("2*a - a^1.5", 0, 1),
        ("a*b + (1-a)*(-1)", -1, 1),
        ("b^2 - b", 0, 0),
        ("1 / (2*b - 1)", -1, 1),
        ("c^2", 0, 9),
        ("c^3", -8, 27),
        ("abs(c)", 0, 3),
        ("floor(c / 2) + ceil(a)", -1, 2),
        ("sqrt(c)", 0, math.sqrt(3)),
        ("exp(-a)", math.exp(-1), 1),
        ("log(a + 1)", 0, math.log(2)),
        ("log(a)", -math.inf, 0),
        ("1 / a", 1, math.inf),
        ("-1 / a", -math.inf, -1),
        ("a / (a + b)", 0, math.inf),
        ("1 / c", -math.inf, math.inf),
        ("min(d, 1)", -math.inf, 1),
        ("max(0, min(d, 1))", 0, 1),
        ("1 / (1 + exp(-d))", 0, 1),
        ("d - d", -math.inf, math.inf),
        ("0 * d", 0, 0),
        ("2^c", 0.25, 8),
        ("a^-1", 1, math.inf),
        ("(a + 1)^c", 0.25, 8),
    ],
)
def test_of_formulas(formula: str, low: float, high: float) -> None:
    assert of(formula, RANGES) == pytest.approx((low, high), abs=1e-8)


def test_a_formula_that_is_flat_has_bounds_near_its_value() -> None:
    assert of("a - a", RANGES) == pytest.approx((0, 0), abs=0.02)
    assert of("2*a - a^2", RANGES) == pytest.approx((0, 1), abs=0.001)


def test_the_least_is_exactly_what_the_grader_gives_a_wrong_answer() -> None:
    assert parse_grader(multi("a*2-1", a=EXACT), "grader").least_reward() == -1.0
    assert parse_grader(multi("a - 0.3*a", a=CLOSE), "grader").least_reward() == 0.0


def test_a_grader_without_a_least_reward_has_given_one() -> None:
    own, log = parse_grader(OWN, "grader"), parse_grader(multi("log(a) - 5", a=CLOSE), "grader")
    assert [own.least_reward(given) for given in (None, 0.5, -3.0)] == [0.0, 0.0, -3.0]
    assert [log.least_reward(given) for given in (None, -7.0)] == [-5.0, -7.0]


def leaves(names: list[str]) -> st.SearchStrategy[str]:
    return st.sampled_from(names) | st.sampled_from(["0", "1", "2", "0.3", "1e-3", "0.5", "40", "1e200"])


def formulas(names: list[str]) -> st.SearchStrategy[str]:
    def more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return (
            st.tuples(inner, st.sampled_from("+-*/^"), inner).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})")
            | st.tuples(st.sampled_from(["abs", "floor", "ceil", "exp", "sqrt", "log", "-"]), inner).map(
                lambda t: f"{t[0]}({t[1]})"
            )
            | st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})")
        )

    return st.recursive(leaves(names), more, max_leaves=8)


def inside(range_: Interval) -> st.SearchStrategy[float]:
    ends = [end for end in (range_.low, range_.high, 0.0) if math.isfinite(end)]
    if range_.two_valued:
        return st.sampled_from([range_.low, range_.high])
    low, high = (end if math.isfinite(end) else None for end in (range_.low, range_.high))
    return st.sampled_from(ends) | st.floats(low, high, allow_nan=False, allow_infinity=False)


@settings(max_examples=3 * settings().max_examples)
@given(formulas(list(RANGES)), st.fixed_dictionaries({name: inside(each) for name, each in RANGES.items()}))
def test_no_value_is_outside(formula: str, scores: dict[str, float]) -> None:
    low, high = of(formula, RANGES)
    try:
        value = Formula.parse(formula, RANGES).evaluate(scores)
    except FormulaError:
        return
    slack = TOLERANCE * max(1.0, abs(value))
    assert low - slack <= value <= high + slack


def rising(names: list[str]) -> st.SearchStrategy[str]:
    """Formulas that rise with every score, none of which is below 0."""

    def more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.tuples(inner, st.sampled_from("+*"), inner).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})") | st.tuples(
            st.sampled_from(["floor", "ceil", "exp", "sqrt"]), inner
        ).map(lambda t: f"{t[0]}({t[1]})")

    return st.recursive(st.sampled_from([*names, "0", "0.3", "2"]), more, max_leaves=6)


@settings(max_examples=2 * settings().max_examples)
@given(rising(list(UNITS)))
def test_bounds_of_a_rising_formula_are_reached(formula: str) -> None:
    parsed = Formula.parse(formula, UNITS)
    try:
        ends = parsed.evaluate(dict.fromkeys(UNITS, 0.0)), parsed.evaluate(dict.fromkeys(UNITS, 1.0))
    except FormulaError:
        return
    assert of(formula, UNITS) == pytest.approx(ends, rel=1e-8, abs=1e-12)


def test_a_long_formula_takes_little_time() -> None:
    names = [f"s{i}" for i in range(20)]
    formula = " + ".join(f"{a}*{b}*(1-{a})" for a, b in zip(names * 2, names[1:] * 3, strict=False))[:1000]
    formula = formula[: formula.rindex(" + ")]
    before = time.process_time()
    low, high = of(formula, dict.fromkeys(names, Interval(0.0, 1.0)))
    assert low <= 0 < high
    assert time.process_time() - before < 30
