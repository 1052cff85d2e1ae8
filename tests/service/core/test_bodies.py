"""Bodies before a route sees them: what is read as JSON, and how long is waited for the rest."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.core import bodies
from service.core.bodies import Bodies, read_json
from service.core.errors import DomainError

HALF = b'{"name": "a\\ud800"}'


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b"[" * 200 + b"]" * 200, None),
        (b'{"a": ' + b"9" * 4000 + b"}", {"a": int("9" * 4000)}),
        (b'{"a": "\\u0000"}', {"a": "\0"}),
    ],
)
def test_json_is_read(body: bytes, value: Any) -> None:
    assert value is None or read_json(body) == value


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"a": ', "at character 7"),
        (b"  ", "at character"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b"[" * 201 + b"]" * 201, "nested more than 200 levels"),
        (b'{"a":' * 40_000 + b"1" + b"}" * 40_000, "nested more than 200 levels"),
        (b"[" * 40_000, "nested more than 200 levels"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8: byte 0xed at position 8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b"{" + b",".join(b'"%d": 1' % n for n in range(1001)) + b"}", "more than 1000 fields"),
    ],
)
def test_what_is_no_json_is_said_in_words(body: bytes, says: str) -> None:
    with pytest.raises(DomainError, match=says.replace("'", ".")) as refusal:
        read_json(body)
    assert (refusal.value.status, refusal.value.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (HALF, "name"),
        (b'{"a": {"b": ["x", {"c": "\\udfff"}]}}', "a.b.1.c"),
        (b'{"a": {"\\ud800": 1}}', "a.?"),
        (b'"\\ud800"', None),
        (b'{"a": "\\ud83d\\ude00", "b": "\\ude00\\ud83d"}', "b"),
    ],
)
def test_half_a_character_is_refused_by_its_field(body: bytes, param: str | None) -> None:
    with pytest.raises(DomainError) as refusal:
        read_json(body)
    assert (refusal.value.status, refusal.value.code, refusal.value.param) == (400, "invalid_json", param)
    refusal.value.message.encode()


# How they arrive


def answer_to(
    path: str, chunks: list[bytes], *, complete: bool, headers: dict[str, str] | None = None, seconds: float = 0.0
) -> tuple[int, bytes]:
    """The status of an answer to a body of ``chunks``, ``seconds`` apart, and what the route got of it."""
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if complete:
        waiting[-1]["more_body"] = False
    sent: list[Any] = []
    got = bytearray()

    async def receive() -> Any:
        if not waiting:
            await asyncio.Event().wait()
        await asyncio.sleep(seconds)
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    async def route(scope: Any, receive: Any, send: Any) -> None:
        from starlette.exceptions import HTTPException

        try:
            while (message := await receive()).get("more_body"):
                got.extend(message["body"])
        except HTTPException as error:
            await send({"type": "http.response.start", "status": error.status_code, "headers": []})
            return
        got.extend(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
    }
    limits = {"/upload": 100}

    async def caller(scope: Any) -> str:
        return "org-a"

    app = Bodies(route, upload_limit=limits.get, caller=caller)
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 20))
    return sent[0]["status"], bytes(got)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch, servers: object) -> Callable[..., None]:
    def change(**seconds: float) -> None:
        for name, value in seconds.items():
            monkeypatch.setattr(bodies, name, value)

    return change


def test_many_lists_and_objects_are_refused() -> None:
    body = b"[" + b",".join([b"{}"] * bodies.MAX_CONTAINERS) + b"]"
    with pytest.raises(DomainError) as error:
        bodies.read_json(body)
    assert (error.value.status, error.value.code) == (400, "invalid_json")
    assert "lists and objects" in error.value.message


def test_brackets_in_a_text_are_no_lists() -> None:
    text = "[{" * bodies.MAX_CONTAINERS + '"\\'
    assert bodies.read_json(json.dumps({"text": text}).encode()) == {"text": text}


def test_a_strangers_large_body_is_not_read(client: TestClient) -> None:
    body = b'"' + b"a" * bodies.LARGE_BYTES
    headers = {"content-type": "application/json", "authorization": "Bearer sk-troll-nobodys"}
    answer = client.post("/v1/fine_tuning/jobs", content=body, headers=headers)
    assert answer.status_code == 401, answer.text


def test_a_large_body_of_somebody_is_read(client: TestClient) -> None:
    body = b'"' + b"a" * bodies.LARGE_BYTES
    answer = client.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_a_whole_body_reaches_the_route(servers: object) -> None:
    assert answer_to("/json", [b"ab", b"", b"c"], complete=True) == (200, b"abc")


def test_a_body_that_stops_is_a_408(patience: Callable[..., None]) -> None:
    patience(BODY_SECONDS=0.2)
    assert answer_to("/json", [b"1"], complete=False) == (408, b"")


def test_a_body_that_trickles_is_a_408(patience: Callable[..., None]) -> None:
    patience(BODY_SECONDS=0.2)
    assert answer_to("/json", [b"1"] * 1000, complete=True, seconds=0.02) == (408, b"")


def test_an_upload_that_stops_is_a_408(patience: Callable[..., None]) -> None:
    patience(STALL_SECONDS=0.2)
    assert answer_to("/upload", [b"1"], complete=False)[0] == 408


def test_an_upload_that_trickles_is_a_408(patience: Callable[..., None]) -> None:
    patience(STALL_SECONDS=0.2, LEAST_BYTES_PER_SECOND=1000)
    assert answer_to("/upload", [b"1"] * 1000, complete=True, seconds=0.02)[0] == 408


def test_an_upload_that_keeps_coming_may_take_longer_than_a_pause(patience: Callable[..., None]) -> None:
    patience(STALL_SECONDS=1.0, LEAST_BYTES_PER_SECOND=1)
    assert answer_to("/upload", [b"1"] * 60, complete=True, seconds=0.02) == (200, b"1" * 60)


@pytest.mark.parametrize("announced", ["66000", "9" * 5000])
def test_an_announced_length_is_believed(servers: object, announced: str) -> None:
    assert answer_to("/upload", [b"1"], complete=True, headers={"content-length": announced})[0] == 413


@pytest.mark.parametrize("announced", ["²", "-1", "x", ""])
def test_an_announced_length_that_is_no_number_is_passed_over(servers: object, announced: str) -> None:
    assert answer_to("/upload", [b"1"], complete=True, headers={"content-length": announced})[0] == 200
