"""The repair loop."""

from collections.abc import Callable

import pytest
from sqlalchemy import text

from service.core import ask, broker
from service.core.db import transaction
from tests.workers.conftest import events, row
from workers.control.sweep import reap, ring, sweep

pytestmark = pytest.mark.usefixtures("stub")


def lose_worker(job_id: str, strikes: int = 1, desired: str = "run") -> None:
    """As if a worker had claimed the job and died."""
    statement = text(
        "UPDATE fine_tuning_jobs SET status = 'running', attempt = attempt + 1, strikes = :strikes, worker = 'gone', "
        "desired = :desired, lease_expires_at = now() - interval '1 second' WHERE id = :id"
    )
    with transaction("troll_worker") as session:
        session.execute(statement, {"id": job_id, "strikes": strikes, "desired": desired})


def test_a_lost_doorbell_is_rung_again(submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(broker, "ring", lambda job_id: False)
        submit()
    assert broker.waiting() == 0
    ring()
    assert broker.waiting() == 1


def test_there_are_never_more_doorbells_than_jobs(submit: Callable[..., str]) -> None:
    submit()
    for _ in range(3):
        ring()
    assert broker.waiting() == 1


def test_a_lost_workers_job_is_queued_again(submit: Callable[..., str]) -> None:
    id = submit()
    lose_worker(id)
    reap()
    assert (row(id).status, row(id).worker) == ("queued", None)
    assert events(id)[-1].level == "warn"


def test_a_job_that_keeps_losing_its_worker_fails(submit: Callable[..., str]) -> None:
    id = submit()
    lose_worker(id, strikes=3)
    reap()
    job = row(id)
    assert job.error is not None
    assert (job.status, job.error["code"]) == ("failed", "worker_lost")


def test_a_lost_job_that_was_to_be_cancelled_is(submit: Callable[..., str]) -> None:
    id = submit()
    lose_worker(id, desired="cancel")
    reap()
    assert row(id).status == "cancelled"


def test_a_living_lease_is_left_alone(submit: Callable[..., str]) -> None:
    id = submit()
    lose_worker(id)
    with transaction("troll_worker") as session:
        session.execute(text("UPDATE fine_tuning_jobs SET lease_expires_at = now() + interval '1 minute'"))
    reap()
    assert row(id).status == "running"


def test_a_job_created_while_redis_is_away_is_not_lost(
    submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kombu.exceptions import OperationalError

    class Away:
        def send_task(self, *args: object, **options: object) -> None:
            raise OperationalError("Redis is away")

    with monkeypatch.context() as patch:
        patch.setattr(broker, "_sender", Away)
        id = submit()
    assert row(id).status == "queued"
    ring()
    assert broker.waiting() == 1


def test_a_sweep_shows_that_a_control_worker_is_there(database: object) -> None:
    assert not ask.alive()
    sweep()
    assert ask.alive()
