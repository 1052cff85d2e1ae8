"""Where in a value something is, as errors name it."""

import re
from typing import Any, TypeAlias

MAX_SHOWN = 200
"""Characters of a path, and of each key in it."""

_Place: TypeAlias = tuple["_Place | None", str | int]


def first(value: Any, pattern: str) -> str | None:
    """The path, with dots, of the first text or key in ``value`` that ``pattern`` is found in; None without any.

    What is long is cut. Paths of all that is looked at would take many times the size of the value.
    """
    todo: list[tuple[_Place | None, Any]] = [(None, value)]
    while todo:
        place, each = todo.pop()
        if isinstance(each, str) and re.search(pattern, each):
            return _path(place)
        children = each.items() if isinstance(each, dict) else enumerate(each) if isinstance(each, list | tuple) else ()
        inside: list[tuple[_Place, Any]] = [((place, key), child) for key, child in children]
        for within, _ in inside:
            if isinstance(within[1], str) and re.search(pattern, within[1]):
                return _path(within)
        todo += reversed(inside)
    return None


def _path(place: _Place | None) -> str:
    keys: list[str] = []
    while place is not None:
        place, key = place
        keys.append(_shown(key))
    return ".".join(reversed(keys))[:MAX_SHOWN]


def _shown(key: str | int) -> str:
    """A key that can be sent back: no half characters, nothing unprintable."""
    return "".join(character if character.isprintable() else "?" for character in str(key)[:MAX_SHOWN])
