"""Every object parses in strict clients, in each state it can have."""

from typing import Any

import openai
import psycopg
import pytest

from service.core.db import transaction
from service.embedded.servers import Servers
from service.jobs import repository
from service.jobs import service as jobs
from service.jobs.models import Checkpoint
from service.jobs.repository import EventDraft
from tests.contract.conftest import Official

TYPED = ("validating_files", "queued", "running", "succeeded", "failed", "cancelled")


@pytest.fixture
def job(acme: openai.OpenAI, body: dict[str, Any]) -> str:
    return acme.fine_tuning.jobs.create(**body).id


def rewrite(database: Servers, job: str, changes: str) -> None:
    """Bring a job's row to a state that would take a worker."""
    with psycopg.connect(database.database_owner_url, autocommit=True) as connection:
        connection.execute(f"UPDATE fine_tuning_jobs SET {changes} WHERE id = %s", [job])


@pytest.mark.parametrize("status", TYPED)
def test_a_job_of_each_status(official: Official, job: str, database: Servers, status: str) -> None:
    lease = ", lease_expires_at = now() + interval '1 hour'" if status == "running" else ""
    rewrite(database, job, f"status = '{status}'{lease}")
    parsed = official.ask(official.client.fine_tuning.jobs.retrieve(job))
    assert (parsed.status, parsed.error, parsed.finished_at) == (status, None, None)
    assert parsed.hyperparameters.batch_size == 8


def test_a_failed_job_has_an_error(official: Official, job: str, database: Servers) -> None:
    error = """'{"code": "non_finite_loss", "message": "The loss is not finite.", "param": null}'"""
    rewrite(database, job, f"status = 'failed', finished_at = now(), error = {error}")
    parsed = official.ask(official.client.fine_tuning.jobs.retrieve(job))
    assert (parsed.error.code, parsed.error.param) == ("non_finite_loss", None)


def test_message_and_metrics_events(official: Official, job: str) -> None:
    data = {"step": 1, "train_mean_reward": 0.5, "troll": {"kl_after": 0.04}}
    with transaction("troll_worker") as session:
        row = repository.locked(session, job)
        assert row is not None
        jobs.tell(session, row, [EventDraft("Step 1/2", type="metrics", data=data, level="warn")])
    metrics, *messages = official.ask(official.client.fine_tuning.jobs.list_events(job)).data
    assert (metrics.type, metrics.level, metrics.data) == ("metrics", "warn", data)
    assert {event.type for event in messages} == {"message"}


def test_a_checkpoint_carries_rewards(official: Official, job: str) -> None:
    with transaction("troll_worker") as session:
        row = repository.get(session, job)
        assert row is not None
        checkpoint = Checkpoint(
            id="ftckpt_1",
            job_id=job,
            organization_id=row.organization_id,
            step=4,
            attempt=1,
            path="attempt-1/checkpoints/step-000004",
            model="ft:tiny/base:acme::12345678:ckpt-step-4",
            metrics={"valid_reward_mean": 0.75},
        )
        repository.record_checkpoint(session, checkpoint)
    (parsed,) = official.everything(official.client.fine_tuning.jobs.checkpoints.list(job))
    assert (parsed.step_number, parsed.metrics.step, parsed.metrics.train_loss) == (4, 4, None)
    assert parsed.metrics.valid_reward_mean == 0.75


def test_models(official: Official, model: str) -> None:
    models = {each.id: each for each in official.everything(official.client.models.list())}
    assert models[model].owned_by == "system"
    assert official.ask(official.client.models.retrieve(model)).id == model
