"""Every answer that is not a success has OpenAI's envelope, the framework's own included."""

from typing import Any

import pytest
from fastapi.testclient import TestClient


def envelope(answer: Any) -> dict[str, Any]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")
    return error


def test_unknown_url(client: TestClient) -> None:
    answer = client.get("/v1/nowhere")
    assert (answer.status_code, envelope(answer)["code"]) == (404, "unknown_url")


def test_wrong_method(client: TestClient) -> None:
    answer = client.put("/v1/files")
    assert (answer.status_code, envelope(answer)["code"]) == (405, "method_not_allowed")


def test_malformed_json(client: TestClient) -> None:
    answer = client.post("/v1/fine_tuning/jobs", content=b'{"model": ', headers={"content-type": "application/json"})
    assert (answer.status_code, envelope(answer)["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("body", [[], "text", None, 3])
def test_a_body_that_is_no_object(client: TestClient, body: object) -> None:
    answer = client.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 400
    envelope(answer)


def test_a_missing_field_is_named(client: TestClient) -> None:
    answer = client.post("/v1/fine_tuning/jobs", json={"training_file": "f"})
    assert (answer.status_code, envelope(answer)["param"]) == (400, "model")


def test_a_query_parameter_out_of_range_is_named(client: TestClient) -> None:
    answer = client.get("/v1/files", params={"limit": 0})
    assert (answer.status_code, envelope(answer)["param"]) == (400, "limit")


def test_a_deeply_nested_body_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/fine_tuning/jobs", content=b"[" * 200_000, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    envelope(answer)


def test_success_has_a_request_id_too(client: TestClient) -> None:
    assert client.get("/healthz").headers["x-request-id"].startswith("req_")


def test_ready_when_postgres_and_redis_answer(client: TestClient) -> None:
    assert client.get("/readyz").json() == {"status": "ready"}


def test_an_unexpected_error_hides_its_text(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.models import service as models

    def fail(session: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(models, "available", fail)
    answer = client.get("/v1/models")
    error = envelope(answer)
    assert answer.status_code == 500
    assert "secret" not in error["message"]
    assert answer.headers["x-request-id"] in error["message"]


@pytest.mark.parametrize("path", ["/v1/files/a%00b", "/v1/files?purpose=a%00b", "/v1/models/a%00b"])
def test_a_nul_in_the_url_is_the_callers_mistake(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 400
    envelope(answer)


def test_a_nul_in_a_body_is_the_callers_mistake(client: TestClient) -> None:
    body = {"name": "a\0b", "url": "https://example.com/", "event_types": ["fine_tuning.job.failed"]}
    answer = client.post("/v1/webhook_endpoints", json=body)
    assert answer.status_code == 400
    envelope(answer)


def test_half_a_surrogate_pair_in_a_body_is_the_callers_mistake(client: TestClient) -> None:
    body = b'{"name": "a\\ud800b", "url": "https://example.com/", "event_types": ["fine_tuning.job.failed"]}'
    answer = client.post("/v1/webhook_endpoints", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    envelope(answer)


def test_half_a_surrogate_pair_in_a_grader_is_the_callers_mistake(client: TestClient) -> None:
    body = b'{"grader": {"type": "string_check", "name": "\\ud800", "operation": "eq", "input": "a", "reference": "a"}}'
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/fine_tuning/alpha/graders/validate", content=body, headers=headers)
    assert answer.status_code == 400
    envelope(answer)
