"""A browser's session: what its cookie opens, and for whom."""

import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.accounts import keys
from service.accounts.repository import set_operating
from service.accounts.service import revoke_key
from service.app import create_app
from service.core.db import transaction
from service.dashboard.endpoints import STATIC
from service.dashboard.session import COOKIE, HEADER
from tests.conftest import Key

MARK = {HEADER: "1"}


@pytest.fixture
def browser(database: object) -> Iterator[TestClient]:
    with TestClient(create_app(), base_url="https://troll.example") as client:
        yield client


def sign_in(browser: TestClient, key: str) -> None:
    answer = browser.post("/dashboard/session", json={"key": key}, headers=MARK)
    assert answer.status_code == 204, answer.text


def test_who_signs_in_gets_a_cookie_that_scripts_and_other_sites_cannot_use(
    browser: TestClient, new_key: Callable[..., Key]
) -> None:
    answer = browser.post("/dashboard/session", json={"key": f" {new_key().plain}\n"}, headers=MARK)
    attributes = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}
    assert attributes == {"httponly", "path=/", "samesite=strict", "secure"}
    assert answer.content == b""


def test_a_session_reads_and_with_the_dashboards_header_changes(
    browser: TestClient, new_key: Callable[..., Key]
) -> None:
    assert browser.get("/v1/files").status_code == 401
    sign_in(browser, new_key().plain)
    assert browser.get("/dashboard/session").json()["signed_in"] is True
    assert browser.get("/v1/files").status_code == 200
    upload = {"file": ("a.jsonl", b'{"messages": [{"role": "user", "content": "1"}]}\n')}
    form = {"purpose": "fine-tune"}
    assert browser.post("/v1/files", data=form, files=upload).status_code == 401
    assert browser.post("/v1/files", data=form, headers=MARK, files=upload).status_code == 200
    (file,) = browser.get("/v1/files").json()["data"]
    assert browser.delete(f"/v1/files/{file['id']}").status_code == 401
    assert browser.delete(f"/v1/files/{file['id']}", headers=MARK).status_code == 200


@pytest.mark.parametrize(
    ("key", "scopes", "administers"),
    [({}, ["manage", "read", "submit"], False), ({"scopes": ["read"]}, ["read"], False), ({"admin": True}, [], True)],
    ids=["everything", "reads", "administers"],
)
def test_pages_are_told_what_the_key_may_do(
    browser: TestClient, new_key: Callable[..., Key], key: dict[str, Any], scopes: list[str], administers: bool
) -> None:
    assert browser.get("/dashboard/access").status_code == 401
    sign_in(browser, new_key(**key).plain)
    told = browser.get("/dashboard/access").json()
    assert told == {"organization": "acme", "scopes": scopes, "administers": administers, "operates": False}


def test_only_an_administrator_of_an_operator_operates(browser: TestClient, new_key: Callable[..., Key]) -> None:
    admin, key = new_key(admin=True), new_key()
    with transaction("troll_operator") as session:
        set_operating(session, key.organization_id, operates=True)
    operates = []
    for each in (admin, key):
        sign_in(browser, each.plain)
        operates.append(browser.get("/dashboard/access").json()["operates"])
    assert operates == [True, False]


def test_a_session_ends_with_its_key_and_with_signing_out(browser: TestClient, new_key: Callable[..., Key]) -> None:
    key = new_key()
    sign_in(browser, key.plain)
    assert browser.get("/v1/files").status_code == 200
    with transaction("troll_operator") as session:
        revoke_key(session, key.id)
    assert browser.get("/v1/files").status_code == 401
    sign_in(browser, new_key().plain)
    assert browser.get("/v1/files").status_code == 200
    assert browser.delete("/dashboard/session", headers=MARK).status_code == 204
    assert browser.get("/dashboard/session").json()["signed_in"] is False
    assert browser.get("/v1/files").status_code == 401


def test_a_header_counts_and_not_the_session(browser: TestClient, new_key: Callable[..., Key]) -> None:
    sign_in(browser, new_key().plain)
    assert browser.get("/v1/files", headers={"Authorization": f"Bearer {keys.generate()}"}).status_code == 401


@pytest.mark.parametrize("key", ["", "sk-troll-", "sk-" + 40 * "a", "sk-troll-" + 46 * "ä", "x\r\nset-cookie: a=b"])
def test_what_cannot_be_a_key_is_refused(browser: TestClient, key: str) -> None:
    answer = browser.post("/dashboard/session", json={"key": key}, headers=MARK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_another_site_signs_nobody_in_or_out(browser: TestClient, new_key: Callable[..., Key], method: str) -> None:
    body = {"key": new_key().plain} if method == "POST" else None
    answer = browser.request(method, "/dashboard/session", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "wrong_origin")


@pytest.mark.parametrize(
    "cookie", ["", "=", ";;", f"{COOKIE}=", f"{COOKIE}=x", f'{COOKIE}="\\', f"{COOKIE}=ä", "a=\x01"]
)
def test_cookies_that_are_no_session_are_nobodys(browser: TestClient, cookie: str) -> None:
    answer = browser.get("/v1/files", headers={b"Cookie": cookie.encode()})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_the_page_and_its_files_may_load_nothing_from_elsewhere(browser: TestClient) -> None:
    page = browser.get("/")
    named = re.findall(r'(?:src|href)="(/dashboard/[^"]+)"', page.text)
    assert named
    for path in ["/", *named, *(f"/dashboard/{file.name}" for file in STATIC.iterdir())]:
        answer = browser.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-security-policy"].startswith("default-src 'none'"), path
        assert answer.headers["x-content-type-options"] == "nosniff", path
    scripts = [file.read_text() for file in STATIC.glob("*.js")]
    imported = {name for text in scripts for name in re.findall(r'(?:from |import\()"\./([^"]+)"', text)}
    assert len(imported) > 10
    assert imported <= {file.name for file in STATIC.iterdir()}


def test_the_pages_files_are_part_of_the_package() -> None:
    packed = {file.name for file in files("service.dashboard").joinpath("static").iterdir()}
    assert packed == {file.name for file in STATIC.iterdir()}


@pytest.mark.parametrize(
    "path", ["/dashboard/", "/dashboard/none.js", "/dashboard/../app.py", "/dashboard/%2e%2e/session.py"]
)
def test_nothing_else_is_served(browser: TestClient, path: str) -> None:
    assert browser.get(path).status_code == 404
