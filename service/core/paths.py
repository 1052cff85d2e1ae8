"""Where in a value something is, as errors name it."""

import re
from typing import Any


def first(value: Any, pattern: str) -> str | None:
    """The path, with dots, of the first text or key in ``value`` that ``pattern`` is found in; None without any."""
    todo: list[tuple[str, Any]] = [("", value)]
    while todo:
        path, each = todo.pop()
        if isinstance(each, str) and re.search(pattern, each):
            return path
        children = each.items() if isinstance(each, dict) else enumerate(each) if isinstance(each, list | tuple) else ()
        inside = [(f"{path}.{_shown(key)}".lstrip("."), key, child) for key, child in children]
        if (found := next((where for where, key, _ in inside if re.search(pattern, str(key))), None)) is not None:
            return found
        todo += [(where, child) for where, _, child in reversed(inside)]
    return None


def _shown(key: str | int) -> str:
    """A key that can be sent back: no half characters, nothing unprintable."""
    return "".join(character if character.isprintable() else "?" for character in str(key))
