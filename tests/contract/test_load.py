"""Many requests at a time: every answer is right or says when to come again, and others are served meanwhile."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from service.core import threads
from service.settings import settings
from tests.conftest import Key
from tests.contract.conftest import Server

PATIENCE = 120.0
BURST = 300


async def get(server: Server, path: str, key: str) -> tuple[int, bytes]:
    """Status and head of the answer, on a connection of its own."""
    where = urlsplit(server.base_url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    head = f"GET {path} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    received = await reader.read(-1)
    writer.close()
    return int(received.split(b" ", 2)[1]), received.partition(b"\r\n\r\n")[0].lower()


def burst(server: Server, path: str, key: Key, *others: tuple[str, str]) -> tuple[list[Any], list[Any]]:
    """The answers to ``BURST`` simultaneous requests of ``key``, and to ``others``, sent behind them."""

    async def main() -> tuple[list[Any], list[Any]]:
        async with asyncio.timeout(PATIENCE):
            sent = [asyncio.create_task(get(server, path, key.plain)) for _ in range(BURST)]
            await asyncio.sleep(0.02)
            beside = [asyncio.create_task(get(server, *other)) for other in others]
            return await asyncio.gather(*sent), await asyncio.gather(*beside)

    return asyncio.run(main())


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TROLL_REQUESTS_PER_MINUTE", "0")
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


@pytest.mark.parametrize(
    "path", ["/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/none", "/v1/models", "/v1/files", "/v1/webhook_event_types"]
)
def test_simultaneous_requests_are_answered_or_told_when_to_come_again(
    server: Server, api_key: Key, new_key: Callable[..., Key], unlimited: None, path: str
) -> None:
    other = new_key(organization="globex")
    answers, beside = burst(server, path, api_key, ("/healthz", ""), ("/v1/fine_tuning/jobs", other.plain))
    statuses = Counter(status for status, _ in answers)
    right = statuses[200] + statuses[404]
    assert right >= threads.request_threads.waiting_each, statuses
    assert right + statuses[503] == BURST, statuses
    assert all(b"retry-after: 1" in head for status, head in answers if status == 503)
    assert [status for status, _ in beside] == [200, 200]


def test_connections_that_say_nothing_keep_nobody_from_being_served(server: Server, acme: openai.OpenAI) -> None:
    where = urlsplit(server.base_url)
    silent = [socket.create_connection((str(where.hostname), int(where.port or 80))) for _ in range(100)]
    try:
        assert list(acme.fine_tuning.jobs.list()) == []
    finally:
        for connection in silent:
            connection.close()
