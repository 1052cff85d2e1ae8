"""Keys as operators make, rotate and list them."""

import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

from service.core import clock
from service.core.db import transaction
from service.embedded.servers import Servers
from service.settings import settings
from tests.conftest import Key


def listed(troll: Any) -> dict[str, dict[str, Any]]:
    return {key["id"]: key for key in json.loads(troll("keys", "list", "--json").stdout)}


def made(troll: Any, *options: str, organization: str = "acme") -> dict[str, Any]:
    result = troll("keys", "create", "--organization", organization, "--json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_without_a_project_a_key_is_the_default_ones(troll: Any, api_key: Key) -> None:
    assert made(troll)["project_id"] == api_key.project_id


def test_a_project_is_made_once(troll: Any, api_key: Key) -> None:
    first, second = made(troll, "--project", "vision"), made(troll, "--project", "vision")
    assert first["project_id"] == second["project_id"] != api_key.project_id
    assert made(troll, "--project", first["project_id"])["project_id"] == first["project_id"]
    assert listed(troll)[first["id"]]["project"] == "vision"


def test_another_organisations_project_is_not_found_by_its_id(troll: Any, new_key: Callable[..., Key]) -> None:
    foreign = new_key(organization="globex", project="vision")
    result = troll("keys", "create", "--organization", "acme", "--project", foreign.project_id)
    assert result.exit_code == 1
    assert "no project" in result.stderr


def test_a_key_gets_the_scopes_that_are_named(troll: Any, base_url: str) -> None:
    key = made(troll, "--scope", "submit", "--scope", "read")
    assert listed(troll)[key["id"]]["scopes"] == ["read", "submit"]
    client = openai.OpenAI(base_url=base_url, api_key=key["key"])
    assert client.models.list() is not None
    with pytest.raises(openai.PermissionDeniedError):
        client.files.delete("file-1")


def test_an_unknown_scope_is_refused_and_makes_nothing(troll: Any, database: object) -> None:
    before = listed(troll)
    result = troll("keys", "create", "--organization", "acme", "--scope", "write")
    assert result.exit_code == 1
    assert "read, submit, manage" in result.stderr
    assert listed(troll) == before


def test_an_unknown_user_is_refused(troll: Any, database: object) -> None:
    result = troll("keys", "create", "--organization", "acme", "--user", "ada@example.com")
    assert result.exit_code == 1
    assert "troll admin users add" in result.stderr


def test_a_rotated_key_works_beside_the_new_one_for_a_while(troll: Any, base_url: str) -> None:
    old = made(troll, "--project", "vision", "--scope", "read", "--name", "nightly")
    new = json.loads(troll("keys", "rotate", old["id"], "--overlap-hours", "2", "--json").stdout)
    for key in (old, new):
        assert openai.OpenAI(base_url=base_url, api_key=key["key"]).models.list() is not None
    rows = listed(troll)
    same = ("project", "scopes", "name", "organization")
    assert [rows[new["id"]][name] for name in same] == [rows[old["id"]][name] for name in same]
    with transaction("troll_operator") as session:
        left = datetime.fromisoformat(rows[old["id"]]["expires_at"]) - clock.now(session)
    assert timedelta(hours=1) < left <= timedelta(hours=2)
    assert rows[new["id"]]["expires_at"] is None


def test_what_a_key_may_do_is_changed(troll: Any, base_url: str, new_key: Callable[..., Key]) -> None:
    key = made(troll)
    client = openai.OpenAI(base_url=base_url, api_key=key["key"])
    assert troll("keys", "scopes", key["id"], "--scope", "read").stdout == f"{key['id']} may read.\n"
    client.files.list()
    with pytest.raises(openai.PermissionDeniedError):
        client.files.delete("file-x")
    assert troll("keys", "scopes", key["id"]).stdout == f"{key['id']} may read, submit, manage.\n"
    with pytest.raises(openai.NotFoundError):
        client.files.delete("file-x")
    assert troll("keys", "scopes", new_key(admin=True).id, "--scope", "read").exit_code == 1


def test_without_an_overlap_the_old_key_ends_at_once(troll: Any, base_url: str) -> None:
    old = made(troll)
    new = json.loads(troll("keys", "rotate", old["id"], "--overlap-hours", "0", "--json").stdout)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=base_url, api_key=old["key"]).models.list()
    assert openai.OpenAI(base_url=base_url, api_key=new["key"]).models.list() is not None


def test_a_rotation_does_not_lengthen_the_old_keys_life(troll: Any, new_key: Callable[..., Key]) -> None:
    key = new_key(expires_in=timedelta(minutes=10))
    before = listed(troll)[key.id]["expires_at"]
    assert troll("keys", "rotate", key.id).exit_code == 0
    assert listed(troll)[key.id]["expires_at"] == before


@pytest.mark.parametrize("how", ["unknown", "revoked", "expired"])
def test_a_key_that_is_over_is_not_rotated(troll: Any, new_key: Callable[..., Key], how: str) -> None:
    id = "key_unknown"
    if how == "revoked":
        id = new_key().id
        troll("keys", "revoke", id)
    if how == "expired":
        id = new_key(expires_in=timedelta(seconds=-1)).id
    result = troll("keys", "rotate", id)
    assert result.exit_code == 1
    assert "No such api key" in result.stderr


@pytest.fixture
def secrets_in_files(troll: Any, database: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "database_url").write_text(database.database_url("troll_operator"))
    (tmp_path / "troll_key_pepper").write_text(os.environ["TROLL_KEY_PEPPER"])
    monkeypatch.setenv("TROLL_SECRETS_DIR", str(tmp_path))
    for name in ("DATABASE_URL", "TROLL_KEY_PEPPER"):
        monkeypatch.delenv(name)
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


def test_the_database_may_be_given_as_a_file(secrets_in_files: None, troll: Any) -> None:
    assert listed(troll)
