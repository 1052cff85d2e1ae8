"""Servers that are there and do not answer: stopped by a signal, as a machine that hangs is. Nobody waits long."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2 as httpx
import openai
import psutil
import pytest

from service.core import live, threads
from service.jobs import stream
from service.submission import service as submission
from tests.conftest import Key
from tests.contract.conftest import Server

PATIENCE = threads.REQUEST_SECONDS
WITHIN = 10.0
"""Seconds within which everybody has an answer."""


def tell(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        # PostgreSQL's helpers come and go.
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextmanager
def frozen(name: str) -> Iterator[None]:
    """Processes of this run that are called ``name``, stopped for a while."""
    processes = [child for child in psutil.Process().children(recursive=True) if child.name() == name]
    assert processes, f"no {name} runs"
    try:
        tell(processes, signal.SIGSTOP)
        yield
    finally:
        tell(processes, signal.SIGCONT)
        live.silence.until = 0.0


@pytest.fixture(autouse=True)
def as_in_production(servers: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests are patient; here it is the patience that counts."""
    monkeypatch.setattr(threads, "REQUEST_SECONDS", PATIENCE)
    monkeypatch.setattr(submission, "ANSWER_SECONDS", 2.5)


@pytest.fixture
def http(server: Server, api_key: Key) -> Iterator[httpx.Client]:
    """A client that has asked before, as in a server at work."""
    headers = {"authorization": f"Bearer {api_key.plain}"}
    with httpx.Client(base_url=server.base_url.removesuffix("/v1"), headers=headers, timeout=3 * WITHIN) as client:
        assert client.get("/v1/files").status_code == 200
        assert client.get("/readyz").status_code == 200
        yield client


def timed(ask: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    return ask(), time.monotonic() - began


def test_health_needs_no_server(http: httpx.Client) -> None:
    with frozen("redis-server"), frozen("postgres"):
        answer, _ = timed(lambda: http.get("/healthz"))
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("name", "code"), [("redis-server", "redis_unavailable"), ("postgres", "database_unavailable")]
)
def test_a_frozen_server_is_not_ready_and_ready_again_afterwards(http: httpx.Client, name: str, code: str) -> None:
    with frozen(name):
        for _ in range(4):
            answer, seconds = timed(lambda: http.get("/readyz"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
            assert seconds < WITHIN
    until = time.monotonic() + WITHIN
    while http.get("/readyz").status_code != 200:
        assert time.monotonic() < until, "it does not become ready again"


# Redis


def test_without_an_answer_of_redis_requests_are_handled(http: httpx.Client) -> None:
    with frozen("redis-server"):
        answer, seconds = timed(lambda: http.get("/v1/files"))
        assert answer.status_code == 200
        assert seconds < WITHIN
        assert "x-ratelimit-limit-requests" not in answer.headers


def test_a_job_is_created_while_redis_is_frozen(http: httpx.Client, body: dict[str, Any]) -> None:
    with frozen("redis-server"):
        answer, seconds = timed(lambda: http.post("/v1/fine_tuning/jobs", json=body))
        assert answer.status_code == 200, answer.text
        assert seconds < WITHIN


def test_what_needs_redis_is_a_503_soon(http: httpx.Client, model: str) -> None:
    grader = {"type": "string_check", "name": "n", "operation": "eq", "input": "a", "reference": "a"}
    requests = {
        "/v1/fine_tuning/alpha/graders/run": {"grader": grader, "model_sample": "a"},
        "/v1/chat/completions": {"model": model, "messages": [{"role": "user", "content": "x"}]},
        "/v1/completions": {"model": model, "prompt": "x", "stream": True},
    }
    for url, content in requests.items():
        with frozen("redis-server"):
            answer, seconds = timed(lambda url=url, content=content: http.post(url, json=content))  # type: ignore[misc]
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "redis_unavailable"), url
            assert seconds < WITHIN, url


def test_events_are_told_while_redis_is_frozen(http: httpx.Client, acme: openai.OpenAI, body: dict[str, Any]) -> None:
    job = acme.fine_tuning.jobs.create(**body)
    with frozen("redis-server"):
        began = time.monotonic()
        with http.stream("GET", f"/v1/fine_tuning/jobs/{job.id}/events?stream=true") as answer:
            line = next(line for line in answer.iter_lines() if line.startswith("data:"))
        assert json.loads(line.removeprefix("data:"))["seq"] == 1
        assert time.monotonic() - began < WITHIN


# PostgreSQL


def test_a_stream_says_that_postgres_is_away_and_ends(
    http: httpx.Client, acme: openai.OpenAI, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LOOK_UP_SECONDS", 0.5)
    monkeypatch.setattr(stream, "DATABASE_SECONDS", 2.0)
    job = acme.fine_tuning.jobs.create(**body)
    lines: list[str] = []
    told = threading.Event()

    def follow() -> None:
        with http.stream("GET", f"/v1/fine_tuning/jobs/{job.id}/events?stream=true") as answer:
            for line in answer.iter_lines():
                lines.append(line)
                told.set()

    follower = threading.Thread(target=follow)
    follower.start()
    assert told.wait(WITHIN)
    with frozen("postgres"):
        follower.join(WITHIN)
        assert not follower.is_alive()
    assert stream.AWAY.decode().strip() in lines
    assert "data: [DONE]" not in lines


def test_a_full_pool_of_connections_is_a_503(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import TimeoutError as NoConnection

    from service.files import repository

    def none_left(*arguments: Any, **options: Any) -> None:
        raise NoConnection("QueuePool limit of size 10 overflow 40 reached")

    monkeypatch.setattr(repository, "page", none_left)
    answer = http.get("/v1/files")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
    assert "QueuePool" not in answer.text
