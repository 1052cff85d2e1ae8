"""API keys: their form, and what a wrong one gets."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, event, select, update

from service.accounts import keys
from service.accounts.models import APIKey
from service.accounts.service import revoke_key
from service.app import create_app
from service.core.db import WholeOrganization, engine, tenant, transaction
from service.usage import service as usage
from tests.conftest import Key


def test_a_generated_key_is_well_formed() -> None:
    assert keys.is_well_formed(keys.generate())


def test_a_mistyped_key_is_not_well_formed() -> None:
    key = keys.generate()
    at = len(keys.PREFIX) + 5
    wrong = key[:at] + ("a" if key[at] != "a" else "b") + key[at + 1 :]
    assert not keys.is_well_formed(wrong)


@pytest.mark.parametrize("key", ["", "sk-troll-", "sk-troll-" + "é" * 46, "sk-" + "a" * 51])
def test_other_texts_are_not_well_formed(key: str) -> None:
    assert not keys.is_well_formed(key)


def test_the_plain_key_is_not_stored(api_key: Key) -> None:
    with transaction("troll_operator") as session:
        from sqlalchemy import text

        rows = str(session.execute(text("SELECT * FROM api_keys")).all())
    assert api_key.plain not in rows
    assert keys.hashed(api_key.plain) in rows


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer sk-troll-wrong"])
def test_a_wrong_key_is_a_401_in_the_envelope(client_for: Callable[[Key | None], TestClient], header: str) -> None:
    answer = client_for(None).get("/v1/models", headers={"Authorization": header} if header is not None else {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_an_unknown_but_well_formed_key_is_a_401(client_for: Callable[[Key | None], TestClient]) -> None:
    answer = client_for(None).get("/v1/models", headers={"Authorization": f"Bearer {keys.generate()}"})
    assert answer.status_code == 401


def test_a_revoked_key_is_a_401(client: TestClient, api_key: Key) -> None:
    assert client.get("/v1/models").status_code == 200
    with transaction("troll_operator") as session:
        revoke_key(session, api_key.id)
    assert client.get("/v1/models").status_code == 401


def test_an_expired_key_is_a_401(client_for: Callable[..., TestClient], new_key: Callable[..., Key]) -> None:
    expired = new_key(expires_in=timedelta(seconds=-1))
    assert client_for(expired).get("/v1/models").status_code == 401


def test_a_key_cannot_act_for_another_organisation(client: TestClient) -> None:
    assert client.get("/v1/models", headers={"OpenAI-Organization": "org-other"}).status_code == 401


@pytest.mark.parametrize(
    ("header", "variable"), [("OpenAI-Organization", "OPENAI_ORG_ID"), ("OpenAI-Project", "OPENAI_PROJECT_ID")]
)
def test_what_is_left_of_another_services_environment_is_named(client: TestClient, header: str, variable: str) -> None:
    answer = client.get("/v1/models", headers={header: "left-over"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (401, "authentication_error")
    assert f"'{header}: left-over'" in error["message"]
    assert f"unset {variable}" in error["message"]


def test_the_own_organization_may_be_named(client: TestClient, api_key: Key) -> None:
    assert client.get("/v1/models", headers={"OpenAI-Organization": api_key.organization_id}).status_code == 200


CHAT = {"model": "base", "messages": [{"role": "user", "content": "1+1="}]}
BODIES: dict[str, Any] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "base", "prompt": "1+1="},
    "/v1/responses": {"model": "base", "input": "1+1="},
    "/v1/uploads": {"purpose": "fine-tune", "filename": "a.jsonl", "bytes": 1, "mime_type": "text/jsonl"},
    "/v1/uploads/{upload_id}/complete": {"part_ids": ["part_1"]},
    "/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions": {"project_ids": ["proj_1"]},
    "/v1/webhook_endpoints": {"name": "a", "url": "https://example.com", "event_types": ["fine_tuning.job.succeeded"]},
}

QUERIES = {"/v1/fine_tuning/jobs/{fine_tuning_job_id}/metrics": {"names[]": "step"}}


def requests() -> list[tuple[str, str]]:
    served = create_app().openapi()["paths"]
    return [(method.upper(), path) for path, item in served.items() if path.startswith("/v1/") for method in item]


@pytest.mark.parametrize(("method", "path"), requests())
def test_no_route_serves_a_key_that_was_good_a_moment_ago(
    client: TestClient, api_key: Key, method: str, path: str
) -> None:
    assert client.get("/v1/models").status_code == 200
    with transaction("troll_operator") as session:
        revoke_key(session, api_key.id)
    where = re.sub(r"\{\w+\}", "some", path)
    body = BODIES.get(path, {}) if method == "POST" else None
    answer = client.request(method, where, json=body, params=QUERIES.get(path))
    assert answer.status_code == 401, answer.text


def test_a_poll_is_one_transaction(client: TestClient, api_key: Key) -> None:
    """But for the organisation's limits, which are asked for every ten seconds."""
    usage.remembered(api_key.organization_id)
    client.get("/v1/fine_tuning/jobs")
    committed: list[object] = []

    def note(connection: Connection) -> None:
        committed.append(connection)

    event.listen(engine("troll_api"), "commit", note)
    assert client.get("/v1/fine_tuning/jobs").status_code == 200
    event.remove(engine("troll_api"), "commit", note)
    assert len(committed) == 1


def test_the_last_use_of_a_key_is_written_down_once_a_minute(client: TestClient, api_key: Key) -> None:
    def last_used() -> datetime:
        with transaction("troll_operator") as session:
            used = session.scalars(select(APIKey.last_used_at).where(APIKey.id == api_key.id)).one()
        assert used is not None
        return used

    client.get("/v1/models")
    first = last_used()
    client.get("/v1/models")
    assert last_used() == first
    with tenant(WholeOrganization(api_key.organization_id)) as session:
        session.execute(update(APIKey).where(APIKey.id == api_key.id).values(last_used_at=first - timedelta(minutes=2)))
    client.get("/v1/models")
    assert last_used() > first
