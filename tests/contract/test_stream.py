"""Following a job live with the official client: heartbeats, reconnects, limits."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJobEvent
from sqlalchemy import func, update

from service.accounts.models import APIKey
from service.accounts.service import revoke_key
from service.core import live, shutdown, sse
from service.core.db import transaction
from service.settings import settings
from tests.conftest import Key
from tests.contract.conftest import Server
from tests.contract.test_jobs import tell


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "PING_SECONDS", 0.3)


@pytest.fixture
def job(acme: openai.OpenAI, body: dict[str, Any]) -> str:
    return acme.fine_tuning.jobs.create(**body).id


def follow(client: openai.OpenAI, job: str, after: int = 0) -> openai.Stream[FineTuningJobEvent]:
    return client.get(
        f"/fine_tuning/jobs/{job}/events",
        cast_to=FineTuningJobEvent,
        options={"params": {"stream": "true", **({"after": str(after)} if after else {})}},
        stream=True,
        stream_cls=openai.Stream[FineTuningJobEvent],
    )


def seq(event: FineTuningJobEvent) -> int:
    return int(event.to_dict()["seq"])  # type: ignore[call-overload]


def test_events_are_objects_of_the_client_until_the_job_ends(acme: openai.OpenAI, job: str) -> None:
    acme.fine_tuning.jobs.cancel(job)
    events = list(follow(acme, job))
    assert [seq(event) for event in events] == [1, 2, 3]
    assert events[-1].message == "Job cancelled"


def test_the_asynchronous_client_follows_too(server: Server, acme: openai.OpenAI, api_key: Key, job: str) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(api_key=api_key.plain, base_url=server.base_url) as client:
            stream = await client.get(
                f"/fine_tuning/jobs/{job}/events",
                cast_to=FineTuningJobEvent,
                options={"params": {"stream": "true"}},
                stream=True,
                stream_cls=openai.AsyncStream[FineTuningJobEvent],
            )
            return [event.message async for event in stream]

    acme.fine_tuning.jobs.cancel(job)
    assert asyncio.run(main())[-1] == "Job cancelled"


def test_reconnecting_again_and_again_misses_and_doubles_nothing(acme: openai.OpenAI, job: str) -> None:
    def happen() -> None:
        for _ in range(30):
            tell(job, 2)
            time.sleep(0.01)
        acme.fine_tuning.jobs.cancel(job)

    worker = threading.Thread(target=happen)
    worker.start()
    seen: list[int] = []
    ended = False
    while not ended:
        with follow(acme, job, after=seen[-1] if seen else 0) as stream:
            for count, event in enumerate(stream):
                seen.append(seq(event))
                if event.message == "Job cancelled":
                    ended = True
                if count == 6:
                    break
    worker.join()
    assert seen == list(range(1, 2 + 60 + 1 + 1))


def test_silence_is_filled_with_pings(acme: openai.OpenAI, job: str) -> None:
    with acme.fine_tuning.jobs.with_streaming_response.list_events(job, extra_query={"stream": "true"}) as answer:
        pings = 0
        for line in answer.iter_lines():
            pings += line == ": ping"
            if pings == 2:
                break
    assert pings == 2


def test_redis_forgetting_everything_costs_no_event(acme: openai.OpenAI, job: str) -> None:
    def happen() -> None:
        for _ in range(10):
            tell(job, 1)
            live.client().flushall()
        acme.fine_tuning.jobs.cancel(job)

    worker = threading.Thread(target=happen)
    with follow(acme, job) as stream:
        seen = [seq(next(stream)), seq(next(stream))]
        worker.start()
        seen += [seq(event) for event in stream]
    worker.join()
    assert seen == list(range(1, 2 + 10 + 1 + 1))


def test_restarts_of_api_and_redis_cost_no_event(acme: openai.OpenAI, api_key: Key, job: str) -> None:
    def happen() -> None:
        for count in range(20):
            tell(job, 1)
            if count % 5 == 0:
                # As after a restart of Redis: nobody is connected and what was in memory is gone.
                live.client().flushall()
                live.client().client_kill_filter(_type="normal", skipme=True)
            time.sleep(0.05)
        acme.fine_tuning.jobs.cancel(job)

    def one_life(after: int, until: int) -> list[int]:
        """Follow on an API of its own, which is told to stop when ``until`` is seen."""
        server, seen = Server(), []
        with openai.OpenAI(api_key=api_key.plain, base_url=server.base_url, timeout=30) as client:
            for event in follow(client, job, after):
                seen.append(seq(event))
                if seen[-1] >= until:
                    shutdown.stopping.set()
        server.stop()
        shutdown.stopping.clear()
        return seen

    worker = threading.Thread(target=happen)
    worker.start()
    seen = one_life(0, 6)
    seen += one_life(seen[-1], 14)
    seen += one_life(seen[-1], 1000)
    worker.join()
    assert seen == list(range(1, 2 + 20 + 1 + 1))


@pytest.fixture
def one_stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TROLL_MAX_STREAMS_PER_KEY", "1")
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


def test_a_key_follows_a_bounded_number_of_streams(
    connect: Callable[..., openai.OpenAI], api_key: Key, job: str, one_stream: None
) -> None:
    client = connect(api_key, max_retries=0)
    with follow(client, job) as first:
        next(first)
        with pytest.raises(openai.RateLimitError) as refusal:
            follow(client, job)
        assert refusal.value.code == "too_many_streams"
    until = time.monotonic() + 10
    while live.client().zcard(f"seats:{api_key.id}"):
        assert time.monotonic() < until, "the slot of a stream that ended is not given back"
        time.sleep(0.05)
    with follow(client, job) as again:
        assert seq(next(again)) == 1


def test_a_key_that_expires_meanwhile_follows_no_longer(
    acme: openai.OpenAI, api_key: Key, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.stream.LOOK_UP_SECONDS", 0.0)
    with follow(acme, job) as stream:
        assert seq(next(stream)) == 1
        with transaction("troll_operator") as session:
            session.execute(update(APIKey).where(APIKey.id == api_key.id).values(expires_at=func.now()))
        with pytest.raises(openai.APIError, match="it expired"):
            list(stream)


def test_a_revoked_key_follows_no_longer(acme: openai.OpenAI, api_key: Key, job: str) -> None:
    with follow(acme, job) as stream:
        seen = [seq(next(stream)), seq(next(stream))]
        with transaction("troll_operator") as session:
            revoke_key(session, api_key.id)
        with pytest.raises(openai.APIError, match="no longer valid") as ended:
            next(stream)
    assert seen == [1, 2]
    assert ended.value.code == "invalid_api_key"
