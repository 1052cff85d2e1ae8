"""Every route, with another tenant's ids, under every role and every key that is none: nothing leaks, nothing changes.

A route that is not in the table fails the first test.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

import psycopg
import pytest
from fastapi.testclient import TestClient

from service.accounts import keys
from service.accounts import repository as accounts
from service.accounts.caller import Route
from service.accounts.models import Organization
from service.accounts.scopes import PROJECT_SCOPES, ROLES
from service.accounts.service import KeyOwner, create_project, default_project, make_key, organization_for, revoke_key
from service.administration import service as administration
from service.app import create_app
from service.core.db import transaction
from service.embedded.servers import Servers
from service.settings import settings
from tests import factories
from tests.conftest import empty
from tests.workers.conftest import use_stub
from workers.jobs import supervisor

MARK = "VICTIM"
"""Is in every name that the victim gave."""


@dataclass(frozen=True)
class Call:
    """How a route is called with the ids of somebody else, and what that answers to who may use the route."""

    body: Callable[[dict[str, str]], Any] | None = None
    files: Callable[[], Any] | None = None
    query: str = ""
    status: int | None = 404
    """None where the route names nobody's things: then whatever it answers holds nothing of the victim's."""


NOBODYS = Call(status=None)


def job_of(ids: dict[str, str]) -> dict[str, Any]:
    """A job of the caller's own from the victim's files."""
    return {
        "model": ids["base"],
        "training_file": ids["file_id"],
        "validation_file": ids["file_id"],
        "method": factories.method(),
    }


def hook(ids: dict[str, str]) -> dict[str, Any]:
    return {"name": "mine", "url": "https://example.com/", "event_types": ["fine_tuning.job.failed"]}


JOBS, ORGANIZATION = "/v1/fine_tuning/jobs", "/v1/organization"
PROJECT = f"{ORGANIZATION}/projects/{{project_id}}"
HOOKS = "/v1/webhook_endpoints"
EXPORTS = "/v1/models/{model}/exports"
SHARES = "/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions"
CALLS: dict[str, Call] = {
    "POST /v1/files": NOBODYS,
    "GET /v1/files": NOBODYS,
    "GET /v1/files/{file_id}": Call(),
    "GET /v1/files/{file_id}/content": Call(),
    "DELETE /v1/files/{file_id}": Call(),
    "POST /v1/uploads": NOBODYS,
    "POST /v1/uploads/{upload_id}/parts": Call(files=lambda: {"data": b"x"}),
    "POST /v1/uploads/{upload_id}/complete": Call(body=lambda ids: {"part_ids": [ids["part"]]}),
    "POST /v1/uploads/{upload_id}/cancel": Call(),
    f"POST {JOBS}": Call(body=job_of, status=400),
    f"GET {JOBS}": NOBODYS,
    f"GET {JOBS}/{{fine_tuning_job_id}}": Call(),
    f"POST {JOBS}/{{fine_tuning_job_id}}/cancel": Call(),
    f"POST {JOBS}/{{fine_tuning_job_id}}/pause": Call(),
    f"POST {JOBS}/{{fine_tuning_job_id}}/resume": Call(),
    f"GET {JOBS}/{{fine_tuning_job_id}}/events": Call(),
    f"GET {JOBS}/{{fine_tuning_job_id}}/metrics": Call(query="?names[]=step"),
    f"GET {JOBS}/{{fine_tuning_job_id}}/tensorboard": Call(),
    f"GET {JOBS}/{{fine_tuning_job_id}}/checkpoints": Call(),
    "POST /v1/fine_tuning/alpha/graders/validate": Call(body=lambda ids: {"grader": ids["file_id"]}, status=None),
    "POST /v1/fine_tuning/alpha/graders/run": Call(body=lambda ids: {"grader": ids["file_id"]}, status=None),
    "GET /v1/models": NOBODYS,
    "GET /v1/models/{model}": Call(),
    "GET /v1/models/{model}/files": Call(),
    "GET /v1/models/{model}/files/{name}": Call(),
    "GET /v1/models/{model}/archive": Call(),
    "DELETE /v1/models/{model}": Call(),
    f"POST {EXPORTS}": Call(body=lambda ids: {"format": "huggingface"}),
    f"GET {EXPORTS}": NOBODYS,
    f"GET {EXPORTS}/{{export_id}}": Call(),
    f"DELETE {EXPORTS}/{{export_id}}": Call(),
    f"GET {EXPORTS}/{{export_id}}/content": Call(),
    f"GET {EXPORTS}/{{export_id}}/files": Call(),
    f"GET {EXPORTS}/{{export_id}}/files/{{name}}": Call(),
    f"POST {SHARES}": Call(body=lambda ids: {"project_ids": [ids["project_id"]]}),
    f"GET {SHARES}": Call(),
    f"DELETE {SHARES}/{{permission_id}}": Call(),
    "POST /v1/chat/completions": Call(
        body=lambda ids: {"model": ids["model"], "messages": [{"role": "user", "content": "1"}]}
    ),
    "POST /v1/completions": Call(body=lambda ids: {"model": ids["model"], "prompt": "1"}),
    "POST /v1/responses": Call(body=lambda ids: {"model": ids["model"], "input": "1"}),
    "GET /v1/webhook_event_types": NOBODYS,
    f"POST {HOOKS}": Call(body=hook, status=None),
    f"GET {HOOKS}": NOBODYS,
    f"GET {HOOKS}/{{webhook_endpoint_id}}": Call(),
    f"POST {HOOKS}/{{webhook_endpoint_id}}": Call(body=hook),
    f"DELETE {HOOKS}/{{webhook_endpoint_id}}": Call(),
    f"POST {HOOKS}/{{webhook_endpoint_id}}/rotate_secret": Call(),
    f"POST {HOOKS}/{{webhook_endpoint_id}}/test": Call(body=lambda ids: {"event_type": "fine_tuning.job.failed"}),
    f"POST {ORGANIZATION}/projects": Call(body=lambda ids: {"name": "mine"}, status=None),
    f"GET {ORGANIZATION}/projects": Call(query="?include_archived=true", status=None),
    f"GET {PROJECT}": Call(),
    f"POST {PROJECT}": Call(body=lambda ids: {"name": "taken"}),
    f"POST {PROJECT}/archive": Call(),
    f"GET {PROJECT}/files": Call(),
    f"DELETE {PROJECT}/files/{{file_id}}": Call(),
    f"GET {PROJECT}/models": Call(),
    f"DELETE {PROJECT}/models/{{model}}": Call(),
    f"POST {PROJECT}/users": Call(body=lambda ids: {"user_id": ids["user_id"], "role": "owner"}),
    f"GET {PROJECT}/users": Call(),
    f"GET {PROJECT}/users/{{user_id}}": Call(),
    f"POST {PROJECT}/users/{{user_id}}": Call(body=lambda ids: {"role": "owner"}),
    f"DELETE {PROJECT}/users/{{user_id}}": Call(),
    f"POST {PROJECT}/service_accounts": Call(body=lambda ids: {"name": "mine"}),
    f"GET {PROJECT}/service_accounts": Call(),
    f"GET {PROJECT}/service_accounts/{{service_account_id}}": Call(),
    f"POST {PROJECT}/service_accounts/{{service_account_id}}": Call(body=lambda ids: {"name": "taken"}),
    f"DELETE {PROJECT}/service_accounts/{{service_account_id}}": Call(),
    f"POST {PROJECT}/service_accounts/{{service_account_id}}/api_keys": Call(body=lambda ids: {"name": "mine"}),
    f"POST {PROJECT}/api_keys": Call(body=lambda ids: {"name": "mine", "user_id": ids["user_id"]}),
    f"GET {PROJECT}/api_keys": Call(),
    f"GET {PROJECT}/api_keys/{{api_key_id}}": Call(),
    f"POST {PROJECT}/api_keys/{{api_key_id}}": Call(body=lambda ids: {"scopes": ["read"]}),
    f"POST {PROJECT}/api_keys/{{api_key_id}}/rotate": Call(),
    f"DELETE {PROJECT}/api_keys/{{api_key_id}}": Call(),
    f"POST {ORGANIZATION}/users": NOBODYS,
    f"GET {ORGANIZATION}/users": Call(query="?emails[]=ada@VICTIM.example", status=None),
    f"GET {ORGANIZATION}/users/{{user_id}}": Call(),
    f"POST {ORGANIZATION}/users/{{user_id}}": Call(body=lambda ids: {"role": "owner"}),
    f"DELETE {ORGANIZATION}/users/{{user_id}}": Call(),
    f"POST {ORGANIZATION}/admin_api_keys": Call(body=lambda ids: {"name": "mine"}, status=None),
    f"GET {ORGANIZATION}/admin_api_keys": NOBODYS,
    f"GET {ORGANIZATION}/admin_api_keys/{{key_id}}": Call(),
    f"DELETE {ORGANIZATION}/admin_api_keys/{{key_id}}": Call(),
    f"GET {ORGANIZATION}/audit_logs": NOBODYS,
    f"GET {ORGANIZATION}/usage/completions": Call(query="?start_time=1", status=None),
    f"GET {ORGANIZATION}/usage/gpu_seconds": Call(query="?start_time=1&group_by[]=project_id", status=None),
    f"GET {ORGANIZATION}/usage/storage": NOBODYS,
    f"GET {ORGANIZATION}/limits": NOBODYS,
    f"GET {ORGANIZATION}/workers": NOBODYS,
    f"POST {ORGANIZATION}/workers/{{worker}}/drain": Call(),
    f"POST {ORGANIZATION}/workers/{{worker}}/resume": Call(),
    f"GET {ORGANIZATION}/queue": NOBODYS,
}
"""Paths as the OpenAPI document gives them."""

NEEDS = {
    f"{method} {re.sub(':path', '', route.path)}": route.needs
    for route in create_app().routes
    if isinstance(route, Route)
    for method in route.methods
}


def served() -> set[str]:
    paths = create_app().openapi()["paths"]
    return {f"{method.upper()} {path}" for path, item in paths.items() if path.startswith("/v1/") for method in item}


def test_every_route_is_in_the_table() -> None:
    assert set(CALLS) == served()


def test_every_route_says_which_scope_it_needs() -> None:
    assert set(NEEDS) == served()
    assert all(NEEDS.values())


BY_METHOD: dict[str, set[str]] = {"GET": {"read"}, "POST": {"submit"}, "DELETE": {"manage"}}
"""What a key needs to look, to make and steer, and to take away."""
EXCEPTIONS: dict[str, set[str]] = {
    SHARES: {"manage", "admin"},
    f"POST {HOOKS}": {"manage"},
    f"{ORGANIZATION}/usage": {"admin", "read"},
    f"{ORGANIZATION}/limits": {"admin", "read"},
    f"{ORGANIZATION}/": {"admin"},
}
"""By how a route begins, with its method or without; the first that fits counts."""


@pytest.mark.parametrize("route", sorted(CALLS))
def test_a_route_needs_the_scope_of_what_it_does(route: str) -> None:
    method, path = route.split(" ")
    beginnings = (known for known in EXCEPTIONS if route.startswith(known) or path.startswith(known))
    exception = next(beginnings, None)
    assert NEEDS[route] == (BY_METHOD[method] if exception is None else EXCEPTIONS[exception])


@dataclass
class World:
    """The victim's ids, and the keys of everybody, by what they are."""

    client: TestClient
    database: Servers
    ids: dict[str, str] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)
    """Ids that no answer to others may hold, unless it was asked with them."""
    outsiders: dict[str, str] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)
    none: dict[str, str] = field(default_factory=dict)
    """Headers that are nobody's."""

    def call(self, route: str, key: str, *, real: bool = True) -> Any:
        """With the victim's ids and a body of the table; unless it is ``real``, with ids of nothing and no body."""
        method, path = route.split(" ")
        call = CALLS[route]
        url = re.sub(r"\{(\w+)\}", lambda found: self.ids[found[1]] if real else "none", path)
        body = call.body(self.ids) if real and call.body else {} if method == "POST" else None
        files = call.files() if real and call.files else None
        header = key if " " in key else f"Bearer {key}"
        return self.client.request(
            method,
            url + (call.query if real else ""),
            json=None if files else body,
            files=files,
            headers={"Authorization": header},
        )

    def everything(self) -> list[tuple[str, list[str]]]:
        """Every row of the victim's, but for when keys were used, and for what its neighbour does for itself."""
        neighbours = f'"project_id": "{self.ids["neighbour"]}"'
        with psycopg.connect(self.database.database_owner_url, autocommit=True) as owner:
            query = """
                SELECT table_name, bool_or(column_name = 'last_used_at') FROM information_schema.columns
                WHERE table_schema = 'public' GROUP BY table_name HAVING bool_or(column_name = 'organization_id')
            """
            rows = []
            for table, used in sorted(owner.execute(query).fetchall()):
                row = "to_jsonb(t) - 'last_used_at'" if used else "to_jsonb(t)"
                statement = f"SELECT ({row})::text FROM {table} t WHERE organization_id = %s ORDER BY 1"
                found = owner.execute(statement, [self.ids["organization"]])
                rows.append((table, [text for (text,) in found if neighbours not in text]))
            return rows


@pytest.fixture(scope="module")
def world(servers: Servers) -> Iterator[World]:
    empty(servers)
    with TestClient(create_app(), raise_server_exceptions=False) as client, pytest.MonkeyPatch.context() as patch:
        use_stub(patch)
        for name in ("TROLL_REQUESTS_PER_MINUTE", "TROLL_STRANGER_REQUESTS_PER_MINUTE"):
            patch.setenv(name, "0")
        settings.cache_clear()
        world = World(client, servers)
        _make_keys(world)
        _make_things(world)
        yield world
    settings.cache_clear()


def _make_keys(world: World) -> None:
    with transaction("troll_operator") as session:
        victim, other = organization_for(session, MARK), organization_for(session, "other")
        project, neighbour = (create_project(session, victim.id, f"{MARK} {n}") for n in range(2))
        default = default_project(other.id)

        def key(owner: KeyOwner, **options: Any) -> str:
            return make_key(session, owner, name=MARK if owner.organization_id == victim.id else "mine", **options)[0]

        def user(name: str, role: str | None, in_organization: str = "reader") -> str:
            row = administration.add_user(
                session, victim.id, email=f"{name}@{MARK}.example", name=MARK, role=in_organization
            )
            if role is not None:
                administration.add_member(session, project.id, user_id=row.id, email=None, role=role)
            world.ids["user_id"] = row.id
            return key(KeyOwner.of(row, project))

        own = KeyOwner(victim.id, project.id)
        plain, row = make_key(session, own, name=MARK)
        admin, admin_row = make_key(session, KeyOwner(victim.id, None), name=MARK)
        world.ids |= {
            "organization": victim.id,
            "neighbour": neighbour.id,
            "project_id": project.id,
            "api_key_id": row.id,
            "key_id": admin_row.id,
        }
        account, _ = administration.make_service_account(session, project.id, MARK, with_key=False, expires_in=None)
        world.ids["service_account_id"] = account.id
        world.outsiders = {
            "a neighbouring project": key(KeyOwner(victim.id, neighbour.id)),
            "another organisation": key(KeyOwner(other.id, default)),
            "another organisation's administrator": key(KeyOwner(other.id, None)),
        }
        world.members = {
            "everything": plain,
            "administrator": admin,
            **{scope: key(own, scopes=[scope]) for scope in PROJECT_SCOPES},
            "no scope": key(own, scopes=[]),
            "owner": user("olga", "owner"),
            "member": user("mel", "member"),
            "reader": user("rita", "reader"),
            "owner of the organisation": user("ann", None, "owner"),
            "no member": user("nora", None),
            "service account": key(KeyOwner.of(account, project), scopes=["read"]),
        }
        expired, revoked = key(own, expires_in=timedelta(seconds=-1)), make_key(session, own, name="r")
        revoke_key(session, revoked[1].id)
        deleted = user("dora", "owner")
        administration.delete_user(session, administration.user(session, world.ids["user_id"]))
        archived = create_project(session, victim.id, "archived")
        of_archived = key(KeyOwner(victim.id, archived.id))
        administration.end_project(session, archived)
        ended = organization_for(session, "ended")
        of_ended = [key(KeyOwner(ended.id, id)) for id in (default_project(ended.id), None)]
        administration.delete_organization(session, ended)
        world.none = {
            "expired": expired,
            "expired admin": key(KeyOwner(victim.id, None), expires_in=timedelta(seconds=-1)),
            "revoked": revoked[0],
            "of a user who was deleted": deleted,
            "of an archived project": of_archived,
            "of a deleted organisation": of_ended[0],
            "administrator of a deleted organisation": of_ended[1],
            "unknown": keys.generate(),
            "unknown admin": keys.generate(keys.ADMIN_PREFIX),
            "malformed": plain[:-1] + ("0" if plain[-1] != "0" else "1"),
            "an admin key's beginning on a project's": keys.ADMIN_PREFIX + plain.removeprefix(keys.PREFIX),
            "short": "sk-troll-",
            "another scheme": f"Basic {plain}",
            "nothing": "Bearer ",
        }
        world.ids["user_id"] = _user(world, session, victim, "mel")


def _user(world: World, session: Any, organization: Organization, name: str) -> str:
    found = accounts.user_with(session, organization.id, f"{name}@{MARK}.example")
    assert found is not None
    return found.id


def _make_things(world: World) -> None:
    """One of each thing that a project has."""
    client, base = world.client, factories.offer_model(settings().models_dir, "matrix/base")
    headers = {"Authorization": f"Bearer {world.members['everything']}"}

    def post(path: str, **options: Any) -> Any:
        answer = client.post(f"/v1{path}", headers=headers, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def upload(start: int) -> str:
        rows = factories.jsonl(factories.rows(4, start))
        return post("/files", files={"file": (f"{MARK}.jsonl", rows)}, data={"purpose": "fine-tune"})["id"]

    job = {
        "model": base,
        "training_file": upload(10),
        "validation_file": upload(50),
        "method": factories.method(),
        "suffix": MARK,
        "metadata": {"name": MARK},
    }
    done = post("/fine_tuning/jobs", json=job)["id"]
    supervisor.run("worker-1")
    tuned = client.get(f"/v1/fine_tuning/jobs/{done}", headers=headers).json()["fine_tuned_model"]
    assert tuned is not None
    part = {"purpose": "fine-tune", "filename": MARK, "bytes": 9, "mime_type": "text/plain"}
    started = post("/uploads", json=part)["id"]
    # Shared with a project that no caller of this file is of.
    with transaction("troll_operator") as session:
        third = create_project(session, world.ids["organization"], f"{MARK} third").id
    endpoint: dict[str, Any] = {
        "name": MARK,
        "url": f"https://{MARK}.example/",
        "event_types": ["fine_tuning.job.failed"],
    }
    world.ids |= {
        "base": base,
        "file_id": str(job["training_file"]),
        "upload_id": started,
        "part": post(f"/uploads/{started}/parts", files={"data": b"123"})["id"],
        "fine_tuning_job_id": post("/fine_tuning/jobs", json=job)["id"],
        "model": tuned,
        "fine_tuned_model_checkpoint": tuned,
        "name": "config.json",
        "permission_id": post(f"/fine_tuning/checkpoints/{tuned}/permissions", json={"project_ids": [third]})["data"][
            0
        ]["id"],
        "webhook_endpoint_id": post("/webhook_endpoints", json=endpoint)["id"],
        "worker": "worker-1",
        "export_id": post(f"/models/{tuned}/exports", json={"format": "huggingface"})["id"],
    }
    world.secrets = set(world.ids.values()) - {base, "config.json", "worker-1", world.ids["neighbour"]} | {
        done,
        third,
        MARK,
    }


def leaked(world: World, answer: Any) -> set[str]:
    """What an answer holds of the victim's that its request did not."""
    asked, request = unquote(str(answer.request.url)), answer.request
    if request.headers.get("content-type") == "application/json":
        asked += request.content.decode()
    return {secret for secret in world.secrets if secret in answer.text and secret not in asked}


@pytest.mark.parametrize("route", sorted(CALLS))
def test_others_neither_see_nor_change_anything(world: World, route: str) -> None:
    before = world.everything()
    for who, key in world.outsiders.items():
        answer = world.call(route, key)
        if not NEEDS[route] & ALLOWED["administrator" if "administrator" in who else "everything"]:
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope"), who
        elif CALLS[route].status is not None:
            assert answer.status_code == CALLS[route].status, (who, answer.text)
        assert answer.status_code < 500, (who, answer.text)
        # A neighbour's organisation is the victim's.
        own = {world.ids["organization"]} if who == "a neighbouring project" else set()
        assert leaked(world, answer) <= own, (who, answer.text)
    assert world.everything() == before


@pytest.mark.parametrize(
    "who", ["a neighbouring project", "another organisation", "another organisation's administrator"]
)
def test_the_keys_of_others_are_good(world: World, who: str) -> None:
    path = "/v1/organization/users" if "administrator" in who else "/v1/files"
    answer = world.client.get(path, headers={"Authorization": f"Bearer {world.outsiders[who]}"})
    assert (answer.status_code, answer.json()["data"]) == (200, [])


@pytest.mark.parametrize("route", sorted(CALLS))
def test_keys_that_are_none_open_nothing(world: World, route: str) -> None:
    before = world.everything()
    for what, key in world.none.items():
        answer = world.call(route, key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), what
        assert not leaked(world, answer), what
    assert world.everything() == before


ALLOWED: dict[str, set[str]] = {
    "everything": set(PROJECT_SCOPES),
    "administrator": {"admin"},
    **{scope: {scope} for scope in PROJECT_SCOPES},
    "no scope": set(),
    **{role: set(ROLES[role]) for role in ("owner", "member", "reader")},
    "owner of the organisation": set(PROJECT_SCOPES),
    "no member": set(),
    # An account without a role: its key may not even do what its scope says.
    "service account": set(),
}


@pytest.mark.parametrize("route", sorted(CALLS))
def test_each_role_may_do_what_it_may_and_nothing_else(world: World, route: str) -> None:
    for who, key in world.members.items():
        answer = world.call(route, key, real=False)
        if NEEDS[route] & ALLOWED[who]:
            assert answer.status_code not in (401, 403), (who, answer.text)
            assert answer.status_code < 500, (who, answer.text)
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope"), who
