"""Evaluations over HTTP: what they need, what is resolved, and what they have no use for."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests import factories

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def body(client: TestClient, models_dir: Path) -> dict[str, Any]:
    return factories.evaluation_body(client, factories.offer_model(models_dir), batch_size=3, eval_temperature=0.0)


def test_an_evaluation_is_queued_and_shown_as_it_is_run(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post(JOBS, json=body).json()
    assert (job["status"], job["training_file"], job["validation_file"]) == ("queued", "", None)
    parts = job["method"]["evaluation"]
    assert [(each["name"], each["rows"], each["temperature"]) for each in parts["validation_sets"]] == [
        ("a", 4, 0.0),
        ("b", 3, 0.0),
    ]
    assert job["progress"]["total_steps"] == 2 + 1
    assert job["hyperparameters"] == {"batch_size": 3, "learning_rate_multiplier": None, "n_epochs": None}
    assert client.get(f"{JOBS}/{job['id']}").json() == job
    events = client.get(f"{JOBS}/{job['id']}/events").json()["data"]
    assert any("Files validated: 4 rows of a, 3 rows of b" in event["message"] for event in events)


def test_an_evaluation_waits_its_turn_and_is_paused_resumed_and_cancelled_like_any_job(
    client: TestClient, body: dict[str, Any]
) -> None:
    id = client.post(JOBS, json=body).json()["id"]
    states = [client.post(f"{JOBS}/{id}/{verb}").json()["status"] for verb in ("pause", "resume", "cancel")]
    assert states == ["paused", "queued", "cancelled"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"training_file": "file-1"}, "training_file"),
        ({"validation_file": "file-1"}, "validation_file"),
        ({"method": {"type": "evaluation"}}, "method.evaluation"),
        ({"method": {"type": "evaluation", "evaluation": {}}}, "method.evaluation.validation_sets"),
    ],
)
def test_what_an_evaluation_lacks_or_cannot_use_is_told(
    client: TestClient, body: dict[str, Any], change: dict[str, Any], param: str
) -> None:
    answer = client.post(JOBS, json=body | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_every_set_is_graded_by_somebody(client: TestClient, body: dict[str, Any]) -> None:
    parts = body["method"]["evaluation"]
    grader = parts.pop("grader")
    parts["validation_sets"][0]["grader"] = grader
    assert client.post(JOBS, json=body).json()["error"]["param"] == "method.evaluation.grader"
    parts["validation_sets"][1]["grader"] = grader
    assert client.post(JOBS, json=body).status_code == 200


def test_a_job_that_trains_still_needs_its_file(client: TestClient, models_dir: Path) -> None:
    body = factories.job_body(client, factories.offer_model(models_dir))
    del body["training_file"]
    answer = client.post(JOBS, json=body).json()
    assert answer["error"]["param"] == "training_file"
