"""What queued jobs are told of their place: the order in which they will be taken, when, and what they wait for."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from service.core import clock
from service.core.db import transaction
from service.jobs import repository
from service.jobs.turns import Capacity
from service.scheduling import repository as scheduling
from tests import factories
from tests.conftest import Key
from workers.control import queue

LEASE = timedelta(seconds=60)


@pytest.fixture
def other_client(client_for: Callable[..., TestClient], new_key: Callable[..., Key]) -> TestClient:
    return client_for(new_key(organization="globex"))


@pytest.fixture
def queued(client: TestClient, other_client: TestClient, models_dir: Any) -> list[str]:
    """Three jobs of one organisation, the last of which is urgent, and then one of another."""
    model = factories.offer_model(models_dir)
    made = []
    for by, priority in ((client, 0), (client, 0), (client, 5), (other_client, 0)):
        body = factories.job_body(by, model) | {"priority": priority}
        made.append(by.post("/v1/fine_tuning/jobs", json=body).json()["id"])
    return made


def register(name: str = "w1", *engines: str, gpu_bytes: int = 0) -> None:
    with transaction("troll_worker") as session:
        scheduling.register(session, name, gpus=1, engines=engines or ("transformers",), gpu_bytes=gpu_bytes)


def progress(client: TestClient, id: str) -> dict[str, Any]:
    told: dict[str, Any] = client.get(f"/v1/fine_tuning/jobs/{id}").json()["progress"]
    return told


def claimed_order() -> list[str]:
    order = []
    for number in range(4):
        with transaction("troll_worker") as session:
            job = repository.claim(session, worker=f"w{number}", lease=LEASE, max_running=100)
            assert job is not None
            order.append(job.id)
    return order


def test_jobs_are_told_the_place_in_which_they_are_taken(
    queued: list[str], client: TestClient, other_client: TestClient
) -> None:
    register()
    queue.plan()
    clients = [client, client, client, other_client]
    places = {progress(by, id)["queue_position"]: id for by, id in zip(clients, queued, strict=True)}
    assert [places[number] for number in (1, 2, 3, 4)] == claimed_order()


def test_starts_follow_the_workers(queued: list[str], client: TestClient, other_client: TestClient) -> None:
    register("w1")
    register("w2")
    began = time.monotonic()
    with transaction("troll_control") as session:
        now = clock.now(session).timestamp()
    queue.plan()
    took = time.monotonic() - began
    clients = [client, client, client, other_client]
    starts = sorted(progress(by, id)["estimated_start"] - now for by, id in zip(clients, queued, strict=True))
    usual = queue.ASSUMED_SECONDS
    # Starts are told in whole seconds.
    assert all(due - 1 <= start <= due + took for start, due in zip(starts, [0, 0, usual, usual], strict=True))


@pytest.mark.parametrize(
    ("workers", "reason"), [((), "No training worker is there"), (("other",), "has the rollout engine 'transformers'")]
)
def test_what_no_worker_has_is_said(
    queued: list[str], client: TestClient, workers: tuple[str, ...], reason: str
) -> None:
    if workers:
        register("w1", *workers)
    queue.plan()
    told = progress(client, queued[0])
    assert reason in told["waits_for"]
    assert told["estimated_start"] is None


def needs(database: Any, job_id: str, gpu_bytes: int) -> None:
    with psycopg.connect(database.database_owner_url, autocommit=True) as connection:
        connection.execute("UPDATE fine_tuning_jobs SET gpu_bytes = %s WHERE id = %s", [gpu_bytes, job_id])


def test_memory_that_no_worker_has_is_said_and_holds_up_nobody(
    queued: list[str], client: TestClient, database: Any
) -> None:
    needs(database, queued[2], 160_000_000_000)
    register("small", gpu_bytes=24_000_000_000)
    register("large", gpu_bytes=80_000_000_000)
    queue.plan()
    told = progress(client, queued[2])["waits_for"]
    assert "at least 160.0 GB" in told
    assert "80.0 GB at most" in told
    assert progress(client, queued[0])["waits_for"] is None
    with transaction("troll_worker") as session:
        job = repository.claim(
            session, worker="large", lease=LEASE, max_running=9, capacity=Capacity(gpu_bytes=80_000_000_000)
        )
        assert job is not None
        assert job.id == queued[0]


@pytest.mark.parametrize("gpu_bytes", [0, 160_000_000_000])
def test_a_worker_that_has_it_or_does_not_say_may_take_it(
    queued: list[str], client: TestClient, database: Any, gpu_bytes: int
) -> None:
    needs(database, queued[2], 160_000_000_000)
    register("w1", gpu_bytes=gpu_bytes)
    queue.plan()
    assert progress(client, queued[2])["waits_for"] is None
    with transaction("troll_worker") as session:
        capacity = Capacity(gpu_bytes=gpu_bytes or None)
        job = repository.claim(session, worker="w1", lease=LEASE, max_running=9, capacity=capacity)
        assert job is not None
        assert job.id == queued[2]


def test_memory_and_engine_have_to_be_one_workers(queued: list[str], client: TestClient, database: Any) -> None:
    needs(database, queued[0], 50_000_000_000)
    register("w1", "transformers", gpu_bytes=24_000_000_000)
    register("w2", "vllm", gpu_bytes=80_000_000_000)
    queue.plan()
    assert "24.0 GB at most" in progress(client, queued[0])["waits_for"]


def test_a_supervised_job_needs_no_engine(client: TestClient, models_dir: Any) -> None:
    body = factories.supervised_body(client, factories.offer_model(models_dir))
    id = client.post("/v1/fine_tuning/jobs", json=body).json()["id"]
    register("w1", "other")
    queue.plan()
    assert progress(client, id)["waits_for"] is None
    with transaction("troll_worker") as session:
        assert repository.claim(session, worker="w1", lease=LEASE, max_running=9, capacity=Capacity(["other"]))


def test_drained_workers_and_those_that_are_away_take_nothing(
    queued: list[str], client: TestClient, database: Any
) -> None:
    register("drained")
    register("away")
    with transaction("troll_operator") as session:
        assert scheduling.set_draining(session, "drained", draining=True)
    with psycopg.connect(database.database_owner_url, autocommit=True) as connection:
        connection.execute("UPDATE workers SET seen_at = now() - interval '1 hour' WHERE name = 'away'")
    queue.plan()
    assert "No training worker is there" in progress(client, queued[0])["waits_for"]


def test_workers_are_forgotten_after_a_day(database: Any) -> None:
    register("old")
    with psycopg.connect(database.database_owner_url, autocommit=True) as connection:
        connection.execute("UPDATE workers SET seen_at = now() - interval '25 hours'")
    register("new")
    queue.plan()
    with transaction("troll_control") as session:
        assert [worker.name for worker in scheduling.workers(session)] == ["new"]


def test_a_job_that_started_has_no_place_any_more(queued: list[str], client: TestClient) -> None:
    register()
    queue.plan()
    first = claimed_order()
    assert all(progress(client, id)["queue_position"] is None for id in first if id in queued[:3])


def test_what_was_told_is_not_written_again(queued: list[str], database: Any) -> None:
    register()
    with psycopg.connect(database.database_owner_url, autocommit=True) as connection:
        rows = "SELECT id, xmin::text FROM fine_tuning_jobs ORDER BY id"
        queue.plan()
        before = connection.execute(rows).fetchall()
        queue.plan()
        assert connection.execute(rows).fetchall() == before
