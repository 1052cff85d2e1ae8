"""Connections that send no request, or a part of one: each ends, and those that work go on."""

import importlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.core import connections

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10000\r\n\r\n"
PATIENCE = 30.0


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/take":
        while (await receive()).get("more_body"):
            pass
    if scope["path"] == "/wait":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await receive()
        await receive()
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(params=["installed", "h11"])
def connect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], socket.socket]]:
    """``connect()`` opens a connection to a server with little patience, on either of uvicorn's parsers."""
    if request.param == "h11":
        monkeypatch.setattr(auto, "AutoHTTPProtocol", H11Protocol)
    importlib.reload(connections)
    monkeypatch.setattr(connections, "HEADERS_SECONDS", 0.5)
    config = uvicorn.Config(
        app, port=0, http=connections.Connection, lifespan="off", log_config=None, timeout_keep_alive=20
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + PATIENCE
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.01)
    opened: list[socket.socket] = []

    def open_one() -> socket.socket:
        opened.append(socket.create_connection(server.servers[0].sockets[0].getsockname(), PATIENCE))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()
    server.should_exit = True
    thread.join(PATIENCE)
    monkeypatch.undo()
    importlib.reload(connections)


def everything(client: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    said = b""
    try:
        while chunk := client.recv(4096):
            said += chunk
    except ConnectionError:
        pass
    return said


def trickle(client: socket.socket, text: bytes) -> None:
    """Send ``text`` byte by byte until the server closes the connection."""

    def send() -> None:
        try:
            for byte in text * 1000:
                client.sendall(bytes([byte]))
                time.sleep(0.02)
        except OSError:
            return

    threading.Thread(target=send, daemon=True).start()


def put_to_work(client: socket.socket) -> None:
    """Send a request whose answer takes for ever, and wait until the server is at it."""
    client.sendall(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
    assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_connection_without_a_request_is_closed(connect: Callable[[], socket.socket]) -> None:
    assert everything(connect()).startswith(b"HTTP/1.1 408 ")


def test_headers_that_trickle_are_a_408(connect: Callable[[], socket.socket]) -> None:
    client = connect()
    client.sendall(b"GET / HTTP/1.1\r\n")
    trickle(client, b"a: b\r\n")
    said = everything(client)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "request_timeout"' in said


def test_headers_without_end_are_refused(connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_SECONDS", PATIENCE)
    client, sent = connect(), 0
    client.sendall(b"GET / HTTP/1.1\r\n")
    try:
        while sent < 50 * 1024**2:
            sent += client.send(b"a: b\r\n" * 10_000)
    except ConnectionError:
        pass
    assert sent < 50 * 1024**2


def test_a_second_request_whose_headers_trickle_is_no_answer(connect: Callable[[], socket.socket]) -> None:
    client = connect()
    client.sendall(GET)
    assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    client.sendall(b"GET / HTTP/1.1\r\n")
    trickle(client, b"a: b\r\n")
    assert everything(client).removeprefix(b"ok") == b""


def test_a_body_that_nobody_reads_does_not_hold_a_connection(connect: Callable[[], socket.socket]) -> None:
    client = connect()
    client.sendall(POST)
    trickle(client, b"x")
    assert everything(client).count(b"HTTP/1.1 ") == 1


def test_an_answer_may_take_longer_than_headers(connect: Callable[[], socket.socket]) -> None:
    client = connect()
    put_to_work(client)
    client.settimeout(3 * connections.HEADERS_SECONDS)
    with pytest.raises(TimeoutError):
        client.recv(1)


def test_who_waits_longest_for_its_client_makes_room(
    connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADERS_SECONDS", PATIENCE)
    monkeypatch.setattr(connections, "most_connections", lambda: 3)
    first = connect()
    put_to_work(connect())
    later = [connect() for _ in range(3)]
    later[-1].sendall(GET)
    assert later[-1].recv(4096).startswith(b"HTTP/1.1 200 ")
    assert everything(first) == b""


def test_a_body_that_does_not_come_makes_room_too(
    connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "most_connections", lambda: 2)
    put_to_work(connect())
    sending = connect()
    sending.sendall(b"POST /take HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
    assert sending.recv(4096).startswith(b"HTTP/1.1 100 ")
    new = connect()
    new.sendall(GET)
    assert new.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert everything(sending) == b""


def test_where_all_are_at_work_a_new_one_is_a_503(
    connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADERS_SECONDS", PATIENCE)
    monkeypatch.setattr(connections, "most_connections", lambda: 2)
    for _ in range(2):
        put_to_work(connect())
    said = everything(connect())
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b'"code": "overloaded"' in said
