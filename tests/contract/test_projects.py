"""Projects of one organisation keep apart, share models, and have keys that may do more or less."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from service.accounts import repository as accounts
from service.core import storage
from service.core.db import transaction
from service.jobs import repository as jobs
from service.settings import Settings
from service.usage import repository as usage
from tests import factories
from tests.conftest import Key
from tests.contract.conftest import Official
from tests.workers.conftest import row
from workers.control import prune
from workers.jobs import supervisor


@pytest.fixture
def second(new_key: Callable[..., Key]) -> Key:
    return new_key(project="second")


@pytest.fixture
def neighbour(connect: Callable[..., openai.OpenAI], second: Key) -> openai.OpenAI:
    """A strict client of another project of ``acme``."""
    return connect(second, strict=True)


@pytest.fixture
def tuned(stub: None, acme: openai.OpenAI, body: dict[str, Any]) -> str:
    """A tuned model of ``acme``'s default project."""
    id = acme.fine_tuning.jobs.create(**body).id
    supervisor.run("worker-1")
    model = acme.fine_tuning.jobs.retrieve(id).fine_tuned_model
    assert model is not None
    return model


def share(client: openai.OpenAI, model: str, *keys: Key) -> Any:
    return client.fine_tuning.checkpoints.permissions.create(model, project_ids=[key.project_id for key in keys])


def files_of(client: openai.OpenAI) -> dict[str, Any]:
    """Arguments of a valid job but for its model."""
    made = [client.files.create(file=factories.jsonl(factories.rows(4, n)), purpose="fine-tune").id for n in (10, 50)]
    return {"training_file": made[0], "validation_file": made[1], "method": factories.method()}


# Apart


def test_lists_hold_the_projects_own(neighbour: openai.OpenAI, tuned: str) -> None:
    assert list(neighbour.files.list()) == []
    assert list(neighbour.fine_tuning.jobs.list()) == []
    assert {model.owned_by for model in neighbour.models.list()} == {"system"}


def test_the_header_may_name_the_keys_own_project(connect: Callable[..., openai.OpenAI], second: Key) -> None:
    assert list(connect(second, project=second.project_id).files.list()) == []


def test_a_header_that_names_another_project_is_refused(
    connect: Callable[..., openai.OpenAI], second: Key, api_key: Key
) -> None:
    with pytest.raises(openai.AuthenticationError) as refusal:
        connect(api_key, project=second.project_id).files.list()
    assert refusal.value.code == "wrong_project"


def test_two_projects_may_use_the_same_idempotency_key(acme: openai.OpenAI, neighbour: openai.OpenAI) -> None:
    content = factories.jsonl(factories.rows(4))
    made = {
        client.files.create(file=content, purpose="fine-tune", extra_headers={"Idempotency-Key": "once"}).id
        for client in (acme, neighbour, acme, neighbour)
    }
    assert len(made) == 2


def test_jobs_of_all_projects_count_for_the_organisations_quota(
    stub: None,
    acme: openai.OpenAI,
    neighbour: openai.OpenAI,
    body: dict[str, Any],
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings().model_copy(update={"max_queued_jobs": 1})
    monkeypatch.setattr("service.usage.service.settings", lambda: settings)
    acme.fine_tuning.jobs.create(**body)
    with pytest.raises(openai.RateLimitError) as refusal:
        neighbour.fine_tuning.jobs.create(model=model, **files_of(neighbour))
    assert refusal.value.code == "job_quota_exceeded"


def test_the_end_of_a_job_is_announced_to_its_own_project(
    acme: openai.OpenAI, neighbour: openai.OpenAI, stub: None, body: dict[str, Any]
) -> None:
    from service.webhooks.models import WebhookDelivery

    hooks = [
        client.webhooks.create(name="h", url="https://localhost:9/", event_types=["fine_tuning.job.succeeded"]).id
        for client in (acme, neighbour)
    ]
    acme.fine_tuning.jobs.create(**body)
    supervisor.run("worker-1")
    with transaction("troll_control") as session:
        assert [each.endpoint_id for each in session.query(WebhookDelivery)] == hooks[:1]


def test_what_a_worker_makes_belongs_to_the_jobs_project(
    stub: None, acme: openai.OpenAI, neighbour: openai.OpenAI, model: str
) -> None:
    id = neighbour.fine_tuning.jobs.create(model=model, **files_of(neighbour)).id
    supervisor.run("worker-1")
    job = neighbour.fine_tuning.jobs.retrieve(id)
    assert neighbour.files.content(job.result_files[0]).read()
    assert [each.step_number for each in neighbour.fine_tuning.jobs.checkpoints.list(id)]
    assert neighbour.models.retrieve(job.fine_tuned_model or "").id == job.fine_tuned_model
    assert [each.type for each in neighbour.fine_tuning.jobs.list_events(id)]
    with pytest.raises(openai.NotFoundError):
        acme.files.content(job.result_files[0])


# Shared models


def test_permissions_as_the_client_gives_and_lists_them(official: Official, tuned: str, second: Key) -> None:
    permissions = official.client.fine_tuning.checkpoints.permissions
    given = official.everything(permissions.create(tuned, project_ids=[second.project_id]))
    assert [(each.object, each.project_id) for each in given] == [("checkpoint.permission", second.project_id)]
    again = official.everything(permissions.create(tuned, project_ids=[second.project_id, second.project_id]))
    assert [each.id for each in again] == [given[0].id]
    assert [each.id for each in official.everything(permissions.list(tuned))] == [given[0].id]
    assert official.everything(permissions.list(tuned, project_id="proj_other")) == []
    deleted = official.ask(permissions.delete(given[0].id, fine_tuned_model_checkpoint=tuned))
    assert (deleted.id, deleted.deleted) == (given[0].id, True)
    assert official.everything(permissions.list(tuned)) == []


def test_permissions_are_listed_page_by_page_in_both_orders(
    acme: openai.OpenAI, tuned: str, new_key: Callable[..., Key]
) -> None:
    projects = [new_key(project=f"p{n}") for n in range(3)]
    given = [share(acme, tuned, project).data[0].id for project in projects]
    permissions = acme.fine_tuning.checkpoints.permissions
    assert [each.id for each in permissions.list(tuned, limit=1, order="ascending")] == given
    assert [each.id for each in permissions.list(tuned, limit=2, order="descending")] == given[::-1]


@pytest.mark.parametrize("part", ["", ":ckpt-step-2"])
def test_a_shared_model_is_downloaded_and_trained_on_from(
    acme: openai.OpenAI, neighbour: openai.OpenAI, tuned: str, second: Key, part: str
) -> None:
    share(acme, tuned + part, second)
    assert neighbour.models.retrieve(tuned + part).id == tuned + part
    assert tuned + part in {model.id for model in neighbour.models.list()}
    assert neighbour.get(f"/models/{tuned + part}/files", cast_to=object)
    id = neighbour.fine_tuning.jobs.create(model=tuned + part, **files_of(neighbour)).id
    supervisor.run("worker-1")
    assert neighbour.fine_tuning.jobs.retrieve(id).status == "succeeded"
    other = ":ckpt-step-2" if not part else ""
    with pytest.raises(openai.NotFoundError):
        neighbour.models.retrieve(tuned + other)


def test_a_model_that_is_shared_no_more_is_not_found(
    acme: openai.OpenAI, neighbour: openai.OpenAI, tuned: str, second: Key
) -> None:
    permission = share(acme, tuned, second).data[0].id
    acme.fine_tuning.checkpoints.permissions.delete(permission, fine_tuned_model_checkpoint=tuned)
    with pytest.raises(openai.NotFoundError):
        neighbour.models.retrieve(tuned)


@pytest.mark.parametrize(
    "call",
    [
        lambda client, model, second: client.models.delete(model),
        lambda client, model, second: share(client, model, second),
        lambda client, model, second: client.fine_tuning.checkpoints.permissions.list(model),
        lambda client, model, second: client.fine_tuning.checkpoints.permissions.delete(
            "cp_1", fine_tuned_model_checkpoint=model
        ),
    ],
    ids=["delete", "share", "list", "unshare"],
)
def test_a_shared_model_is_not_the_other_projects_to_give_away(
    acme: openai.OpenAI, neighbour: openai.OpenAI, tuned: str, second: Key, call: Any
) -> None:
    share(acme, tuned, second)
    with pytest.raises(openai.PermissionDeniedError):
        call(neighbour, tuned, second)


def test_a_model_that_another_projects_job_trains_from_is_not_deleted(
    acme: openai.OpenAI, neighbour: openai.OpenAI, tuned: str, second: Key
) -> None:
    share(acme, tuned, second)
    id = neighbour.fine_tuning.jobs.create(model=tuned, **files_of(neighbour)).id
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.models.delete(tuned)
    assert refusal.value.code == "model_in_use"
    assert id not in refusal.value.message
    neighbour.fine_tuning.jobs.cancel(id)
    assert acme.models.delete(tuned).deleted
    with transaction("troll_control") as session:
        assert not jobs.is_shared(session, tuned)


def test_a_model_is_shared_with_projects_of_the_own_organisation_only(
    acme: openai.OpenAI, tuned: str, new_key: Callable[..., Key]
) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        share(acme, tuned, new_key(organization="globex"))
    assert (refusal.value.code, refusal.value.param) == ("project_not_found", "project_ids")
    assert acme.fine_tuning.checkpoints.permissions.list(tuned).data == []


def test_what_is_no_model_of_ones_own_is_not_shared(acme: openai.OpenAI, model: str, second: Key) -> None:
    for name in (model, "ft:nothing"):
        with pytest.raises(openai.NotFoundError):
            share(acme, name, second)


def test_an_admin_key_shares_models_of_every_project(
    connect: Callable[..., openai.OpenAI],
    new_key: Callable[..., Key],
    neighbour: openai.OpenAI,
    tuned: str,
    second: Key,
) -> None:
    share(connect(new_key(admin=True)), tuned, second)
    assert neighbour.models.retrieve(tuned).id == tuned


def test_permissions_of_a_model_that_is_gone_are_forgotten(
    acme: openai.OpenAI, tuned: str, second: Key, data_dir: object
) -> None:
    checkpoint = f"{tuned}:ckpt-step-2"
    share(acme, checkpoint, second)
    prune.prune()
    assert acme.fine_tuning.checkpoints.permissions.list(checkpoint).data
    with transaction("troll_worker") as session:
        jobs.remove_checkpoints(session, [each.id for each in jobs.checkpoints(session, _job_of(acme))])
    prune.prune()
    with transaction("troll_control") as session:
        assert not jobs.is_shared(session, checkpoint)


def _job_of(client: openai.OpenAI) -> str:
    return client.fine_tuning.jobs.list().data[0].id


# Scopes


@pytest.mark.parametrize(
    ("scopes", "call", "allowed"),
    [
        (scopes, call, needed in scopes)
        for scopes in (["read"], ["submit"], ["manage"], ["read", "submit"], [])
        for call, needed in (
            (lambda client: client.files.list(), "read"),
            (
                lambda client: client.files.create(file=factories.jsonl(factories.rows(4)), purpose="fine-tune"),
                "submit",
            ),
            (lambda client: client.files.delete("file-none"), "manage"),
        )
    ],
)
def test_a_key_may_do_what_its_scopes_say(
    connect: Callable[..., openai.OpenAI], new_key: Callable[..., Key], scopes: list[str], call: Any, allowed: bool
) -> None:
    client = connect(new_key(scopes=scopes))
    if not allowed:
        with pytest.raises(openai.PermissionDeniedError) as refusal:
            call(client)
        assert (refusal.value.code, refusal.value.type) == ("missing_scope", "permission_error")
        assert "scope '" in refusal.value.message
        return
    with suppress(openai.NotFoundError):
        call(client)


def test_a_refusal_says_what_is_missing(connect: Callable[..., openai.OpenAI], new_key: Callable[..., Key]) -> None:
    with pytest.raises(openai.PermissionDeniedError) as refusal:
        connect(new_key(scopes=["read", "manage"])).uploads.cancel("upload_1")
    assert "may not do POST /v1/uploads/{upload_id}/cancel: it needs the scope 'submit'" in refusal.value.message
    assert "the key has 'read', 'manage'" in refusal.value.message


def test_an_admin_key_does_nothing_in_projects(
    connect: Callable[..., openai.OpenAI], new_key: Callable[..., Key]
) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="Use a project's key"):
        connect(new_key(admin=True)).files.list()


def test_a_read_only_key_starts_nothing(
    stub: None, connect: Callable[..., openai.OpenAI], new_key: Callable[..., Key], acme: openai.OpenAI, body: Any
) -> None:
    id = acme.fine_tuning.jobs.create(**body).id
    reader = connect(new_key(scopes=["read"]))
    assert reader.fine_tuning.jobs.retrieve(id).id == id
    with pytest.raises(openai.PermissionDeniedError):
        reader.fine_tuning.jobs.cancel(id)
    with pytest.raises(openai.PermissionDeniedError):
        reader.fine_tuning.jobs.create(**body)
    assert row(id).desired == "run"


# A key that ends while it is used


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_whose_key_ends_is_told_so(
    acme: openai.OpenAI, api_key: Key, model: str, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Nobody answers; the key is revoked while it is waited for."""

    async def silence(self: Any) -> list[None]:
        with transaction("troll_operator") as session:
            accounts.revoke_all(session, organization_id=api_key.organization_id)
        return [None]

    monkeypatch.setattr("service.inference.exchange._Asked.next", silence)
    monkeypatch.setattr("service.inference.exchange.SLOT_SECONDS", 0.0)
    monkeypatch.setattr("service.inference.service.HEADERS_SECONDS", 0.0)
    said: Any = [{"role": "user", "content": "1+1="}]
    with pytest.raises(openai.APIError) as refusal:
        list(acme.chat.completions.create(model=model, messages=said, stream=stream))
    assert refusal.value.code == "invalid_api_key"


def test_what_an_archived_project_stores_is_deleted_by_administrators(
    new_key: Callable[..., Key], client_for: Callable[[Key | None], TestClient], models_dir: Path, stub: Any
) -> None:
    key, root = new_key(project="over"), client_for(new_key(admin=True))
    client, path = client_for(key), f"/v1/organization/projects/{key.project_id}"
    factories.create_job(client, factories.offer_model(models_dir))
    supervisor.run("worker-1")
    file = client.get("/v1/files").json()["data"][0]["id"]
    assert root.delete(f"{path}/files/{file}").json()["error"]["code"] == "invalid_project_state"
    assert root.post(f"{path}/archive").status_code == 200
    other = new_key(project="other")
    theirs = factories.upload(client_for(other), factories.jsonl(factories.rows(1)))
    assert root.delete(f"{path}/files/{theirs}").status_code == 404
    stored = sum(each["bytes"] for each in root.get(f"{path}/files").json()["data"])
    with transaction("troll_operator") as session:
        before = usage.stored_bytes(session, key.organization_id)
    for kind in ("files", "models"):
        listed = [each["id"] for each in root.get(f"{path}/{kind}").json()["data"]]
        assert listed
        for id in listed:
            assert root.delete(f"{path}/{kind}/{id}").status_code == 200, id
        assert root.get(f"{path}/{kind}").json()["data"] == []
    assert not storage.file_path(file).exists()
    with transaction("troll_operator") as session:
        assert usage.stored_bytes(session, key.organization_id) <= before - stored
    events = root.get("/v1/organization/audit_logs?event_types[]=file.deleted").json()["data"]
    assert {each["project"]["id"] for each in events} == {key.project_id}
