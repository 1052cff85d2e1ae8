"""Jobs that are looked at together: nobody waits for ever, and others are served meanwhile."""

import threading
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.core import ask
from service.core.errors import DomainError
from service.jobs import examination
from service.jobs.examination import Question
from tests import factories
from tests.conftest import Key

THREADS = 40
"""Threads that anyio gives the handlers of requests."""
CREATIONS = THREADS + 1
PATIENCE_SECONDS = 30.0


@pytest.fixture
def attended(database: object) -> None:
    """A control worker has been there lately; none is there to answer."""
    ask.attend()


def test_questions_are_sent_while_every_thread_of_the_server_waits_for_an_answer(
    attended: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "ACCEPT_SECONDS", 0.2)
    monkeypatch.setattr(examination, "_places", threading.BoundedSemaphore(CREATIONS))
    notes: list[str] = []
    waiting = threading.Barrier(THREADS)

    def handler(number: int) -> None:
        if number < THREADS:
            waiting.wait(10)
        notes.extend(examination.examine(Question(model=None, files={}, grader=None)))

    async def main() -> None:
        with anyio.move_on_after(PATIENCE_SECONDS):
            async with anyio.create_task_group() as group:
                for number in range(CREATIONS):
                    group.start_soon(lambda n=number: anyio.to_thread.run_sync(handler, n, abandon_on_cancel=True))

    anyio.run(main)
    assert len(notes) == CREATIONS, "questions wait for threads that wait for answers"
    assert all("No control worker answered" in note for note in notes)


def test_jobs_beyond_those_that_are_looked_at_are_taken_at_once_and_others_are_served(
    attended: None, client: TestClient, models_dir: Path, api_key: Key, new_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []
    answered = threading.Event()

    async def slow(*_: object) -> dict[str, Any]:
        asked.append(None)
        while not answered.is_set():
            await anyio.sleep(0.02)
        raise DomainError(504, "worker_timeout", "This took too long.")

    monkeypatch.setattr(ask, "ask", slow)
    body = factories.job_body(client, factories.offer_model(models_dir))
    mine, other = ({"Authorization": f"Bearer {key.plain}"} for key in (api_key, new_key(organization="globex")))
    created: list[httpx.Response] = []

    async def main() -> None:
        transport = httpx.ASGITransport(create_app())
        async with httpx.AsyncClient(transport=transport, base_url="http://api", timeout=None) as api:

            async def create(seed: int) -> None:
                created.append(await api.post("/v1/fine_tuning/jobs", json={**body, "seed": seed}, headers=mine))

            with anyio.fail_after(PATIENCE_SECONDS):
                async with anyio.create_task_group() as group:
                    for seed in range(CREATIONS):
                        group.start_soon(create, seed)
                    while len(created) < CREATIONS - examination.AT_ONCE:
                        await anyio.sleep(0.02)
                    began = time.monotonic()
                    assert (await api.get("/v1/fine_tuning/jobs", headers=other)).status_code == 200
                    assert time.monotonic() - began < 5
                    answered.set()

    anyio.run(main)
    assert {answer.status_code for answer in created} == {200}, [answer.text for answer in created]
    assert len(asked) == examination.AT_ONCE
    said = [_queued(client, answer.json()["id"]) for answer in created]
    assert {event["level"] for event in said} == {"warn"}
    busy = [event for event in said if "other jobs are being looked at" in event["message"]]
    assert len(busy) == CREATIONS - examination.AT_ONCE


def _queued(client: TestClient, job_id: str) -> dict[str, Any]:
    events = client.get(f"/v1/fine_tuning/jobs/{job_id}/events").json()["data"]
    (event,) = (each for each in events if "job queued" in each["message"])
    return event
