"""A real API on a real port, and the command line pointed at it."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner, Result

from service.cli import app

Troll = Callable[..., Result]


@pytest.fixture
def base_url(database: Any) -> Iterator[str]:
    """The API, served over HTTP by a thread of this process."""
    from service.app import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(), port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join()


@pytest.fixture
def troll(base_url: str, api_key: Any, database: Any, monkeypatch: pytest.MonkeyPatch) -> Troll:
    """``troll("jobs", "list")`` runs the command on behalf of ``acme``, or as the operator."""
    monkeypatch.setenv("DATABASE_URL", database.database_url("troll_operator"))
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    monkeypatch.setenv("OPENAI_API_KEY", api_key.plain)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
