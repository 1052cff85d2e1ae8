"""The administration API as the official client drives it, and what follows for keys, jobs and streams."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import openai
import pytest

from service.core.db import transaction
from service.jobs import repository as jobs
from service.submission import service as submission
from tests import factories
from tests.conftest import Key
from tests.contract.conftest import Official, Server
from tests.workers.conftest import row
from workers.control.sweep import sweep


@pytest.fixture
def root(new_key: Callable[..., Key]) -> Key:
    """An admin key of ``acme``."""
    return new_key(admin=True)


@pytest.fixture
def admin(server: Server, root: Key) -> Iterator[Any]:
    """A strict client that administers ``acme``."""
    with openai.OpenAI(
        api_key="none", admin_api_key=root.plain, base_url=server.base_url, _strict_response_validation=True
    ) as client:
        yield client.admin.organization


@pytest.fixture
def administering(official: Official, root: Key) -> Official:
    """The same with each kind of client."""
    official.client.admin_api_key = root.plain
    return official


@pytest.fixture
def project(admin: Any) -> str:
    return str(admin.projects.create(name="vision").id)


# Projects


def test_projects_are_made_listed_renamed_and_archived(administering: Official) -> None:
    ask, projects = administering.ask, administering.client.admin.organization.projects
    made = ask(projects.create(name="vision"))
    assert (made.object, made.name, made.status, made.archived_at) == ("organization.project", "vision", "active", None)
    assert ask(projects.update(made.id, name="sight")).name == "sight"
    assert ask(projects.retrieve(made.id)).name == "sight"
    assert [each.name for each in administering.everything(projects.list())] == ["sight", "Default project"]
    archived = ask(projects.archive(made.id))
    assert archived.status == "archived"
    assert archived.archived_at >= made.created_at
    assert [each.name for each in administering.everything(projects.list())] == ["Default project"]
    everything = administering.everything(projects.list(include_archived=True, limit=1))
    assert [each.name for each in everything] == ["sight", "Default project"]


def test_an_archived_project_takes_no_more_changes(admin: Any, project: str) -> None:
    admin.projects.archive(project)
    calls: list[Callable[[], object]] = [
        lambda: admin.projects.update(project, name="x"),
        lambda: admin.projects.archive(project),
        lambda: admin.projects.service_accounts.create(project, name="x"),
    ]
    for call in calls:
        with pytest.raises(openai.BadRequestError) as refusal:
            call()
        assert refusal.value.code == "invalid_project_state"


def test_the_default_project_stays(admin: Any, root: Key, api_key: Key) -> None:
    with pytest.raises(openai.BadRequestError, match="troll admin delete"):
        admin.projects.archive(api_key.project_id)


# Users and members


def add(admin: Any, who: str, **more: Any) -> Any:
    body = {"email": f"{who}@example.com", "name": who, **more}
    return admin._client.post("/organization/users", cast_to=object, body=body, options=AS_ADMIN)


AS_ADMIN: Any = {"security": {"admin_api_key_auth": True}}


def test_users_are_listed_changed_and_deleted(administering: Official, admin: Any) -> None:
    users, ask = administering.client.admin.organization.users, administering.ask
    ada, bob = (add(admin, name)["id"] for name in ("ada", "bob"))
    assert [each.id for each in administering.everything(users.list(limit=1))] == [bob, ada]
    assert [each.id for each in administering.everything(users.list(emails=["ADA@example.com"]))] == [ada]
    found = ask(users.retrieve(ada))
    assert (found.email, found.name, found.role) == ("ada@example.com", "ada", "reader")
    assert ask(users.update(ada, role="owner")).role == "owner"
    assert ask(users.delete(ada)).deleted
    with pytest.raises(openai.NotFoundError):
        ask(users.retrieve(ada))
    assert [each.id for each in administering.everything(users.list())] == [bob]
    assert add(admin, "ada")["id"] != ada


@pytest.mark.parametrize(("email", "again"), [("ada@example.com", "ADA@Example.com"), ("Ò@ê.fr", "Ò@ê.fr")])
def test_an_email_is_one_users_whatever_its_case(admin: Any, email: str, again: str) -> None:
    id = add(admin, "x", email=email)["id"]
    assert [each.id for each in admin.users.list(emails=[again])] == [id]
    with pytest.raises(openai.BadRequestError) as refusal:
        add(admin, "x", email=again)
    assert (refusal.value.code, refusal.value.param) == ("user_exists", "email")


@pytest.mark.parametrize("body", [{"email": "none"}, {"email": "a b@c"}, {"role": "king"}, {"name": ""}, {"more": 1}])
def test_a_user_that_is_none_is_refused(admin: Any, body: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        add(admin, "ada", **body)


def test_members_of_a_project(administering: Official, admin: Any, project: str) -> None:
    members, ask = administering.client.admin.organization.projects.users, administering.ask
    ada, bob = (add(admin, name)["id"] for name in ("ada", "bob"))
    assert ask(members.create(project, user_id=ada, role="member")).role == "member"
    assert ask(members.create(project, email="bob@example.com", role="owner")).id == bob
    assert [each.id for each in administering.everything(members.list(project, limit=1))] == [bob, ada]
    assert ask(members.retrieve(ada, project_id=project)).email == "ada@example.com"
    assert ask(members.update(ada, project_id=project, role="reader")).role == "reader"
    assert ask(members.delete(ada, project_id=project)).deleted
    with pytest.raises(openai.NotFoundError):
        ask(members.retrieve(ada, project_id=project))
    with pytest.raises(openai.BadRequestError):
        ask(members.create(project, user_id=bob, role="reader"))
    with pytest.raises(openai.BadRequestError):
        ask(members.create(project, role="reader"))


# Service accounts and keys


def test_service_accounts_work_until_they_are_deleted(
    administering: Official, project: str, connect: Callable[..., openai.OpenAI]
) -> None:
    accounts, ask = administering.client.admin.organization.projects.service_accounts, administering.ask
    made = ask(accounts.create(project, name="nightly"))
    assert (made.role, made.api_key.name) == ("member", "nightly")
    key = Key(made.api_key.value, made.api_key.id, "", project)
    robot = connect(key)
    file = robot.files.create(file=factories.jsonl(factories.rows(4)), purpose="fine-tune").id
    with pytest.raises(openai.PermissionDeniedError, match="its owner is member"):
        robot.files.delete(file)
    assert ask(accounts.update(made.id, project_id=project, role="owner", name="daily")).name == "daily"
    assert robot.files.delete(file).deleted
    assert [each.id for each in administering.everything(accounts.list(project))] == [made.id]
    assert ask(accounts.retrieve(made.id, project_id=project)).role == "owner"
    more = ask(accounts.api_keys.create(made.id, project_id=project, scopes=["read"], expires_in_seconds=3600))
    reader = connect(Key(more.value, more.id, "", project))
    assert reader.models.list() is not None
    assert ask(accounts.delete(made.id, project_id=project)).deleted
    for client in (robot, reader):
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with pytest.raises(openai.NotFoundError):
        ask(accounts.retrieve(made.id, project_id=project))


def test_an_account_alone_has_no_key_and_no_role(administering: Official, project: str) -> None:
    accounts, ask = administering.client.admin.organization.projects.service_accounts, administering.ask
    made = ask(accounts.create(project, name="later", create_service_account_only=True))
    assert (made.role, made.api_key) == ("none", None)


def test_keys_of_a_project_are_listed_and_deleted(
    administering: Official, project: str, new_key: Callable[..., Key], connect: Callable[..., openai.OpenAI]
) -> None:
    keys, ask = administering.client.admin.organization.projects.api_keys, administering.ask
    key = new_key(project=project, name="laptop")
    client = connect(key)
    client.models.list()
    (shown,) = administering.everything(keys.list(project))
    assert (shown.id, shown.name, shown.owner.type, shown.owner_project_access) == (key.id, "laptop", None, "active")
    assert shown.last_used_at is not None
    assert key.plain not in shown.to_json()
    assert ask(keys.retrieve(key.id, project_id=project)).id == key.id
    with pytest.raises(openai.NotFoundError):
        ask(keys.retrieve(new_key().id, project_id=project))
    assert ask(keys.delete(key.id, project_id=project)).deleted
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert administering.everything(keys.list(project)) == []


def post(admin: Any, path: str, **body: Any) -> Any:
    return admin._client.post(f"/organization{path}", cast_to=object, body=body, options=AS_ADMIN)


def test_what_a_key_may_do_changes_from_its_next_request_on(
    admin: Any, project: str, connect: Callable[..., openai.OpenAI]
) -> None:
    made = post(admin, f"/projects/{project}/api_keys", name="laptop", scopes=["read"])
    client, path = connect(Key(made["value"], made["id"], "", project)), f"/projects/{project}/api_keys/{made['id']}"
    upload: Any = {"file": factories.jsonl(factories.rows(1)), "purpose": "fine-tune"}
    with pytest.raises(openai.PermissionDeniedError):
        client.files.create(**upload)
    assert post(admin, path, scopes=["submit", "read"])["scopes"] == ["read", "submit"]
    file = client.files.create(**upload).id
    assert post(admin, path, name="desk")["scopes"] == ["read", "submit"]
    post(admin, path, scopes=[])
    with pytest.raises(openai.PermissionDeniedError):
        client.files.retrieve(file)
    assert post(admin, path, scopes=None)["scopes"] is None
    client.files.delete(file)
    with pytest.raises(openai.BadRequestError):
        post(admin, path, scopes=["admin"])
    told = [
        getattr(each, "api_key.updated")["changes_requested"] for each in entries(admin, resource_ids=[made["id"]])[:4]
    ]
    assert told == [{"scopes": None}, {"scopes": []}, {"name": "desk"}, {"scopes": ["submit", "read"]}]


def test_a_users_key_says_whose_it_is_and_what_they_may(admin: Any, project: str) -> None:
    ada = add(admin, "ada")["id"]
    made = post(admin, f"/projects/{project}/api_keys", name="laptop", user_id=ada, scopes=["submit", "read"])
    assert (made["scopes"], made["owner"]["user"]["email"]) == (["read", "submit"], "ada@example.com")
    assert (made["owner"]["user"]["role"], made["owner_project_access"]) == ("none", "inactive")
    admin.projects.users.create(project, user_id=ada, role="reader")
    (shown,) = admin.projects.api_keys.list(project)
    assert (shown.owner.user.role, shown.owner_project_access) == ("reader", "active")
    admin.users.update(ada, role="owner")
    assert admin.projects.api_keys.retrieve(made["id"], project_id=project).owner.user.role == "owner"


def test_a_role_that_changes_changes_what_keys_may_at_once(
    admin: Any, project: str, connect: Callable[..., openai.OpenAI]
) -> None:
    ada = add(admin, "ada")["id"]
    client = connect(Key(post(admin, f"/projects/{project}/api_keys", user_id=ada)["value"], "", "", project))
    allowed = []
    for change in (
        lambda: None,
        lambda: admin.projects.users.create(project, user_id=ada, role="reader"),
        lambda: admin.projects.users.update(ada, project_id=project, role="owner"),
        lambda: admin.projects.users.update(ada, project_id=project, role="reader"),
    ):
        change()
        may = []
        for call in (lambda: client.files.list(), lambda: client.uploads.cancel("u"), lambda: client.files.delete("f")):
            try:
                call()
            except openai.PermissionDeniedError:
                continue
            except openai.NotFoundError:
                pass
            may.append(call)
        allowed.append(len(may))
    assert allowed == [0, 1, 3, 1]


def test_a_key_is_rotated_with_an_overlap(
    admin: Any, new_key: Callable[..., Key], connect: Callable[..., openai.OpenAI]
) -> None:
    old = new_key(scopes=["read"])
    new = post(admin, f"/projects/{old.project_id}/api_keys/{old.id}/rotate", overlap_seconds=3600)
    assert new["scopes"] == ["read"]
    for key in (old, Key(new["value"], new["id"], "", "")):
        assert connect(key).models.list() is not None
    shown = admin.projects.api_keys.retrieve(old.id, project_id=old.project_id)
    assert 0 < shown.expires_at - time.time() <= 3700
    again = post(admin, f"/projects/{old.project_id}/api_keys/{new['id']}/rotate", overlap_seconds=0)
    with pytest.raises(openai.AuthenticationError):
        connect(Key(new["value"], "", "", "")).models.list()
    assert connect(Key(again["value"], "", "", "")).models.list() is not None


@pytest.mark.parametrize("body", [{"scopes": ["admin"]}, {"scopes": ["write"]}, {"expires_in_seconds": 1}])
def test_a_key_that_cannot_be_is_refused(admin: Any, project: str, body: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        post(admin, f"/projects/{project}/api_keys", **body)


def test_admin_keys(administering: Official, root: Key) -> None:
    keys, ask = administering.client.admin.organization.admin_api_keys, administering.ask
    made = ask(keys.create(name="second", expires_in_seconds=3600))
    assert made.value.startswith("sk-troll-admin-")
    assert [each.id for each in administering.everything(keys.list(order="asc", limit=1))] == [root.id, made.id]
    assert ask(keys.retrieve(made.id)).name == "second"
    administering.client.admin_api_key = made.value
    assert ask(keys.delete(made.id)).deleted
    with pytest.raises(openai.AuthenticationError):
        ask(keys.retrieve(root.id))


# What ends with a project


@pytest.fixture
def theirs(new_key: Callable[..., Key], project: str, root: Key) -> Key:
    """A key of the project."""
    return new_key(project=project)


def job_in(client: openai.OpenAI, model: str) -> str:
    return factories.created(client, model)


def test_jobs_of_an_archived_project_end(
    admin: Any, theirs: Key, connect: Callable[..., openai.OpenAI], model: str, acme: openai.OpenAI
) -> None:
    client = connect(theirs)
    others = job_in(acme, model)
    ids = {name: job_in(client, model) for name in ("running", "paused", "queued")}
    with transaction("troll_worker") as session:
        for status in ("running", "paused"):
            job = jobs.locked(session, ids[status])
            assert job is not None
            job.status = status
            if status == "running":
                job.lease_expires_at = job.created_at + timedelta(days=1)
    admin.projects.archive(theirs.project_id)
    found = {name: (row(id).status, row(id).desired) for name, id in ids.items()}
    assert found == {
        "running": ("running", "cancel"),
        "paused": ("cancelled", "cancel"),
        "queued": ("cancelled", "cancel"),
    }
    assert row(others).status == "queued"


def test_a_job_that_was_being_created_when_its_project_ended_is_cancelled(
    admin: Any, theirs: Key, connect: Callable[..., openai.OpenAI], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = submission.create

    def late(*arguments: Any) -> Any:
        thread = threading.Thread(target=admin.projects.archive, args=(theirs.project_id,))
        thread.start()
        thread.join()
        return create(*arguments)

    monkeypatch.setattr("service.submission.endpoints.service.create", late)
    id = job_in(connect(theirs), model)
    assert row(id).status == "queued"
    sweep()
    assert row(id).status == "cancelled"


def test_whoever_follows_a_job_of_an_archived_project_is_told(
    admin: Any, theirs: Key, connect: Callable[..., openai.OpenAI], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.stream.LOOK_UP_SECONDS", 0.0)
    client = connect(theirs)
    id = job_in(client, model)
    with client.get(
        f"/fine_tuning/jobs/{id}/events?stream=true",
        cast_to=object,
        stream=True,
        stream_cls=openai.Stream[object],
    ) as stream:
        next(stream)
        admin.projects.archive(theirs.project_id)
        with pytest.raises(openai.APIError, match="its project ended") as told:
            list(stream)
    assert told.value.code == "invalid_api_key"


# The audit log


def entries(admin: Any, **wanted: Any) -> list[Any]:
    """Newest first, read as objects: types of ours are not among the client's."""
    return list(loose(admin).admin.organization.audit_logs.list(**wanted))


def loose(admin: Any) -> Any:
    client = admin._client.with_options()
    client._strict_response_validation = False
    return client


def test_what_administrators_do_is_written_down(admin: Any, root: Key) -> None:
    project = admin.projects.create(name="vision").id
    ada = add(admin, "ada")["id"]
    admin.projects.users.create(project, user_id=ada, role="member")
    account = admin.projects.service_accounts.create(project, name="robot")
    admin.projects.archive(project)
    told = [(each.type, getattr(each, "project", None) and each.project.id) for each in entries(admin)]
    assert told[:-1][::-1] == [
        ("project.created", project),
        ("user.added", None),
        ("user.added", project),
        ("service_account.created", project),
        ("api_key.created", project),
        ("api_key.deleted", project),
        ("project.archived", project),
    ]
    (created,) = entries(admin, event_types=["service_account.created"])
    assert (created.actor.type, created.actor.api_key.id) == ("api_key", root.id)
    assert (created.service_account_created.id, created.address) == (account.id, "127.0.0.1")
    assert created.request_id.startswith("req_")


def test_the_log_is_filtered_and_paged(admin: Any, root: Key) -> None:
    ids = [admin.projects.create(name=f"p{n}").id for n in range(3)]
    assert [e.project.id for e in entries(admin, event_types=["project.created"], limit=1)] == ids[::-1]
    assert [e.project.id for e in entries(admin, project_ids=ids[:2])] == ids[1::-1]
    assert [e.project_created.id for e in entries(admin, resource_ids=[ids[1]])] == [ids[1]]
    assert len(entries(admin, actor_ids=[root.id])) == 3
    assert entries(admin, actor_ids=["nobody"]) == entries(admin, actor_emails=["nobody@example.com"]) == []
    now = entries(admin)[0].effective_at
    assert entries(admin, effective_at={"gt": now + 60}) == entries(admin, effective_at={"lt": now - 60}) == []
    assert len(entries(admin, effective_at={"gte": now - 60, "lte": now + 60}, event_types=["project.created"])) == 3
    newest = entries(admin, event_types=["project.created"])
    before = loose(admin).admin.organization.audit_logs.list(
        before=newest[2].id, event_types=["project.created"], limit=1
    )
    assert [each.id for each in before.data] == [newest[1].id]


def test_what_users_do_with_jobs_and_files_is_written_down_with_who_it_was(
    admin: Any, project: str, connect: Callable[..., openai.OpenAI], model: str
) -> None:
    ada = add(admin, "ada")["id"]
    admin.projects.users.create(project, user_id=ada, role="owner")
    made = post(admin, f"/projects/{project}/api_keys", user_id=ada)
    client = connect(Key(made["value"], made["id"], "", project))
    job = job_in(client, model)
    client.fine_tuning.jobs.pause(job)
    client.fine_tuning.jobs.pause(job)
    client.fine_tuning.jobs.resume(job)
    client.fine_tuning.jobs.cancel(job)
    client.files.delete(client.files.list().data[0].id)
    told = entries(admin, actor_emails=["ada@example.com"])
    assert [each.type for each in told] == [
        "file.deleted",
        "fine_tuning.job.cancelled",
        "fine_tuning.job.resumed",
        "fine_tuning.job.paused",
        "fine_tuning.job.created",
        "file.created",
        "file.created",
    ]
    assert {each.actor.api_key.user.id for each in told} == {ada}
    assert {each.project.id for each in told} == {project}


def test_what_is_refused_is_not_written_down(admin: Any, project: str) -> None:
    before = [each.id for each in entries(admin)]
    with pytest.raises(openai.NotFoundError):
        admin.projects.users.create(project, user_id="user-none", role="member")
    assert [each.id for each in entries(admin)] == before


def test_what_is_done_with_webhook_endpoints_is_written_down_without_their_secrets(
    admin: Any, connect: Callable[..., openai.OpenAI], new_key: Callable[..., Key]
) -> None:
    client = connect(new_key())

    def call(path: str, **body: Any) -> Any:
        return client.post(f"/webhook_endpoints{path}", body=body, cast_to=object)

    made = call("", name="mine", url="https://example.com/", event_types=["fine_tuning.job.failed"])
    call(f"/{made['id']}", name="ours")
    call(f"/{made['id']}", name="ours")
    secret = call(f"/{made['id']}/rotate_secret")
    client.delete(f"/webhook_endpoints/{made['id']}", cast_to=object)
    told = entries(admin, resource_ids=[made["id"]])
    assert [each.type.removeprefix("webhook_endpoint.") for each in told] == [
        "deleted",
        "secret_rotated",
        "updated",
        "created",
    ]
    written = "".join(each.model_dump_json() for each in told)
    assert not [
        value
        for shown in (made, secret)
        for value in shown.values()
        if str(value).startswith("whsec_") and value in written
    ]
