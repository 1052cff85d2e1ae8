"""The formula parser agrees with Python's arithmetic and refuses everything else with a position."""

import ast
import math
import operator
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.graders.formula import MAX_DEPTH, MAX_LENGTH, Formula, FormulaError, is_variable_name

FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
NAMES = ("a", "b_2", "max")


class NoValue(Exception):
    pass


def python_value(text: str, values: dict[str, float]) -> float:
    """The value Python's own grammar and arithmetic give; ``NoValue`` where a step is not a finite real number."""
    try:
        return _node_value(ast.parse(text.strip().replace("^", "**"), mode="eval").body, values)
    except (ArithmeticError, ValueError) as error:
        raise NoValue from error


def _node_value(node: ast.expr, values: dict[str, float]) -> float:
    match node:
        case ast.Constant(int() | float() as value):
            result = float(value)
        case ast.Name(id):
            result = values[id]
        case ast.UnaryOp(op, operand):
            result = OPERATORS[type(op)](_node_value(operand, values))
        case ast.BinOp(left, op, right):
            result = OPERATORS[type(op)](_node_value(left, values), _node_value(right, values))
        case ast.Call(ast.Name(function), [only]) if function in ("min", "max"):
            result = _node_value(only, values)
        case ast.Call(ast.Name(function), arguments):
            result = float(FUNCTIONS[function](*(_node_value(each, values) for each in arguments)))
        case _:
            raise AssertionError(f"the test wrote something unforeseen: {ast.dump(node)}")
    if isinstance(result, complex) or not math.isfinite(result):
        raise NoValue
    return result


numbers = st.floats(0, 1e6, allow_nan=False).map(repr) | st.sampled_from(["0", "1", "2", ".5", "3.", "1e-3", "2E2"])
spaces = st.sampled_from(["", " ", "  "])


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    # Operands are joined without parentheses of their own, so that precedence decides how they group.
    return st.one_of(
        st.builds(
            lambda left, space, sign, right: f"{left}{space}{sign}{space}{right}",
            inner,
            spaces,
            st.sampled_from("+-*/^"),
            inner,
        ),
        st.builds("{}{}".format, st.sampled_from("+-"), inner),
        st.builds("({})".format, inner),
        st.builds("{}({})".format, st.sampled_from(["abs", "floor", "ceil", "exp", "sqrt", "log"]), inner),
        st.builds(
            lambda f, a: f"{f}({', '.join(a)})",
            st.sampled_from(["min", "max"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
    )


expressions = st.recursive(numbers | st.sampled_from(NAMES), _compound, max_leaves=12)
scores = st.floats(-10, 10, allow_nan=False)


@given(expressions, st.fixed_dictionaries(dict.fromkeys(NAMES, scores)))
def test_agrees_with_python(text: str, values: dict[str, float]) -> None:
    formula = Formula.parse(text, variables=NAMES)
    try:
        expected = python_value(text, values)
    except NoValue:
        with pytest.raises(FormulaError):
            formula.evaluate(values)
    else:
        assert formula.evaluate(values) == pytest.approx(expected, rel=1e-12, abs=0)


@given(st.text("ab01.e+-*/^(), minlog\n\t½²", max_size=40))
def test_any_text_is_a_formula_or_a_formula_error(text: str) -> None:
    try:
        formula = Formula.parse(text, variables=["a", "b"])
        formula.evaluate({"a": 0.5, "b": 2.0})
    except FormulaError:
        pass


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 ^ 3 ^ 2", 512.0),
        ("-2 ^ 2", -4.0),
        ("2 ^ -1", 0.5),
        ("1 - 2 - 3", -4.0),
        ("8 / 4 / 2", 1.0),
        ("1 + 2 * 3", 7.0),
        ("- - 1", 1.0),
        ("min(3)", 3.0),
        ("max(1, 2, 3) - min(1, 2, 3)", 2.0),
        ("floor(-0.5) + ceil(0.5)", 0.0),
        ("0.8 * exact + 0.2 * close", 0.9),
        ("min + min(min, 3)", 4.0),
    ],
)
def test_values(text: str, value: float) -> None:
    scores = {"exact": 1.0, "close": 0.5, "min": 2.0}
    assert Formula.parse(text, variables=scores.keys()).evaluate(scores) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "ends at character 0"),
        ("a +", "ends at character 3"),
        ("(a", "'\\)' is expected"),
        ("a)", "Unexpected '\\)' at character 2"),
        ("a b", "Unexpected 'b' at character 3"),
        ("2a", "Unexpected 'a' at character 2"),
        ("a ** 2", "character 4.*Powers are written with \\^"),
        ("9**9**9", "character 3.*Powers are written with \\^"),
        ("a % 2", "Unexpected '%' at character 3"),
        ("a > 0", "Unexpected '>' at character 3"),
        ("c", "Unknown name 'c' at character 1; the graders are named: a, b"),
        ("min", "'min' at character 1 needs arguments"),
        ("min()", "Unexpected '\\)' at character 5"),
        ("min(a,)", "Unexpected '\\)' at character 7"),
        ("sqrt(a, b)", "takes one argument and got 2"),
        ("round(a)", "'round' at character 1 is not a function; the functions are: abs, ceil"),
        ("a.b", "Unexpected '.' at character 2"),
        ("__import__('os')", "'__import__' at character 1 is not a function"),
        ("1e999", "1e999 at character 1 is too large"),
        ("٣", "Unexpected '٣' at character 1"),
    ],
)
def test_parse_errors_say_where(text: str, says: str) -> None:
    with pytest.raises(FormulaError, match=says):
        Formula.parse(text, variables=["a", "b"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / zero", "Division by zero at character 3"),
        ("zero ^ -1", "no real value"),
        ("(-1) ^ 0.5", "no real value"),
        ("sqrt(-1)", r"'sqrt' of \(-1\) at character 1 has no real value"),
        ("log(zero)", "no real value"),
        ("exp(1000)", "too large"),
        ("10 ^ 400", "too large"),
        ("9^9^9", "too large"),
        ("9^9^9^9^9^9^9^9", "too large"),
        ("floor(1e308) ^ 2", "too large"),
        ("*".join(["1e300"] * 150), "too large"),
        ("1e308 * 10", "too large"),
        ("1 / (1e308 * 10)", "too large"),
    ],
)
def test_evaluation_errors_say_what(text: str, says: str) -> None:
    formula = Formula.parse(text, variables=["zero"])
    with pytest.raises(FormulaError, match=says):
        formula.evaluate({"zero": 0.0})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_scores_that_are_not_finite(value: float) -> None:
    with pytest.raises(FormulaError, match="not a finite number"):
        Formula.parse("min(a, 1)", variables=["a"]).evaluate({"a": value})


def test_refuses_to_evaluate_without_a_score() -> None:
    with pytest.raises(FormulaError, match="No value for 'a'"):
        Formula.parse("a", variables=["a"]).evaluate({})


@pytest.mark.parametrize("nest", ["({})", "-{}", "2^{}", "abs({})"])
def test_depth_is_limited(nest: str) -> None:
    def nested(levels: int) -> str:
        text = "1"
        for _ in range(levels):
            text = nest.format(text)
        return text

    Formula.parse(nested(MAX_DEPTH - 1), variables=[])
    with pytest.raises(FormulaError, match="Nested more than"):
        Formula.parse(nested(MAX_DEPTH), variables=[])


def test_length_is_limited() -> None:
    with pytest.raises(FormulaError, match=f"at most {MAX_LENGTH}"):
        Formula.parse("1" + " " * MAX_LENGTH, variables=[])


def test_a_long_sum_needs_no_recursion() -> None:
    assert Formula.parse("+".join("1" * 500), variables=[]).evaluate({}) == 500.0


def test_variables_are_those_used() -> None:
    assert Formula.parse("b * 2 + a - b", variables=["a", "b", "c"]).variables == ("b", "a")


@pytest.mark.parametrize(
    ("name", "usable"), [("a_1", True), ("größe", True), ("1a", False), ("a b", False), ("", False)]
)
def test_variable_names(name: str, usable: bool) -> None:
    assert is_variable_name(name) is usable
