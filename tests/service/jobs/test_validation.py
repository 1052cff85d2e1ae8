"""Validation sets of a job over HTTP: what is taken, resolved, looked at and refused."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.core import storage
from tests import factories

SETS = "method.reinforcement.validation_sets"
OTHER = factories.GRADER | {"name": "other", "reference": "{{item.other}}"}


@pytest.fixture
def body(client: TestClient, models_dir: Path) -> dict[str, Any]:
    return factories.job_body(client, factories.offer_model(models_dir), eval_samples=4, max_completion_tokens=16)


def file(client: TestClient, **more: Any) -> str:
    return factories.upload(client, factories.jsonl([row | more for row in factories.rows(3, start=70)]))


def create(client: TestClient, body: dict[str, Any], *sets: dict[str, Any]) -> Any:
    body["method"]["reinforcement"]["validation_sets"] = list(sets)
    return client.post("/v1/fine_tuning/jobs", json=body)


def test_what_is_left_out_is_the_jobs_and_what_is_given_stays(client: TestClient, body: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"name": "a", "file": file(client)}
    full: dict[str, Any] = {"name": "b-1_c", "file": file(client, other="1")}
    full |= {"grader": OTHER, "samples_per_row": 32, "temperature": 0.6, "top_p": 0.95, "max_completion_tokens": 64}
    answer = create(client, body, plain | {"grader": None}, full)
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["method"]["reinforcement"]["validation_sets"]
    defaults = {"samples_per_row": 4, "temperature": 1.0, "top_p": 1.0, "max_completion_tokens": 16}
    assert first == plain | {"rows": 3, "grader": None} | defaults
    assert second == full | {"rows": 3}


def test_a_job_keeps_the_rows_of_its_sets_and_counts_them(client: TestClient, body: dict[str, Any]) -> None:
    id = file(client)
    job = create(client, body, {"name": "held-out", "file": id}).json()
    client.delete(f"/v1/files/{id}")
    assert len(storage.job_data(job["id"], "validation-0").read_bytes().splitlines()) == 3
    events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    assert any("3 rows of held-out" in event["message"] for event in events)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": "a.b"}, "[0].name"),
        ({"name": None}, "[0].name"),
        ({"top_p": 0}, "[0].top_p"),
        ({"samples_per_row": 257}, "[0].samples_per_row"),
        ({"repeats": 3}, "[0].repeats"),
        ({"file": "file-unknown"}, "[0].file"),
        ({"grader": factories.GRADER | {"operation": "same"}}, "[0].grader.operation"),
        ({"grader": OTHER}, "[0].file"),
    ],
)
def test_what_is_wrong_with_a_set_is_told_by_its_field(
    client: TestClient, body: dict[str, Any], change: dict[str, Any], param: str
) -> None:
    answer = create(client, body, {"name": "a", "file": file(client)} | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, SETS + param), answer.text
    assert client.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_two_sets_of_one_name_are_refused(client: TestClient, body: dict[str, Any]) -> None:
    same = {"name": "a", "file": file(client)}
    assert create(client, body, same, same).json()["error"]["param"] == f"{SETS}[1].name"


@pytest.mark.parametrize("sets", [{}, [], "a", [1], [{"name": "a", "file": "file-1"}] * 17])
def test_a_list_of_another_shape_is_refused(client: TestClient, body: dict[str, Any], sets: Any) -> None:
    body["method"]["reinforcement"]["validation_sets"] = sets
    answer = client.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(SETS)


def test_a_set_with_rows_that_are_trained_on_is_warned_of(client: TestClient, body: dict[str, Any]) -> None:
    job = create(client, body, {"name": "seen", "file": body["training_file"]}).json()
    events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    (warning,) = (event for event in events if "measures memory" in event["message"])
    assert f"{SETS}[0].file" in warning["message"]


def test_vllm_is_not_asked_for_a_temperature_that_it_would_change(client: TestClient, body: dict[str, Any]) -> None:
    body["method"]["reinforcement"]["hyperparameters"]["rollout_engine"] = "vllm"
    answer = create(client, body, {"name": "a", "file": file(client), "temperature": 0.001})
    assert answer.json()["error"]["param"] == f"{SETS}[0].temperature"
