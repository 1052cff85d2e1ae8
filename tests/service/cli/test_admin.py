"""Organisations, projects, users and admin keys as operators make and end them."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

from service.core.db import transaction
from service.jobs import repository as jobs
from tests import factories
from tests.conftest import Key
from tests.workers.conftest import row
from workers.control import prune
from workers.control.sweep import sweep


def done(result: Any) -> str:
    assert result.exit_code == 0, result.output
    return str(result.stdout).strip()


def test_an_admin_key_administers_its_organisation(troll: Any, base_url: str) -> None:
    made = json.loads(done(troll("admin", "keys", "create", "--organization", "acme", "--json")))
    assert made["key"].startswith("sk-troll-admin-")
    client = openai.OpenAI(base_url=base_url, api_key="none", admin_api_key=made["key"])
    assert [each.name for each in client.admin.organization.projects.list()] == ["Default project"]


def test_projects_are_made_listed_and_archived(
    troll: Any, base_url: str, new_key: Callable[..., Key], api_key: Key
) -> None:
    id = done(troll("admin", "projects", "create", "--organization", "acme", "vision"))
    key = new_key(project=id)
    assert openai.OpenAI(base_url=base_url, api_key=key.plain).models.list() is not None
    done(troll("admin", "projects", "archive", id))
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=base_url, api_key=key.plain).models.list()
    shown = json.loads(done(troll("admin", "projects", "list", "--organization", "acme", "--json")))
    assert {each["name"]: each["status"] for each in shown} == {"Default project": "active", "vision": "archived"}


def test_the_default_project_is_not_archived(troll: Any, api_key: Key) -> None:
    result = troll("admin", "projects", "archive", api_key.project_id)
    assert result.exit_code == 1
    assert "troll admin delete" in result.stderr


def test_a_users_key_ends_with_the_user(troll: Any, base_url: str, api_key: Key) -> None:
    options = ("--organization", "acme", "ada@example.com")
    done(troll("admin", "users", "add", *options, "--project", f"{api_key.project_id}:reader"))
    made = json.loads(done(troll("keys", "create", "--organization", "acme", "--user", "ADA@example.com", "--json")))
    client = openai.OpenAI(base_url=base_url, api_key=made["key"])
    assert client.models.list() is not None
    with pytest.raises(openai.PermissionDeniedError, match="its owner is reader"):
        client.files.create(file=factories.jsonl(factories.rows(4)), purpose="fine-tune")
    assert json.loads(done(troll("admin", "users", "list", "--organization", "acme", "--json")))[0]["role"] == "reader"
    done(troll("admin", "users", "remove", *options))
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert json.loads(done(troll("admin", "users", "list", "--organization", "acme", "--json"))) == []
    done(troll("admin", "users", "add", *options))


@pytest.mark.parametrize("role", ["king", ""])
def test_a_role_that_is_none_adds_nobody(troll: Any, api_key: Key, role: str) -> None:
    options = ("--organization", "acme", "ada@example.com", "--project", f"{api_key.project_id}:{role}")
    assert troll("admin", "users", "add", *options).exit_code == 1
    assert json.loads(done(troll("admin", "users", "list", "--organization", "acme", "--json"))) == []


def test_a_user_joins_projects_of_the_own_organisation_only(troll: Any, new_key: Callable[..., Key]) -> None:
    new_key()
    foreign = new_key(organization="globex").project_id
    options = ("--organization", "acme", "ada@example.com", "--project", f"{foreign}:member")
    assert troll("admin", "users", "add", *options).exit_code == 1


def test_an_organisation_is_deleted_with_all_it_has(
    troll: Any, base_url: str, new_key: Callable[..., Key], models_dir: Path, data_dir: Path, client: Any, api_key: Key
) -> None:
    second, other = new_key(project="second"), new_key(organization="globex")
    model = factories.offer_model(models_dir)
    both = [factories.create_job(client, model)["id"] for _ in range(2)]
    with transaction("troll_worker") as session:
        claimed = jobs.claim(session, worker="w", lease=timedelta(minutes=5), max_running=8)
    assert claimed is not None
    (left,) = {*both} - {claimed.id}
    done(troll("admin", "delete", "acme", "--yes"))
    for key in (api_key, second):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=base_url, api_key=key.plain).models.list()
    assert openai.OpenAI(base_url=base_url, api_key=other.plain).models.list() is not None
    sweep()
    assert (row(left).status, row(claimed.id).status, row(claimed.id).desired) == ("cancelled", "running", "cancel")
    assert [each["name"] for each in json.loads(done(troll("admin", "organizations", "--json")))] == ["globex"]
    files = [row(left).training_file, row(left).validation_file]
    assert all((data_dir / "files" / str(id)).exists() for id in files)
    prune.prune()
    assert not any((data_dir / "files" / str(id)).exists() for id in files)
    with transaction("troll_control") as session:
        assert jobs.kept(session, [left, claimed.id]) == {claimed.id}


def test_the_name_of_a_deleted_organisation_is_free_again(
    troll: Any, api_key: Key, new_key: Callable[..., Key]
) -> None:
    done(troll("admin", "delete", "acme", "--yes"))
    assert new_key().organization_id != api_key.organization_id
    assert troll("admin", "delete", "acme").exit_code == 1, "it asks, and nobody answers"
