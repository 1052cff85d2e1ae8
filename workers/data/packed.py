"""What is known of a file's rows while a job trains on them, in a few bytes for each.

Token ids lie one after the other in one array, which takes 4 bytes for each where Python's lists take 8 and more; rows
themselves stay in their file, and are read when they are asked for. So hundreds of thousands of them fit into memory
beside a model.
"""

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from workers.data.jsonl import parse


class Runs(Sequence[Sequence[int]]):
    """Sequences of small numbers, packed."""

    def __init__(self) -> None:
        self._numbers, self._ends = array("I"), array("Q", [0])

    def append(self, numbers: Iterable[int]) -> None:
        self._numbers.extend(numbers)
        self._ends.append(len(self._numbers))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> Sequence[int]: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Sequence[int]]: ...
    def __getitem__(self, at: int | slice) -> Sequence[int] | Sequence[Sequence[int]]:
        if isinstance(at, slice):
            return [self[each] for each in range(len(self))[at]]
        number = range(len(self))[at]
        return self._numbers[self._ends[number] : self._ends[number + 1]]


class Joined(Sequence[Sequence[int]]):
    """The sequences of several, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Sequence[int]]]) -> None:
        self._parts, self._starts = parts, [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, at: int) -> Sequence[int]: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Sequence[int]]: ...
    def __getitem__(self, at: int | slice) -> Sequence[int] | Sequence[Sequence[int]]:
        if isinstance(at, slice):
            return [self[each] for each in range(len(self))[at]]
        number = range(len(self))[at]
        part = bisect_right(self._starts, number) - 1
        return self._parts[part][number - self._starts[part]]


class Lines:
    """The lines of a file that are not blank, read again whenever one is asked for. The file must stay as it is."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._places, self._sizes = array("Q"), array("L")
        place = 0
        for raw in self._file:
            if raw.strip():
                self._places.append(place)
                self._sizes.append(len(raw))
            place += len(raw)

    def item(self, number: int) -> dict[str, Any]:
        """The row on a line."""
        # Unlike a read at the file's position, several threads may do this at once.
        return parse(os.pread(self._file.fileno(), self._sizes[number], self._places[number]))
