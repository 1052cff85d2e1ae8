"""Training workers by name: what they have, and whether they take jobs."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from kombu.exceptions import OperationalError as BrokerError

from service.core.db import transaction
from service.jobs.states import Status
from service.scheduling import repository as scheduling
from tests.conftest import Key
from tests.workers.conftest import events, row
from workers.jobs import supervisor
from workers.jobs.registration import OUTAGES, Registration, engines

pytestmark = pytest.mark.usefixtures("stub")


def drain(name: str, *, draining: bool) -> None:
    with transaction("troll_operator") as session:
        assert scheduling.set_draining(session, name, draining=draining)


def test_a_worker_says_what_it_has() -> None:
    assert Registration("w1", lambda taking: None).beat(known=False)
    with transaction("troll_control") as session:
        [worker] = scheduling.workers(session)
    assert (worker.name, worker.gpus, worker.engines) == ("w1", 1, engines())


def test_it_hears_once_that_it_is_drained_and_once_that_it_is_not() -> None:
    heard: list[bool] = []
    registration = Registration("w1", heard.append)
    known = registration.beat(known=False)
    for draining in (True, True, False, False):
        drain("w1", draining=draining)
        known = registration.beat(known=known)
    assert heard == [False, True]


def test_what_could_not_be_passed_on_is_passed_on_later() -> None:
    heard: list[bool] = []

    def listen(taking: bool) -> None:
        heard.append(taking)
        if len(heard) == 1:
            raise BrokerError("Redis is away")

    registration = Registration("w1", listen)
    registration.beat(known=False)
    drain("w1", draining=True)
    with pytest.raises(OUTAGES):
        registration.beat(known=True)
    registration.beat(known=True)
    registration.beat(known=True)
    assert heard == [False, False]


def test_a_restart_does_not_end_a_drain() -> None:
    Registration("w1", lambda taking: None).beat(known=False)
    drain("w1", draining=True)
    heard: list[bool] = []
    Registration("w1", heard.append).beat(known=False)
    assert heard == [False]


def test_one_that_was_forgotten_registers_anew() -> None:
    registration = Registration("w1", lambda taking: None)
    assert not registration.beat(known=True)
    assert registration.beat(known=False)


def test_a_drained_worker_takes_no_job(submit: Any, client: TestClient) -> None:
    id = submit()
    Registration("w1", lambda taking: None).beat(known=False)
    drain("w1", draining=True)
    supervisor.run("w1")
    assert row(id).status == Status.QUEUED
    drain("w1", draining=False)
    supervisor.run("w1")
    assert row(id).status == Status.SUCCEEDED


def test_what_an_attempt_used_is_counted_when_it_ends(submit: Any) -> None:
    id = submit()
    supervisor.run("w1")
    job = row(id)
    assert job.status == Status.SUCCEEDED
    assert job.gpu_seconds > 0


def test_a_job_whose_budget_is_used_up_is_queued_again_with_its_checkpoint(
    submit: Any, faster: Any, api_key: Key
) -> None:
    faster(heartbeat_seconds=0.05, stop_grace_seconds=30)
    with transaction("troll_operator") as session:
        assert scheduling.set_budget(session, "acme", 1e-9)
    id = submit("wait")
    supervisor.run("w1")
    job = row(id)
    assert (job.status, job.strikes) == (Status.QUEUED, 0)
    assert any("used up" in event.message for event in events(id))
    supervisor.run("w1")
    assert row(id).attempt == 1, "it waits for another month, or for more"
