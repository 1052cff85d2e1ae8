"""Following a job: no gap and no double, whatever Redis does meanwhile."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.accounts import keys
from service.accounts.known import Principal
from service.core import live, sse, stream_slots
from service.core.db import transaction
from service.jobs import repository, service, stream
from service.jobs.repository import EventDraft
from tests import factories
from tests.conftest import Key


def principal(key: Key) -> Principal:
    return Principal(key.organization_id, "acme", key.project_id, key.id, keys.hashed(key.plain))


@pytest.fixture
def job(client: TestClient, models_dir: Path, api_key: Key) -> dict[str, Any]:
    """A queued job, and the key that follows it."""
    return {**factories.create_job(client, factories.offer_model(models_dir)), "principal": principal(api_key)}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "PING_SECONDS", 0.3)
    monkeypatch.setattr(stream, "POLL_SECONDS", 0.1)


def tell(job_id: str, count: int) -> None:
    with transaction("troll_worker") as session:
        row = repository.locked(session, job_id)
        assert row is not None
        service.tell(session, row, [EventDraft(f"event {n}", type="metrics") for n in range(count)])


def follow(job: dict[str, Any], after: int, meanwhile: Callable[[], object]) -> list[int]:
    """Sequence numbers that a follower sees while ``meanwhile`` happens and then the job is cancelled."""

    async def main() -> list[int]:
        seen: list[int] = []

        async def act() -> None:
            await asyncio.sleep(0.3)
            await asyncio.to_thread(meanwhile)

        acting = asyncio.create_task(act())
        async with asyncio.timeout(20):
            slot = stream_slots.acquire(job["principal"].key_id, 10)
            async for frame in stream.follow(job["principal"], slot, job["id"], after):
                if frame == sse.DONE:
                    await acting
                    return seen
                if frame != sse.PING:
                    seen.append(json.loads(frame.removeprefix(b"data: "))["seq"])
        raise AssertionError("the stream ended without [DONE]")

    return asyncio.run(main())


def test_replay_then_live_then_done(client: TestClient, job: dict[str, Any]) -> None:
    def meanwhile() -> None:
        for _ in range(5):
            tell(job["id"], 3)
        client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")

    assert follow(job, 0, meanwhile) == list(range(1, 2 + 15 + 1 + 1))


def test_a_follower_that_comes_back_misses_nothing(client: TestClient, job: dict[str, Any]) -> None:
    tell(job["id"], 5)
    assert follow(job, 4, lambda: client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")) == [5, 6, 7, 8]


def test_lost_frames_are_read_from_postgres(
    client: TestClient, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile() -> None:
        monkeypatch.setattr(live, "publish", lambda job_id, frames: None)
        tell(job["id"], 3)
        client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")

    assert follow(job, 0, meanwhile) == [1, 2, 3, 4, 5, 6]


def test_a_gap_in_redis_is_filled(client: TestClient, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(live, "publish", lambda job_id, frames: None)
            tell(job["id"], 2)
        tell(job["id"], 2)
        client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")

    assert follow(job, 0, meanwhile) == list(range(1, 8))


def test_without_redis_events_still_come(
    client: TestClient, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import redis.asyncio

    monkeypatch.setattr(live, "asynchronous", lambda: redis.asyncio.Redis.from_url("unix:///nowhere/redis.sock"))

    def meanwhile() -> None:
        tell(job["id"], 2)
        client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")

    assert follow(job, 0, meanwhile) == [1, 2, 3, 4, 5]


def test_more_events_than_a_batch_are_replayed_whole(client: TestClient, job: dict[str, Any]) -> None:
    tell(job["id"], 2 * stream.BATCH)
    client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    assert follow(job, 0, lambda: None) == list(range(1, 2 * stream.BATCH + 4))


def test_frames_are_data_lines_only(client: TestClient, job: dict[str, Any]) -> None:
    client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    text = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events", params={"stream": "true"}).text
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
