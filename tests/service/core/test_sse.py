"""Frames of streams, as a client's reader of lines sees them."""

import json

import pytest

from service.core import sse


@pytest.mark.parametrize("text", ["", "two\nlines", "\r", "\u2028", "\x85", "\x0b\x0c\x1c", "日本語 😀", "\ud800"])
def test_a_value_is_one_line_of_data_whatever_it_holds(text: str) -> None:
    frame = sse.data({"text": text})
    assert frame.endswith(b"\n\n")
    # As httpx splits what it reads.
    (line, end) = frame.decode().splitlines()
    assert end == ""
    assert json.loads(line.removeprefix("data: ")) == {"text": text}


def test_an_event_has_its_type_for_a_name() -> None:
    assert sse.named({"type": "done"}) == b'event: done\ndata: {"type":"done"}\n\n'
