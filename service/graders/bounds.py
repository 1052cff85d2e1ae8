"""Between which rewards a grader stays, as far as its definition tells (``GraderDefinition.bounds``).

An answer that cannot be graded through its own fault earns the least. A formula's bounds are found by interval
arithmetic: an operation on intervals gives one that holds every value the operation can take. Scores that
occur twice make the result too wide, so ranges are split where that narrows it; a score that is 0 or 1 is split into
the two.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count

from service.graders.formula import Formula

MAX_SPLITS = 200
TOLERANCE = 1e-9
"""Relative: a bound as near as this to a value that is reached is taken for that value."""


@dataclass(frozen=True)
class Interval:
    """All numbers from ``low`` to ``high``, or with ``two_valued`` only these two.

    An infinite end says that there is no bound, or that none is known.
    """

    low: float
    high: float
    two_valued: bool = False


ANY = Interval(-math.inf, math.inf)
FRACTION, EITHER = Interval(0.0, 1.0), Interval(0.0, 1.0, two_valued=True)


def formula_bounds(formula: Formula, ranges: Mapping[str, Interval]) -> Interval:
    """Bounds of the formula's values where each variable lies in its range.

    Scores for which it has no value, as with a division by zero, count for nothing.
    """
    low = _least(formula, ranges, lambda found: found.low)
    high = -_least(formula, ranges, lambda found: -found.high)
    return Interval(low, high) if low <= high else ANY


def _least(formula: Formula, ranges: Mapping[str, Interval], end: Callable[[Interval], float]) -> float:
    """What no value's ``end`` is below. The part with the least bound is split again and again; inf without a value."""
    names: list[float | str] = []
    formula.fold(lambda leaf: names.append(leaf), lambda symbol, arguments: None)
    uses = Counter(name for name in names if isinstance(name, str))
    parts: list[tuple[float, int, Mapping[str, Interval]]] = []
    numbers = count()
    reached = math.inf

    def add(part: Mapping[str, Interval]) -> None:
        nonlocal reached
        found = evaluate(formula, part)
        if found is not None:
            heapq.heappush(parts, (end(found), next(numbers), part))
            reached = min([reached, *(end(point) for point in _corners(formula, part))])

    def is_reached() -> bool:
        return not parts or parts[0][0] >= reached - TOLERANCE * max(1.0, abs(reached))

    add({name: ranges[name] for name in formula.variables})
    for _ in range(MAX_SPLITS):
        name = None if is_reached() else _to_split(parts[0][2], uses)
        if name is None:
            break
        _, _, part = heapq.heappop(parts)
        for half in _halves(part[name]):
            add({**part, name: half})
    return reached if is_reached() else parts[0][0]


def _corners(formula: Formula, part: Mapping[str, Interval]) -> Iterable[Interval]:
    """The values with every score at its lowest, and with every score at its highest."""
    for ends in ({name: each.low for name, each in part.items()}, {name: each.high for name, each in part.items()}):
        if all(map(math.isfinite, ends.values())):
            value = evaluate(formula, {name: Interval(end, end) for name, end in ends.items()})
            if value is not None:
                yield value


def _to_split(part: Mapping[str, Interval], uses: Counter[str]) -> str | None:
    """The widest of the ranges that narrow the result when they are split."""
    widths = {name: each.high - each.low for name, each in part.items() if each.two_valued or uses[name] > 1}
    return max((name for name, width in widths.items() if 0 < width < math.inf), key=widths.__getitem__, default=None)


def _halves(whole: Interval) -> tuple[Interval, Interval]:
    if whole.two_valued:
        return Interval(whole.low, whole.low), Interval(whole.high, whole.high)
    middle = whole.low + (whole.high - whole.low) / 2
    return Interval(whole.low, middle), Interval(middle, whole.high)


def evaluate(formula: Formula, ranges: Mapping[str, Interval]) -> Interval | None:
    """What holds every value of the formula; None where it has none."""
    return formula.fold(
        lambda leaf: ranges[leaf] if isinstance(leaf, str) else Interval(leaf, leaf),
        lambda symbol, arguments: _apply(symbol, [each for each in arguments if each is not None], len(arguments)),
    )


def _apply(symbol: str, arguments: list[Interval], arity: int) -> Interval | None:
    if len(arguments) < arity:
        return None
    match symbol, arguments:
        case "-", [a]:
            return Interval(-a.high, -a.low)
        case "+", [a, b]:
            return _hull(a.low + b.low, a.high + b.high)
        case "-", [a, b]:
            return _hull(a.low - b.high, a.high - b.low)
        case "*", [a, b]:
            return _hull(*(_product(x, y) for x in (a.low, a.high) for y in (b.low, b.high)))
        case "/", [a, b]:
            return _quotient(a, b)
        case "^", [a, b]:
            return _power(a, b)
        case "min", _:
            return Interval(min(each.low for each in arguments), min(each.high for each in arguments))
        case "max", _:
            return Interval(max(each.low for each in arguments), max(each.high for each in arguments))
        case "abs", [a]:
            return Interval(max(a.low, -a.high, 0.0), max(-a.low, a.high))
        case "floor", [a]:
            return Interval(_floor(a.low), _floor(a.high))
        case "ceil", [a]:
            return Interval(-_floor(-a.low), -_floor(-a.high))
        case "exp", [a]:
            return _widened(_exp(a.low), _exp(a.high), 0.0)
        case "sqrt", [a]:
            return None if a.high < 0 else Interval(math.sqrt(max(a.low, 0.0)), math.sqrt(a.high))
        case "log", [a]:
            return None if a.high <= 0 else _widened(_log(a.low), _log(a.high), -math.inf)
    raise AssertionError(f"the formula's '{symbol}' has no interval")


def _hull(*ends: float) -> Interval | None:
    """From the least to the greatest; None where every value is too large for a number."""
    if any(map(math.isnan, ends)):
        return ANY
    low, high = min(ends), max(ends)
    return None if low == math.inf or high == -math.inf else Interval(low, high)


def _widened(low: float, high: float, least: float) -> Interval | None:
    """Ends moved outward by what the functions of ``math`` may be off; they are exact where they give an integer."""
    low = low if low.is_integer() else max(math.nextafter(low, -math.inf), least)
    return _hull(low, high if high.is_integer() else math.nextafter(high, math.inf))


def _product(x: float, y: float) -> float:
    # An infinite end stands for finite numbers of any size; zero times those is zero.
    return x * y if x and y else 0.0


def _quotient(a: Interval, b: Interval) -> Interval | None:
    if b.low < 0 < b.high:
        return ANY
    if b.high <= 0:
        a, b = Interval(-a.high, -a.low), Interval(-b.high, -b.low)
    if b.high == 0:
        return None
    near = [math.copysign(math.inf, x) if x else 0.0 for x in (a.low, a.high)] if b.low == 0 else []
    far = [0.0] if b.high == math.inf else []
    finite = [y for y in (b.low, b.high) if 0 < y < math.inf]
    return _hull(*near, *far, *(x / y for x in (a.low, a.high) for y in finite))


def _power(a: Interval, b: Interval) -> Interval | None:
    if a.low >= 0:
        # Monotone in the base and in the exponent, so that the extremes are at corners.
        ends = [_pow(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        return _widened(min(ends), max(ends), 0.0)
    magnitude = _power(Interval(0.0 if a.high >= 0 else -a.high, max(-a.low, a.high)), b)
    if magnitude is None:
        return None
    if b.low == b.high and b.low % 2 == 0:
        return magnitude
    if b.low == b.high and b.low % 2 == 1:
        negative = _power(Interval(max(-a.high, 0.0), -a.low), b)
        positive = _power(Interval(max(a.low, 0.0), a.high), b) if a.high >= 0 else None
        return _hull(
            *([-negative.low, -negative.high] if negative else []), *([positive.low, positive.high] if positive else [])
        )
    # Whole exponents give either sign, all others no number.
    return Interval(-magnitude.high, magnitude.high)


def _pow(x: float, y: float) -> float:
    """``x`` to the ``y`` for ``x`` not below 0, in the limit where there is no value."""
    try:
        return math.pow(x, y)
    except (ValueError, OverflowError):
        return math.inf


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _floor(x: float) -> float:
    return float(math.floor(x)) if math.isfinite(x) else x
