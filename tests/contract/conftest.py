"""The official ``openai`` client against the real API on a real server: sync and async, loose and strict."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from inspect import isawaitable
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from tests import factories
from tests.conftest import Key
from tests.workers.conftest import stub

__all__ = ["stub"]

START_SECONDS = 20.0


class Server:
    """uvicorn in a thread, on a free port."""

    def __init__(self) -> None:
        from service.app import create_app

        self.watchers: list[Callable[[Any], None]] = []
        self._app = create_app()
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._watched,
                interface="asgi3",
                http="service.core.connections:Connection",
                ws="none",
                host="127.0.0.1",
                port=0,
                log_config=None,
                timeout_graceful_shutdown=3,
            )
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until = time.monotonic() + START_SECONDS
        while not self._server.started:
            assert self._thread.is_alive(), "the server ended while it started"
            assert time.monotonic() < until, "the server does not start"
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"

    async def _watched(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            for watch in self.watchers:
                watch(scope)
        await self._app(scope, receive, send)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive(), "the server does not stop"


class Official:
    """One client of the official library. ``ask`` gets an answer and ``everything`` a list, sync or async alike."""

    def __init__(self, client: openai.OpenAI | openai.AsyncOpenAI, loop: asyncio.AbstractEventLoop | None) -> None:
        self.client: Any = client
        self.strict = client._strict_response_validation
        self._loop = loop

    def ask(self, call: Any) -> Any:
        if self._loop is None or not isawaitable(call):
            return call
        return self._loop.run_until_complete(_await(call))

    def everything(self, pages: Any) -> list[Any]:
        if self._loop is None:
            return list(pages)
        return self._loop.run_until_complete(_collect(pages))


async def _await(call: Any) -> Any:
    return await call


async def _collect(pages: Any) -> list[Any]:
    return [item async for item in pages]


@pytest.fixture(scope="session")
def server(servers: object) -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def connect(server: Server, database: object) -> Iterator[Callable[..., openai.OpenAI]]:
    """``connect(key, strict=False)`` is a synchronous client."""
    opened = []

    def make(key: Key, *, strict: bool = False, **options: Any) -> openai.OpenAI:
        client = openai.OpenAI(
            api_key=key.plain, base_url=server.base_url, _strict_response_validation=strict, timeout=30, **options
        )
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def acme(connect: Callable[..., openai.OpenAI], api_key: Key) -> openai.OpenAI:
    """A strict synchronous client of ``acme``."""
    return connect(api_key, strict=True)


@pytest.fixture(params=["sync-loose", "sync-strict", "async-loose", "async-strict"])
def official(request: pytest.FixtureRequest, server: Server, api_key: Key) -> Iterator[Official]:
    """The same test with each kind of client."""
    kind, _, strictness = request.param.partition("-")
    options: dict[str, Any] = {
        "api_key": api_key.plain,
        "base_url": server.base_url,
        "_strict_response_validation": strictness == "strict",
        "timeout": 30,
    }
    if kind == "sync":
        with openai.OpenAI(**options) as client:
            yield Official(client, None)
        return
    loop = asyncio.new_event_loop()
    asynchronous = openai.AsyncOpenAI(**options)
    yield Official(asynchronous, loop)
    loop.run_until_complete(asynchronous.close())
    loop.close()


@pytest.fixture
def model(models_dir: Path) -> str:
    return factories.offer_model(models_dir)


@pytest.fixture
def body(acme: openai.OpenAI, model: str) -> dict[str, Any]:
    """Arguments of a valid ``fine_tuning.jobs.create`` with freshly uploaded files."""
    return {
        "model": model,
        "training_file": acme.files.create(file=factories.jsonl(factories.rows(8)), purpose="fine-tune").id,
        "validation_file": acme.files.create(file=factories.jsonl(factories.rows(4, start=50)), purpose="fine-tune").id,
        "method": factories.method(),
    }


@pytest.fixture
def attempts(server: Server) -> Iterator[list[str]]:
    """``METHOD path`` of every request that reaches the server, retries included."""
    seen: list[str] = []
    server.watchers.append(lambda scope: seen.append(f"{scope['method']} {scope['path']}"))
    yield seen
    server.watchers.clear()
