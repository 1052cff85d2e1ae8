"""Many requests at a time: every answer is right or says when to come again, and others are served meanwhile."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from service.core import forms, threads
from service.settings import settings
from tests import factories
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


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


HEAD = (
    "POST /v1/files HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {key}\r\nContent-Length: 100000\r\n"
    "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
)


def test_a_tenant_that_sends_many_files_at_once_fills_no_disk_and_keeps_no_other_from_sending(
    server: Server, connect: Any, api_key: Key, new_key: Callable[..., Key]
) -> None:
    where = urlsplit(server.base_url)
    rows = factories.jsonl(factories.rows(2))

    def send(client: openai.OpenAI, content: bytes = rows) -> str:
        return client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id

    mine, other = connect(api_key, max_retries=0), connect(new_key(organization="globex"), max_retries=0)
    with ExitStack() as stack:
        for _ in range(forms.MAX_IN_PROGRESS):
            slow = stack.enter_context(socket.create_connection((str(where.hostname), int(where.port or 80))))
            slow.sendall(HEAD.format(key=api_key.plain).encode())
        until(lambda: forms.in_progress[api_key.organization_id] == forms.MAX_IN_PROGRESS)
        with pytest.raises(openai.RateLimitError, match="16 files or parts already") as refused:
            send(mine, bytes(20_000_000))
        assert refused.value.response.headers["retry-after"] == "5"
        assert send(other)
    until(lambda: not forms.in_progress)
    assert send(mine)
