"""The formula of a multi grader, such as ``0.8 * exact + 0.2 * min(close, 1)``: arithmetic over named scores.

    sum     = product { ("+" | "-") product }
    product = unary { ("*" | "/") unary }
    unary   = ("+" | "-") unary | power
    power   = atom [ "^" unary ]                      right associative; -2^2 is -4 and 2^-1 is 0.5
    atom    = number | variable | function "(" sum { "," sum } ")" | "(" sum ")"

A formula is written by a user and run by us, so it is never given to ``eval``. It becomes a program for a stack
machine: evaluation does not recurse and takes time linear in the length of the text.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

MAX_LENGTH = 1000
MAX_DEPTH = 50

_TOKEN = re.compile(
    r"""\s*(?: (?P<number> (?:[0-9]+\.?[0-9]*|\.[0-9]+) (?:[eE][+-]?[0-9]+)? )
             | (?P<name> [^\W\d]\w* )
             | (?P<symbol> [-+*/^(),] )
             | (?P<end> \Z ) )""",
    re.VERBOSE,
)
_NAME = re.compile(r"[^\W\d]\w*")


class FormulaError(ValueError):
    """The formula cannot be read, or has no finite value for these scores. The message gives the position, from 1."""


@dataclass(frozen=True, slots=True)
class _Operation:
    symbol: str
    arity: int
    apply: Callable[..., float]
    position: int


_Instruction = float | str | _Operation
Value = TypeVar("Value")
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_VARIADIC: dict[str, Callable[..., float]] = {
    "min": lambda *values: min(values),
    "max": lambda *values: max(values),
}
_OPERATORS: dict[str, Callable[..., float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
    "^": math.pow,
}


def is_variable_name(text: str) -> bool:
    """Whether ``text`` can stand in a formula as a variable."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class Formula:
    """A parsed formula. ``variables`` are those it uses, in order of first use."""

    text: str
    variables: tuple[str, ...]
    _program: tuple[_Instruction, ...] = field(repr=False)

    @classmethod
    def parse(cls, text: str, variables: Collection[str]) -> "Formula":
        """Parse ``text`` over the names in ``variables``. Raises ``FormulaError``, a ``ValueError``."""
        if len(text) > MAX_LENGTH:
            raise FormulaError(f"The formula has {len(text)} characters; at most {MAX_LENGTH} are allowed.")
        parser = _Parser(text, variables)
        parser.parse()
        names = dict.fromkeys(step for step in parser.program if isinstance(step, str))
        return cls(text, tuple(names), tuple(parser.program))

    def evaluate(self, values: Mapping[str, float]) -> float:
        """The value for these scores. Raises ``FormulaError`` where arithmetic has no finite answer."""
        return self._run(lambda step: step if isinstance(step, float) else _score(step, values), _apply)

    def fold(self, leaf: Callable[[float | str], Value], apply: Callable[[str, list[Value]], Value]) -> Value:
        """What the formula comes to in another arithmetic: ``leaf`` is given each number and each variable's name,
        ``apply`` each function's name or operator with its arguments."""
        return self._run(leaf, lambda operation, arguments: apply(operation.symbol, arguments))

    def _run(self, leaf: Callable[[float | str], Value], apply: Callable[[_Operation, list[Value]], Value]) -> Value:
        stack: list[Value] = []
        for step in self._program:
            if isinstance(step, _Operation):
                arguments = stack[-step.arity :]
                del stack[-step.arity :]
                stack.append(apply(step, arguments))
            else:
                stack.append(leaf(step))
        return stack.pop()


def _apply(operation: _Operation, arguments: list[float]) -> float:
    try:
        value = float(operation.apply(*arguments))
    except ZeroDivisionError:
        raise FormulaError(f"Division by zero at character {operation.position}.") from None
    except ValueError:
        raise FormulaError(f"{_call(operation, arguments)} has no real value.") from None
    except OverflowError:
        raise FormulaError(f"{_call(operation, arguments)} is too large.") from None
    if not math.isfinite(value):
        raise FormulaError(f"{_call(operation, arguments)} is too large.")
    return value


def _call(operation: _Operation, arguments: list[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in arguments)
    return f"'{operation.symbol}' of ({shown}) at character {operation.position}"


def _score(name: str, values: Mapping[str, float]) -> float:
    if name not in values:
        raise FormulaError(f"No value for '{name}'.")
    value = float(values[name])
    if not math.isfinite(value):
        raise FormulaError(f"The value of '{name}' is {value}, which is not a finite number.")
    return value


class _Parser:
    """Recursive descent: each method reads one rule of the grammar above and appends what it means to ``program``."""

    def __init__(self, text: str, variables: Collection[str]) -> None:
        self.text, self.variables = text, variables
        self.program: list[_Instruction] = []
        self.depth = 0
        self.after = 0  # where the token that follows the current one starts
        self.advance()

    def parse(self) -> None:
        self.sum()
        if self.kind != "end":
            raise self.unexpected("an operator or the end")

    def advance(self) -> None:
        match = _TOKEN.match(self.text, self.after)
        if match is None:
            position = len(self.text) - len(self.text[self.after :].lstrip())
            raise FormulaError(
                f"Unexpected '{self.text[position]}' at character {position + 1}; a formula is made of numbers, names "
                "of graders, functions, + - * / ^, commas and parentheses."
            )
        self.kind = match.lastgroup or ""
        self.token, self.position, self.after = match[self.kind], match.start(self.kind) + 1, match.end()

    def sum(self) -> None:
        self.left_associative(self.product, "+-")

    def product(self) -> None:
        self.left_associative(self.unary, "*/")

    def left_associative(self, operand: Callable[[], None], symbols: str) -> None:
        operand()
        while self.kind == "symbol" and self.token in symbols:
            symbol, position = self.token, self.position
            self.advance()
            operand()
            self.emit(symbol, 2, _OPERATORS[symbol], position)

    def unary(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise FormulaError(f"Nested more than {MAX_DEPTH} levels deep at character {self.position}.")
        if self.kind == "symbol" and self.token in "+-":
            symbol, position = self.token, self.position
            self.advance()
            self.unary()
            if symbol == "-":
                self.emit("-", 1, lambda value: -value, position)
        else:
            self.power()
        self.depth -= 1

    def power(self) -> None:
        self.atom()
        if self.kind == "symbol" and self.token == "^":
            position = self.position
            self.advance()
            self.unary()
            self.emit("^", 2, _OPERATORS["^"], position)

    def atom(self) -> None:
        if self.kind == "number":
            self.number()
        elif self.kind == "name":
            self.name()
        elif self.kind == "symbol" and self.token == "(":
            self.advance()
            self.sum()
            self.close()
        else:
            raise self.unexpected("a number, the name of a grader, a function or '('")

    def number(self) -> None:
        value = float(self.token)
        if not math.isfinite(value):
            raise FormulaError(f"The number {self.token[:40]} at character {self.position} is too large.")
        self.program.append(value)
        self.advance()

    def name(self) -> None:
        name, position = self.token, self.position
        self.advance()
        if self.kind == "symbol" and self.token == "(":
            self.call(name, position)
        elif name in self.variables:
            self.program.append(name)
        elif name in _FUNCTIONS or name in _VARIADIC:
            raise FormulaError(f"The function '{name}' at character {position} needs arguments in parentheses.")
        else:
            known = ", ".join(self.variables)
            raise FormulaError(f"Unknown name '{name}' at character {position}; the graders are named: {known}.")

    def call(self, name: str, position: int) -> None:
        function = _FUNCTIONS.get(name) or _VARIADIC.get(name)
        if function is None:
            known = ", ".join(sorted(_FUNCTIONS | _VARIADIC))
            raise FormulaError(f"'{name}' at character {position} is not a function; the functions are: {known}.")
        self.advance()
        self.sum()
        arity = 1
        while self.kind == "symbol" and self.token == ",":
            self.advance()
            self.sum()
            arity += 1
        if name in _FUNCTIONS and arity > 1:
            raise FormulaError(f"'{name}' at character {position} takes one argument and got {arity}.")
        self.close()
        self.emit(name, arity, function, position)

    def close(self) -> None:
        if self.kind != "symbol" or self.token != ")":
            raise self.unexpected("')'")
        self.advance()

    def emit(self, symbol: str, arity: int, apply: Callable[..., float], position: int) -> None:
        self.program.append(_Operation(symbol, arity, apply, position))

    def unexpected(self, wanted: str) -> FormulaError:
        if self.kind == "end":
            return FormulaError(f"The formula ends at character {len(self.text)}, where {wanted} is expected.")
        hint = " Powers are written with ^." if self.text[self.position - 2 : self.position] == "**" else ""
        where = f"at character {self.position}, where {wanted} is expected"
        return FormulaError(f"Unexpected '{self.token}' {where}.{hint}")
