"""The place of a value, found at a cost that grows with the value and no faster."""

import tracemalloc
from typing import Any

import pytest

from service.core import paths


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, {"b": "x\0"}]}, "a.1.b"),
        ({"a": {"k\0": 1}}, "a.k?"),
        (["", "\0"], "1"),
        ("\0", ""),
        ({"a": "\0", "b": "\0"}, "a"),
        ({"a": [1, None, 2.5]}, None),
    ],
)
def test_the_first_place_is_named(value: Any, path: str | None) -> None:
    assert paths.first(value, "\0") == path


def test_a_long_key_over_many_values_takes_no_more_than_they_do() -> None:
    value = {"K" * 10_000: [*range(20_000), "\0"]}
    tracemalloc.start()
    found = paths.first(value, "\0")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == "K" * paths.MAX_SHOWN
    assert most < 20 << 20
