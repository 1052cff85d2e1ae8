"""Nested metrics as a flat row."""

from typing import Any


def flatten(data: Any, separator: str = ".", prefix: str = "") -> dict[str, int | float]:
    """The numbers of ``data``, nested names joined by ``separator``; lists and texts are left out."""
    row: dict[str, int | float] = {}
    if not isinstance(data, dict):
        return row  # Another version may have stored something else.
    for name, value in data.items():
        if isinstance(value, dict):
            row |= flatten(value, separator, f"{prefix}{name}{separator}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            row[prefix + name] = value
    return row
