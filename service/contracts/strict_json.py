"""JSON as RFC 8259 has it, for text that strangers wrote: dataset rows and model answers.

Python's own reader takes NaN and Infinity, turns 1e999 into infinity, and ends a deep enough nesting with a
RecursionError, here or when the value is written out again. All of these are refused here with one exception.
"""

import json
import math
from functools import cache
from typing import Any

MAX_DEPTH = 200


class InvalidJSONError(ValueError):
    """The text is not JSON. The message says what is wrong and, where it is known, at which character (from 1)."""


def loads(text: str, *, max_fields: int | None = None) -> Any:
    """Parse ``text``, whose objects have at most ``max_fields`` fields each. Raises ``InvalidJSONError``."""
    try:
        value = (_decoder if max_fields is None else _bounded_decoder(max_fields)).decode(text)
    except InvalidJSONError:
        raise
    except json.JSONDecodeError as error:
        raise InvalidJSONError(f"{error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise InvalidJSONError(_TOO_DEEP) from None
    except ValueError:
        # CPython refuses to convert integers of more than 4,300 digits.
        raise InvalidJSONError("a number has too many digits") from None
    # Fewer brackets than the limit cannot nest deeper than it; nearly every text stops at this count.
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper_than(value, MAX_DEPTH):
        raise InvalidJSONError(_TOO_DEEP)
    return value


def dumps(value: Any) -> str:
    """Compact JSON with non-ASCII characters as they are."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def kind(value: Any) -> str:
    """What a JSON value is, in words for an error message: ``a string``, ``an object``…"""
    if value is None:
        return "null"
    names: dict[type, str] = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"


def _refuse_constant(name: str) -> Any:
    raise InvalidJSONError(f"{name} is not a JSON number; write null or leave the field out")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidJSONError(f"the number {text[:40]} is too large")
    return value


def _is_deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return any(isinstance(value, list | dict) for value in level)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


@cache
def _bounded_decoder(max_fields: int) -> json.JSONDecoder:
    def bounded(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > max_fields:
            raise InvalidJSONError(f"an object has more than {max_fields} fields")
        return dict(pairs)

    return json.JSONDecoder(object_pairs_hook=bounded, parse_constant=_refuse_constant, parse_float=_finite_float)


_decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite_float)
