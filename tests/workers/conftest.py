"""Jobs for the supervisor, run by the stub of a training child unless a test wants the real one."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.core.db import transaction
from service.jobs import repository
from service.jobs.models import Job
from service.settings import settings
from tests import factories
from workers.jobs import child, supervisor


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, database: Any) -> None:
    """Training children are stubs; what the supervisor leaves behind is cleaned up."""
    use_stub(monkeypatch)


def use_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "COMMAND", [sys.executable, str(Path(__file__).with_name("stub_training.py"))])
    monkeypatch.setattr(supervisor.warm_children, "warm_up", lambda: None)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    supervisor.shutting_down.clear()


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``faster(lease_seconds=1, …)`` changes settings for this test."""

    def change(**values: float) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"TROLL_{name.upper()}", str(value))
        settings.cache_clear()

    yield change
    monkeypatch.undo()
    settings.cache_clear()


@pytest.fixture
def submit(client: TestClient, models_dir: Path) -> Callable[..., str]:
    """``submit("crash-once")`` queues a job whose stub follows that plan. Returns the job's id."""
    model = factories.offer_model(models_dir)

    def make(
        plan: str = "succeed", by: TestClient = client, *, supervised: bool = False, evaluation: bool = False
    ) -> str:
        body = factories.supervised_body(by, model) if supervised else factories.job_body(by, model)
        body = factories.evaluation_body(by, model, batch_size=2) if evaluation else body
        body |= {"suffix": plan}
        answer = by.post("/v1/fine_tuning/jobs", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    return make


def row(job_id: str) -> Job:
    """The job as PostgreSQL has it."""
    with transaction("troll_worker") as session:
        job = repository.get(session, job_id)
        assert job is not None
        return job


def events(job_id: str) -> list[Any]:
    """Every event of a job, oldest first."""
    with transaction("troll_worker") as session:
        return list(repository.events_after(session, job_id, 0, 10_000))
