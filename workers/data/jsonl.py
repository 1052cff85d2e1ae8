"""Rows of a JSONL file, and why some cannot be used."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers.errors import RunError

MAX_ROWS_NAMED = 20
BATCH_ROWS = 256
BATCH_BYTES = 1 << 20
"""Rows that are rendered and encoded together end with the one that reaches either number."""


class UnusableRowError(Exception):
    """A row that no prompt can be made of; the message says why."""


class Problems:
    """Why rows of a file cannot be used: the first ``MAX_ROWS_NAMED`` by line, and how many there are."""

    def __init__(self) -> None:
        self.count = 0
        self._named: list[str] = []

    def add(self, line: int, reason: object) -> None:
        """``reason`` is put into words only where it is among those that are named."""
        self.count += 1
        if self.count <= MAX_ROWS_NAMED:
            self._named.append(f"line {line}: {reason}")

    def refusal(self, param: str) -> RunError:
        """What ends the run because of them or, where there are none, because the file has no row at all."""
        if not self.count:
            return RunError("invalid_file", "The file has no rows.", param=param)
        more = f" (and {self.count - MAX_ROWS_NAMED} more)" if self.count > MAX_ROWS_NAMED else ""
        listed = "; ".join(self._named)
        return RunError("invalid_file", f"{self.count} rows cannot be trained on: {listed}{more}.", param=param)


def batches(path: Path) -> Iterator[list[tuple[int, bytes]]]:
    """Numbers and contents of the lines that are not blank, as many together as are rendered and encoded at once."""
    part: list[tuple[int, bytes]] = []
    size = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            part.append((number, raw))
            size += len(raw)
            if len(part) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield part
                part, size = [], 0
    if part:
        yield part


def parse(raw: bytes) -> dict[str, Any]:
    """The row on a line. Raises ``UnusableRowError``."""
    try:
        item = json.loads(raw)
    except json.JSONDecodeError as error:
        raise UnusableRowError(f"not JSON ({error.msg} in column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise UnusableRowError("not UTF-8") from error
    messages = item.get("messages") if isinstance(item, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise UnusableRowError("needs 'messages', a list of at least one message")
    parsed: dict[str, Any] = item
    return parsed
