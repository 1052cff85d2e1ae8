"""What a JSON schema may be before anything is made of it: bounds that are cheap to check and told by name.

What a schema within them still takes is tried in a process of its own, see ``workers.bounded``.
"""

import json
from typing import Any, Literal

from service.core.errors import invalid

MAX_BYTES = 128 * 1024
MAX_DEPTH = 64
"""Of lists and objects within each other."""
MAX_VALUES = 10_000
"""Lists, objects and everything in them."""
MAX_COUNT = 10_000
COUNTS = frozenset({"minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"})
MAX_LENGTH = 100_000
LENGTHS = frozenset({"minLength", "maxLength"})
MAX_PATTERN = 1000
MAX_NUMBER = 2**63
LITERALS = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are compared with, not read as schemas."""
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose values hold schemas under names of the author's own."""
MAX_PATH = 200


def check(schema: dict[str, Any], param: str) -> None:
    """Raises a 400 that names the place under ``param`` and the bound."""
    if "x-guidance" in schema:
        raise invalid("'x-guidance' is not part of JSON Schema and not served.", f"{param}.x-guidance")
    values = 0
    left: list[tuple[Any, str, int, Literal["schema", "names", "literal"]]] = [(schema, param, 1, "schema")]
    while left:
        value, path, depth, kind = left.pop()
        values += 1
        if values > MAX_VALUES:
            raise invalid(f"This schema has more than {MAX_VALUES} values.", param)
        if isinstance(value, dict | list) and depth > MAX_DEPTH:
            raise invalid(f"This schema is nested more than {MAX_DEPTH} deep.", param)
        if isinstance(value, dict):
            for name, each in value.items():
                within = kind
                if kind == "names":
                    within = "schema"
                elif kind == "schema":
                    _check_keyword(name, each, _below(path, name))
                    within = "literal" if name in LITERALS else "names" if name in NAMED else "schema"
                left.append((each, _below(path, name), depth + 1, within))
        elif isinstance(value, list):
            left += [(each, _below(path, str(i)), depth + 1, kind) for i, each in enumerate(value)]
        elif _is_number(value) and not -MAX_NUMBER < value < MAX_NUMBER:
            # A float of that size says no more than that it is large, and grammars of digits do not fit it.
            raise invalid(f"Numbers in a schema must be between -{MAX_NUMBER} and {MAX_NUMBER}.", path)
    size = len(json.dumps(schema, ensure_ascii=False).encode(errors="replace"))
    if size > MAX_BYTES:
        raise invalid(f"This schema has {size} bytes; at most {MAX_BYTES} are allowed.", param)


def _check_keyword(name: str, value: Any, path: str) -> None:
    most = MAX_COUNT if name in COUNTS else MAX_LENGTH if name in LENGTHS else None
    if most is not None and _is_number(value) and not value <= most:
        raise invalid(f"'{name}' must be at most {most}.", path)
    if name == "pattern" and isinstance(value, str):
        _check_pattern(value, path)
    if name == "patternProperties" and isinstance(value, dict):
        for pattern in value:
            _check_pattern(pattern, path)


def _check_pattern(pattern: str, path: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise invalid(f"A pattern may have at most {MAX_PATTERN} characters; this one has {len(pattern)}.", path)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _below(path: str, name: str) -> str:
    """Where it is, as far as that is short enough to be read."""
    return path if len(path) > MAX_PATH else f"{path}.{name}"[: MAX_PATH + 1]
