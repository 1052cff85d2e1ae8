"""API keys: their form, and what a wrong one gets."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from service.accounts import keys
from service.accounts.service import revoke_key
from service.core.db import transaction
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
