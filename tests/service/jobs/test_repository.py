"""Claims, fences and the order of events, under contention."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from service.core.db import engine, transaction
from service.jobs import repository
from service.jobs.repository import EventDraft
from service.jobs.states import Status, move
from tests import factories
from tests.conftest import Key

LEASE = timedelta(seconds=60)


@pytest.fixture
def submit(
    models_dir: Path, client_for: Callable[[Key | None], TestClient], new_key: Callable[..., Key]
) -> Callable[[str], str]:
    """``submit("acme")`` queues a job of that organisation."""
    model = factories.offer_model(models_dir)
    clients: dict[str, TestClient] = {}

    def make(organization: str = "acme") -> str:
        if organization not in clients:
            clients[organization] = client_for(new_key(organization=organization))
        return factories.create_job(clients[organization], model)["id"]

    return make


def claim(worker: str = "w", max_running: int = 8) -> str | None:
    with transaction("troll_worker") as session:
        job = repository.claim(session, worker=worker, lease=LEASE, max_running=max_running)
        return job.id if job else None


def test_a_claim_takes_a_lease_and_bumps_the_attempt(submit: Callable[..., str]) -> None:
    id = submit()
    claim("worker-7")
    with transaction("troll_worker") as session:
        job = repository.get(session, id)
    assert job is not None
    assert (job.status, job.attempt, job.strikes, job.worker) == ("running", 1, 1, "worker-7")
    assert job.lease_expires_at is not None


def test_many_workers_claim_each_job_once(submit: Callable[..., str]) -> None:
    ids = {submit() for _ in range(6)}
    with ThreadPoolExecutor(12) as pool:
        claimed = [id for id in pool.map(lambda n: claim(f"w{n}"), range(12)) if id]
    assert sorted(claimed) == sorted(ids)


def test_claims_alternate_between_organisations(submit: Callable[..., str]) -> None:
    acme = [submit("acme") for _ in range(3)]
    globex = submit("globex")
    assert [claim(), claim(), claim()] == [acme[0], globex, acme[1]]


def test_a_hundred_jobs_of_one_do_not_delay_anothers_first_where_one_worker_runs_one_at_a_time(
    submit: Callable[..., str],
) -> None:
    acme = [submit("acme") for _ in range(4)]
    globex = [submit("globex") for _ in range(2)]
    turns = []
    for _ in range(6):
        turns.append(claim())
        with transaction("troll_worker") as session:
            job = repository.locked(session, str(turns[-1]))
            assert job is not None
            move(job, Status.FAILED)
    assert turns == [acme[0], globex[0], acme[1], globex[1], acme[2], acme[3]]


def test_an_organisation_runs_no_more_than_its_quota(submit: Callable[..., str]) -> None:
    for _ in range(3):
        submit()
    assert [claim(max_running=2) is not None for _ in range(3)] == [True, True, False]


def test_a_job_that_is_not_wanted_is_not_claimed(submit: Callable[..., str]) -> None:
    id = submit()
    with transaction("troll_worker") as session:
        job = repository.get(session, id)
        assert job is not None
        job.desired = "pause"
    assert claim() is None


def test_an_old_attempt_finds_its_fence_closed(submit: Callable[..., str]) -> None:
    id = submit()
    claim()
    with transaction("troll_worker") as session:
        assert repository.fenced(session, id, 1) is not None
        assert repository.fenced(session, id, 0) is None
        assert not repository.heartbeat(session, id, 0, LEASE)


def test_events_of_many_writers_have_no_gap(submit: Callable[..., str]) -> None:
    id = submit()

    def write(number: int) -> None:
        with transaction("troll_worker") as session:
            job = repository.locked(session, id)
            assert job is not None
            repository.append_events(session, job, [EventDraft(f"{number}"), EventDraft(f"{number} again")])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(20)))
    with transaction("troll_worker") as session:
        told = [event.seq for event in repository.events_after(session, id, 0, 1000)]
    assert told == list(range(1, 2 + 40 + 1))


def test_a_rolled_back_event_leaves_no_gap(submit: Callable[..., str]) -> None:
    id = submit()
    with Session(engine("troll_worker")) as session:
        job = repository.locked(session, id)
        assert job is not None
        repository.append_events(session, job, [EventDraft("never seen")])
        session.rollback()
    with transaction("troll_worker") as session:
        job = repository.locked(session, id)
        assert job is not None
        assert [event.seq for event in repository.append_events(session, job, [EventDraft("seen")])] == [3]


def test_a_key_is_told_once(submit: Callable[..., str]) -> None:
    id = submit()
    for _ in range(2):
        with transaction("troll_worker") as session:
            job = repository.locked(session, id)
            assert job is not None
            repository.append_events(session, job, [EventDraft("step", key="step-1"), EventDraft("step", key="step-1")])
    with transaction("troll_worker") as session:
        assert len(repository.events_after(session, id, 2, 10)) == 1
