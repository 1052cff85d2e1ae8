"""A key that ends while its request, or its stream, is under way."""

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from service.accounts import keys
from service.accounts.known import Asked
from service.accounts.service import identify
from service.audit import repository as audit
from service.core.db import tenant, transaction
from service.embedded.servers import Servers
from service.jobs import repository, stream
from tests import factories
from tests.conftest import Key

ClientFor = Callable[[Key | None], TestClient]


@pytest.mark.parametrize("how", ["revoked", "archived"])
def test_a_file_is_not_kept_whose_key_ended_while_it_was_stored(
    client_for: ClientFor, new_key: Callable[..., Key], servers: Servers, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    from service.files import service as files

    key = new_key(project="second")
    admin, client, store = client_for(new_key(admin=True)), client_for(key), files.store

    def ending(*given: Any) -> Any:
        project = f"/v1/organization/projects/{key.project_id}"
        if how == "revoked":
            answer = admin.delete(f"{project}/api_keys/{key.id}")
        else:
            answer = admin.post(f"{project}/archive")
        assert answer.status_code == 200, answer.text
        return store(*given)

    monkeypatch.setattr(files, "store", ending)
    rows = factories.jsonl(factories.rows(4))
    answer = client.post("/v1/files", files={"file": ("r.jsonl", rows)}, data={"purpose": "fine-tune"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    with psycopg.connect(servers.database_owner_url) as owner:
        assert owner.execute("SELECT count(*) FROM files").fetchone() == (0,)


def test_a_stream_ends_with_the_role_that_allowed_it(
    client_for: ClientFor, new_key: Callable[..., Key], models_dir: Any
) -> None:
    key, admin = new_key(), client_for(new_key(admin=True))
    job = factories.create_job(client_for(key), factories.offer_model(models_dir))["id"]
    user = admin.post("/v1/organization/users", json={"email": "a@x.example", "name": "a", "role": "owner"}).json()[
        "id"
    ]
    path = f"/v1/organization/projects/{key.project_id}/api_keys"
    plain = admin.post(path, json={"name": "k", "user_id": user}).json()["value"]
    asked = Asked("GET events", frozenset({"read"}))
    with transaction("troll_api") as session:
        principal = identify(session, keys.hashed(plain), asked)
    assert stream._stored(principal, job, 0)[2]
    assert admin.post(f"/v1/organization/users/{user}", json={"role": "reader"}).status_code == 200
    assert stream._stored(principal, job, 0) == ([], False, False)


def test_a_project_is_archived_while_its_jobs_are_being_changed(
    client_for: ClientFor, new_key: Callable[..., Key], models_dir: Any
) -> None:
    key, admin = new_key(project="second"), client_for(new_key(admin=True))
    job = factories.create_job(client_for(key), factories.offer_model(models_dir))["id"]
    holds, waits, faults = threading.Event(), threading.Event(), []

    def pause() -> None:
        try:
            with tenant(key) as session:
                locked = repository.locked(session, job)
                assert locked is not None
                holds.set()
                waits.wait(2)
                audit.record(session, "fine_tuning.job.paused", locked.id)
        except Exception as error:
            faults.append(error)

    other = threading.Thread(target=pause)
    other.start()
    assert holds.wait(30)
    answer = admin.post(f"/v1/organization/projects/{key.project_id}/archive")
    other.join()
    assert (answer.status_code, faults) == (200, [])


def test_whoever_follows_a_job_that_ends_with_its_project_is_told_of_the_key(
    client_for: ClientFor, new_key: Callable[..., Key], models_dir: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, admin = new_key(project="second"), client_for(new_key(admin=True))
    job = factories.create_job(client_for(key), factories.offer_model(models_dir))["id"]
    with transaction("troll_api") as session:
        principal = identify(session, keys.hashed(key.plain), Asked("GET events", frozenset({"read"})))
    get = repository.get

    def meanwhile(*given: Any) -> Any:
        answer = admin.post(f"/v1/organization/projects/{key.project_id}/archive")
        assert answer.status_code == 200, answer.text
        return get(*given)

    monkeypatch.setattr(repository, "get", meanwhile)
    _, ended, welcome = stream._stored(principal, job, 0)
    assert (ended, welcome) == (True, False)
