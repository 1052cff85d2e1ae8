"""What a job is said to cost before it runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from service.embedded.servers import Servers
from tests import factories
from tests.conftest import Key

Done = Callable[..., None]


@pytest.fixture
def model(models_dir: Path) -> str:
    return factories.offer_model(models_dir)


@pytest.fixture
def done(client: TestClient, model: str, database: Servers) -> Done:
    """``done(32.0, n_steps=2)``: a job of ``acme`` that has succeeded, and what it cost; ``step`` is where it ended."""

    def make(
        gpu_seconds: float,
        by: TestClient = client,
        status: str = "succeeded",
        step: int | None = None,
        **hyperparameters: Any,
    ) -> None:
        job = factories.create_job(by, model, **hyperparameters)
        with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
            changed = "UPDATE fine_tuning_jobs SET status = %s, gpu_seconds = %s, step = %s WHERE id = %s"
            owner.execute(changed, [status, gpu_seconds, step or job["progress"]["total_steps"], job["id"]])

    return make


def estimated(client: TestClient, model: str, **hyperparameters: Any) -> float | None:
    progress = factories.create_job(client, model, **hyperparameters)["progress"]
    assert progress["gpu_seconds"] == 0
    found: float | None = progress["estimated_gpu_seconds"]
    return found


SMALL = {"batch_size": 2, "group_size": 4, "n_steps": 2}
"""Sixteen samples."""


def test_nothing_is_said_where_nothing_is_known(client: TestClient, model: str) -> None:
    assert estimated(client, model) is None


def test_a_sample_costs_what_it_did(client: TestClient, model: str, done: Done) -> None:
    done(32.0, **SMALL)
    assert estimated(client, model, **SMALL) == 32
    assert estimated(client, model, batch_size=4, group_size=8, n_steps=3) == 2 * 96


def test_of_a_job_that_stopped_early_the_samples_count_that_it_took(client: TestClient, model: str, done: Done) -> None:
    done(32.0, step=2, **SMALL | {"n_steps": 100})
    assert estimated(client, model, **SMALL) == 32


def test_the_median_counts(client: TestClient, model: str, done: Done) -> None:
    for cost in (16.0, 1600.0, 32.0):
        done(cost, **SMALL)
    assert estimated(client, model, **SMALL) == 32


@pytest.mark.parametrize(
    "unlike",
    [
        *({"lora_rank": 8}, {"max_completion_tokens": 7}, {"rollout_engine": "vllm"}),
        *({"advantage": "gae"}, {"kl_coefficient": 0.1}, {"filter_groups": True}),
    ],
)
def test_jobs_unlike_it_say_nothing(client: TestClient, model: str, done: Done, unlike: dict[str, Any]) -> None:
    done(32.0, **SMALL)
    assert estimated(client, model, **SMALL, **unlike) is None


@pytest.mark.parametrize("status", ["failed", "cancelled", "paused"])
def test_jobs_that_did_not_succeed_say_nothing(client: TestClient, model: str, done: Done, status: str) -> None:
    done(32.0, status=status, **SMALL)
    assert estimated(client, model, **SMALL) is None


def test_a_supervised_job_is_another(client: TestClient, model: str, done: Done) -> None:
    done(32.0, **SMALL)
    answer = client.post("/v1/fine_tuning/jobs", json=factories.supervised_body(client, model))
    assert answer.json()["progress"]["estimated_gpu_seconds"] is None


def test_what_others_paid_is_not_told(
    client: TestClient, model: str, done: Done, client_for: Any, new_key: Callable[..., Key]
) -> None:
    done(32.0, by=client_for(new_key(organization="globex")), **SMALL)
    assert estimated(client, model, **SMALL) is None


def test_a_job_that_cannot_be_read_says_nothing(client: TestClient, model: str, done: Done, database: Servers) -> None:
    done(32.0, **SMALL)
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        owner.execute("""UPDATE fine_tuning_jobs SET spec = '{"version": 1000}'""")
    assert estimated(client, model, **SMALL) is None
