"""Machines whose clocks disagree."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from celery import Celery
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.accounts import repository as accounts
from service.accounts.service import create_key
from service.core import ask, broker, db, live, stream_slots
from service.core.broker import CONTROL_QUEUE
from service.core.db import transaction
from service.core.ids import new_id
from service.settings import settings
from tests import factories
from tests.workers.conftest import row

if TYPE_CHECKING:
    # It reads the settings, which are the servers' of a fixture.
    from workers.beat import Scheduler

PATIENCE = 60.0
SWEEP = "workers.control.sweep"
TOOL = Path(__file__).with_name("shifted_clock.py")


@pytest.fixture
def app(database: object) -> Celery:
    from workers.beat import app

    return app


@pytest.fixture
def scheduler(app: Celery) -> "Scheduler":
    """Beat's, with the schedule of the service."""
    from workers.beat import Scheduler

    made = Scheduler(app=app, lazy=True)
    made.setup_schedule()
    return made


@contextmanager
def control_worker(ahead: float, log: Path) -> Iterator[None]:
    """A control worker as an operator starts it, whose clock is so many seconds ahead."""
    celery = ["-A", "workers.app", "worker", "-Q", CONTROL_QUEUE, "-n", "control@shifted", "-c", "2"]
    command = [sys.executable, str(TOOL), str(ahead), *celery, "--pool", "threads", "--without-gossip", "-l", "INFO"]
    login = {"DATABASE_URL": db.login_url("troll_control")}
    environment = {**os.environ, **login, "PYTHONPATH": str(Path(__file__).parents[2])}
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        try:
            yield
        finally:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.send_signal(signal.SIGKILL)


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("ahead", [600.0, -600.0])
def test_a_control_worker_whose_clock_is_wrong_does_its_work_and_says_so(
    client: TestClient, app: Celery, models_dir: Path, tmp_path: Path, ahead: float
) -> None:
    id = factories.create_job(client, factories.offer_model(models_dir))["id"]
    with transaction("troll_worker") as session:
        session.execute(
            text(
                "UPDATE fine_tuning_jobs SET status = 'running', attempt = 1, strikes = 1, worker = 'gone', "
                "lease_expires_at = now() - interval '1 second'"
            )
        )
    log = tmp_path / "log"
    # As beat does, which runs on a machine whose clock is right.
    app.send_task(SWEEP, queue=CONTROL_QUEUE, **app.conf.beat_schedule["sweep"].get("options", {}))
    with control_worker(ahead, log):
        wait_for(lambda: row(id).status == "queued", log)
        question = {"grader": {**factories.GRADER}, "model_sample": "21", "item": {"answer": "21"}}
        graded = client.post("/v1/fine_tuning/alpha/graders/run", json=question)
    assert graded.status_code == 200, log.read_text()
    assert graded.json()["reward"] == 1.0
    said = log.read_text()
    assert f"clock is 600 seconds {'ahead of' if ahead > 0 else 'behind'} the database's" in said
    assert "revoked" not in said


def test_a_clock_that_is_right_is_no_news(database: object, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with control_worker(0.0, log):
        wait_for(ask.alive, log)
    assert "clock" not in log.read_text()


def test_no_message_has_an_expiry(scheduler: "Scheduler") -> None:
    for entry in scheduler.schedule.values():
        scheduler.apply_entry(entry, producer=scheduler.producer)
    broker.ring_webhooks()
    broker.ask(broker.RUN_GRADER, new_id("ask_"), {})
    messages: list[Any] = live.client().lrange(f"{broker.KEY_PREFIX}{CONTROL_QUEUE}", 0, -1)
    messages = [message.decode() for message in messages]
    # Celery's own schedule has one entry more.
    assert len(messages) >= 5
    assert {message for message in messages if '"expires": null' not in message} == set()


def test_beat_does_not_pile_up_messages_while_no_control_worker_is_there(scheduler: "Scheduler") -> None:
    from workers.beat import MOST_WAITING

    for _ in range(MOST_WAITING):
        for entry in scheduler.schedule.values():
            scheduler.apply_entry(entry, producer=scheduler.producer)
    assert broker.waiting(CONTROL_QUEUE) == MOST_WAITING


def test_each_tick_of_beat_is_a_sign_of_life(
    scheduler: "Scheduler", tmp_path: Path, faster: Callable[..., None]
) -> None:
    faster(pulse_file=tmp_path / "pulse")
    scheduler.tick()
    assert (tmp_path / "pulse").exists()


def test_a_question_that_nobody_waits_for_is_not_worked_on(database: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers import tasks
    from workers.control import trial

    answered: list[str] = []
    monkeypatch.setattr(trial, "answer", lambda id, question: answered.append(id))
    monkeypatch.setattr(ask, "ACCEPT_SECONDS", 0.05)
    ask._send(broker.RUN_GRADER, "ask_1", {})
    assert ask.is_wanted("ask_1")
    time.sleep(0.2)
    tasks.run_grader("ask_1", {})
    assert answered == []
    monkeypatch.setattr(ask, "ACCEPT_SECONDS", 60.0)
    ask._send(broker.RUN_GRADER, "ask_2", {})
    tasks.run_grader("ask_2", {})
    assert answered == ["ask_2"]


def test_stream_slots_are_counted_by_redis_clock_alone(database: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROLL_MAX_STREAMS_PER_KEY", "2")
    settings.cache_clear()
    now = time.time()
    try:
        for shift in (-600, 600):
            monkeypatch.setattr(time, "time", lambda shift=shift: now + shift)
            stream_slots.acquire("key_1", 2)
        with pytest.raises(Exception, match="already has 2 streams"):
            stream_slots.acquire("key_1", 2)
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_keys_expire_by_the_databases_clock(database: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with transaction("troll_operator") as session:
        create_key(session, organization="acme", name="short", expires_in=timedelta(hours=1))
    with transaction("troll_operator") as session:
        left = session.scalar(text("SELECT expires_at - now() FROM api_keys"))
        assert len(accounts.keys(session)) == 1
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
