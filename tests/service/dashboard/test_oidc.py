"""Signing in with a provider: who gets in, what is no proof of who somebody is, and how sessions end."""

import hmac
import json
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import psycopg
import pytest
from fastapi.testclient import TestClient
from joserfc import jwt
from joserfc.util import json_b64encode
from sqlalchemy import text

from service.accounts import repository
from service.accounts.service import create_project, default_project, organization_for
from service.administration import service as administration
from service.app import check_settings, create_app
from service.core.db import transaction
from service.dashboard import oidc
from service.dashboard.endpoints import ATTEMPT
from service.dashboard.session import COOKIE, HEADER
from service.embedded.servers import Servers
from service.settings import MissingSettingError, settings
from tests import oidc as provider_of_tests
from tests.conftest import Key
from tests.oidc import CLIENT, SECRET, Provider

MARK = {HEADER: "1"}
HOME = "https://troll.example"
EMAIL = "ada@acme.example"


@pytest.fixture
def provider(database: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    with provider_of_tests.serve() as provider:
        configure(
            monkeypatch,
            public_url=HOME,
            oidc_issuer=provider.origin,
            oidc_client_id=CLIENT,
            oidc_client_secret=SECRET,
            oidc_organization="acme",
        )
        yield provider
    oidc._known.clear()
    monkeypatch.undo()
    settings.cache_clear()


def configure(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"TROLL_{name.upper()}", value)
    settings.cache_clear()


@pytest.fixture
def browser(provider: Provider) -> TestClient:
    return TestClient(create_app(), base_url=HOME, follow_redirects=False)


def invite(email: str = EMAIL, *, organization: str = "acme", role: str | None = "member") -> str:
    """A user, with a role in the default project or as an owner of the organisation."""
    with transaction("troll_operator") as session:
        owner = organization_for(session, organization)
        in_organization = "owner" if role == "owner" else "reader"
        user = administration.add_user(session, owner.id, email=email, name="Ada", role=in_organization)
        if role not in (None, "owner"):
            administration.add_member(session, default_project(owner.id), user_id=user.id, email=None, role=str(role))
        return user.id


def at_provider(browser: TestClient, query: str = "") -> str:
    """Where the provider sends the browser back to, once it has begun."""
    begun = browser.get(f"/dashboard/oidc/start{query}")
    assert begun.status_code == 303, begun.text
    with httpx2.Client(trust_env=False) as outside:
        return outside.get(begun.headers["location"]).headers["location"].removeprefix(HOME)


def sign_in(browser: TestClient, query: str = "") -> str:
    """The page that is shown in the end."""
    answer = browser.get(at_provider(browser, query))
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def refusal(browser: TestClient, query: str = "") -> str:
    """Why somebody is not let in, of whom no session is made."""
    page = sign_in(browser, query)
    assert COOKIE not in browser.cookies
    assert page.startswith("/#/sign-in/"), page
    return page.removeprefix("/#/sign-in/")


def may_read(browser: TestClient) -> bool:
    return browser.get("/v1/files").status_code == 200


# Who gets in


def test_an_invited_person_signs_in_and_out(browser: TestClient) -> None:
    invite()
    assert browser.get("/dashboard/session").json() == {"signed_in": False, "single_sign_on": True}
    assert sign_in(browser) == "/#/jobs"
    assert browser.get("/dashboard/session").json() == {"signed_in": True, "single_sign_on": True}
    assert ATTEMPT not in browser.cookies
    assert may_read(browser)
    person = browser.get("/dashboard/person").json()
    assert (person["email"], person["organization"], person["role"]) == (EMAIL, "acme", "member")
    kept = browser.cookies[COOKIE]
    assert browser.delete("/dashboard/session", headers=MARK).status_code == 204
    assert not may_read(browser)
    # Whoever copied the cookie is signed out too.
    assert browser.get("/v1/files", headers={"Authorization": f"Bearer {kept}"}).status_code == 401


def test_cookies_are_for_no_script_and_no_other_site(browser: TestClient) -> None:
    invite()
    begun = browser.get("/dashboard/oidc/start")
    back = httpx2.get(begun.headers["location"], trust_env=False).headers["location"].removeprefix(HOME)
    ended = browser.get(back)
    given = [*begun.headers.get_list("set-cookie"), *ended.headers.get_list("set-cookie")]
    attributes = {
        cookie.partition("=")[0]: {part.strip().lower() for part in cookie.split(";")[1:]}
        for cookie in given
        if '=""' not in cookie
    }
    assert attributes[COOKIE] == {"httponly", "path=/", "samesite=strict", "secure"}
    assert {"httponly", "samesite=lax", "secure", f"path={oidc.CALLBACK}"} <= attributes[ATTEMPT]


@pytest.mark.usefixtures("provider")
def test_cookies_are_for_tls_alone_behind_a_proxy_that_does_not_tell() -> None:
    invite()
    behind = TestClient(create_app(), base_url="http://api:8000", follow_redirects=False)
    begun = behind.get("/dashboard/oidc/start")
    back = httpx2.get(begun.headers["location"], trust_env=False).headers["location"].removeprefix(HOME)
    # Like the browser, which sends to the proxy what is for TLS alone.
    cookies = {"cookie": begun.headers["set-cookie"].partition(";")[0]}
    ended = behind.get(back, headers=cookies)
    (session,) = [each for each in ended.headers.get_list("set-cookie") if each.startswith(f"{COOKIE}=")]
    key = session.partition(";")[0]
    project = behind.get("/dashboard/person", headers={"cookie": key}).json()["project_id"]
    moved = behind.post("/dashboard/session/project", json={"project_id": project}, headers=MARK | {"cookie": key})
    assert moved.status_code == 204, moved.text
    for cookie in (session, moved.headers["set-cookie"]):
        assert "secure" in {part.strip().lower() for part in cookie.split(";")}


def test_what_the_provider_is_sent_binds_the_answer_to_the_browser(browser: TestClient) -> None:
    sent = [parse_qs(urlsplit(browser.get("/dashboard/oidc/start").headers["location"]).query) for _ in range(2)]
    own = ("state", "nonce", "code_challenge")
    assert {name: values for name, values in sent[0].items() if name not in own} == {
        "response_type": ["code"],
        "client_id": [CLIENT],
        "redirect_uri": [HOME + oidc.CALLBACK],
        "scope": ["openid email profile"],
        "code_challenge_method": ["S256"],
    }
    assert all(sent[0][name] != sent[1][name] and len(sent[0][name][0]) == 43 for name in own)


def test_who_was_not_invited_stays_outside(browser: TestClient) -> None:
    with transaction("troll_operator") as session:
        organization_for(session, "acme")
    assert refusal(browser) == "not_invited"


@pytest.mark.parametrize(("provision", "may_write"), [("reader", False), ("member", True)])
def test_where_the_operator_lets_everybody_in_people_get_the_role_that_was_set(
    browser: TestClient, monkeypatch: pytest.MonkeyPatch, provision: str, may_write: bool
) -> None:
    configure(monkeypatch, oidc_provision=provision)
    with transaction("troll_operator") as session:
        organization_for(session, "acme")
    assert sign_in(browser) == "/#/jobs"
    file = {"file": ("a.jsonl", b'{"messages": [{"role": "user", "content": "1"}]}\n')}
    answer = browser.post("/v1/files", data={"purpose": "fine-tune"}, files=file, headers=MARK)
    assert answer.status_code == (200 if may_write else 403)


def test_who_was_removed_does_not_come_back_by_signing_in(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, oidc_provision="member")
    user_id = invite()
    assert sign_in(browser) == "/#/jobs"
    with transaction("troll_operator") as session:
        administration.delete_user(session, administration.user(session, user_id))
    assert not may_read(browser)
    browser.cookies.clear()
    assert refusal(browser) == "not_invited"


EMAILS: list[tuple[dict[str, Any], str]] = [
    ({"email_verified": False}, "unverified"),
    ({"email_verified": None}, "unverified"),
    ({"email_verified": "false"}, "unverified"),
    ({"email": None}, "unverified"),
    ({"email": ["ada@acme.example"]}, "unverified"),
    ({"email": "ada@evil.example"}, "not_allowed"),
    ({"email": "ada@acme.example.evil.example"}, "not_allowed"),
    ({"email": "ada@acme.example@evil.example"}, "not_allowed"),
]


def test_an_email_counts_only_if_it_is_verified_and_of_an_allowed_domain(
    browser: TestClient, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, oidc_allowed_domains=json.dumps(["ACME.example"]), oidc_provision="member")
    invite()
    known = provider.person
    for said, code in EMAILS:
        provider.person = known | said
        assert refusal(browser) == code, said
    provider.person = known
    assert sign_in(browser) == "/#/jobs"


def test_another_person_who_got_the_address_is_not_who_had_it(browser: TestClient, provider: Provider) -> None:
    invite()
    sign_in(browser)
    browser.cookies.clear()
    provider.person["sub"] = "2"
    assert refusal(browser) == "not_allowed"


def test_somebody_whose_address_changed_is_who_they_were(browser: TestClient, provider: Provider) -> None:
    user_id = invite()
    sign_in(browser)
    provider.person["email"] = "ada.lovelace@acme.example"
    assert sign_in(browser) == "/#/jobs"
    with transaction("troll_operator") as session:
        user = administration.user(session, user_id)
        assert (user.email, user.identity) == (EMAIL, f"{provider.origin} 1")


def test_a_claim_names_the_organisation_and_it_is_one(
    browser: TestClient, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, oidc_organization_claim="groups", oidc_provision="member")
    with transaction("troll_operator") as session:
        organization_for(session, "acme"), organization_for(session, "globex")
    for claim in (["acme", "globex"], "none", None, 1):
        provider.person["groups"] = claim
        assert refusal(browser) == "not_allowed", claim
    for claim in ("globex", ["/globex", "staff"]):
        provider.person["groups"] = claim
        assert sign_in(browser) == "/#/jobs"
        assert browser.get("/dashboard/person").json()["organization"] == "globex"


def test_a_claim_decides_the_role_each_time(
    browser: TestClient, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, oidc_role_claim="roles", oidc_provision="reader")
    invite(role="reader")
    roles = []
    for given in (["member", "else"], "owner", ["reader"]):
        provider.person["roles"] = given
        sign_in(browser)
        roles.append(browser.get("/dashboard/person").json()["role"])
    assert roles == ["member", "owner", "reader"]
    provider.person["roles"] = ["else"]
    browser.cookies.clear()
    assert refusal(browser) == "not_allowed"


def test_who_is_in_no_project_is_told(browser: TestClient) -> None:
    invite(role=None)
    assert refusal(browser) == "not_allowed"


def test_somebody_new_may_come_in_two_windows_at_once(
    browser: TestClient, provider: Provider, database: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    invite("somebody-else@acme.example")
    configure(monkeypatch, oidc_provision="member")
    provider.person = {"sub": "2", "email": "new@acme.example", "email_verified": True}
    reached, go_on, first_only = threading.Event(), threading.Event(), threading.Lock()
    was_removed = repository.was_removed

    def held_up(*given: Any) -> bool:
        if first_only.acquire(blocking=False):
            reached.set()
            assert go_on.wait(60)
        return was_removed(*given)

    monkeypatch.setattr(repository, "was_removed", held_up)
    other = TestClient(create_app(), base_url=HOME, follow_redirects=False)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(sign_in, browser)
        assert reached.wait(60)
        second = threads.submit(sign_in, other)
        try:
            while not second.done() and not waits_for_a_lock(database):
                time.sleep(0.01)
        finally:
            go_on.set()
    assert (first.result(), second.result()) == ("/#/jobs", "/#/jobs")
    assert browser.get("/dashboard/person").json() == other.get("/dashboard/person").json()


def waits_for_a_lock(database: Servers) -> bool:
    with psycopg.connect(database.database_owner_url) as owner:
        return (
            owner.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone() is not None
        )


# What is no proof


@pytest.mark.parametrize(
    "claims",
    [{"name": "A\0da"}, {"email": f"a\0{EMAIL}"}, {"sub": "1\0"}, {"groups": ["acme", "a\0"]}],
    ids=lambda claims: next(iter(claims)),
)
def test_a_claim_that_cannot_be_stored_is_refused(
    browser: TestClient, provider: Provider, monkeypatch: pytest.MonkeyPatch, claims: dict[str, Any]
) -> None:
    invite("somebody-else@acme.example")
    configure(monkeypatch, oidc_provision="member", oidc_organization_claim="groups")
    provider.person |= {"groups": ["acme"]} | claims
    assert refusal(browser) == "refused"


def changed(**claims: Any) -> Callable[[Provider], None]:
    def change(provider: Provider) -> None:
        provider.change = lambda made: made.update(claims)

    return change


def shifted(name: str, seconds: int) -> Callable[[Provider], None]:
    def change(provider: Provider) -> None:
        provider.change = lambda made: made.update({name: int(time.time()) + seconds})

    return change


def without(name: str) -> Callable[[Provider], None]:
    def change(provider: Provider) -> None:
        provider.change = lambda made: made.pop(name)

    return change


def signed(sign: Callable[[Provider, dict[str, Any]], str]) -> Callable[[Provider], None]:
    def change(provider: Provider) -> None:
        provider.sign = sign

    return change


def compact(header: dict[str, Any], claims: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    content = b".".join(json_b64encode(part) for part in (header, claims))
    return f"{content.decode()}.{urlsafe_b64encode(sign(content)).rstrip(b'=').decode()}"


def unsigned(provider: Provider, claims: dict[str, Any]) -> str:
    return compact({"alg": "none", "kid": provider.keys[0].kid}, claims, lambda content: b"")


def with_the_public_key_as_secret(provider: Provider, claims: dict[str, Any]) -> str:
    """The confusion of algorithms: everybody knows that key."""
    public = provider.keys[0].as_pem(private=False)
    header = {"alg": "HS256", "kid": provider.keys[0].kid}
    return compact(header, claims, lambda content: hmac.digest(public, content, "sha256"))


def with_the_clients_secret(provider: Provider, claims: dict[str, Any]) -> str:
    return compact({"alg": "HS256"}, claims, lambda content: hmac.digest(SECRET.encode(), content, "sha256"))


def with_a_key_of_its_own(provider: Provider, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "RS256", "kid": provider.keys[0].kid}, claims, provider_of_tests.keys()[2])


def with_a_key_that_it_brings(provider: Provider, claims: dict[str, Any]) -> str:
    own = provider_of_tests.keys()[2]
    return jwt.encode({"alg": "RS256", "jwk": own.as_dict(private=False)}, claims, own)


def cut(provider: Provider, claims: dict[str, Any]) -> str:
    return provider.signed(claims)[:-8] + "AAAAAAAA"


FORGERIES: dict[str, Callable[[Provider], None]] = {
    "another nonce": changed(nonce="x"),
    "no nonce": without("nonce"),
    "another audience": changed(aud="another"),
    "several audiences and none authorised": changed(aud=[CLIENT, "another"]),
    "authorised for another": changed(azp="another"),
    "no audience": without("aud"),
    "another issuer": changed(iss="https://evil.example"),
    "no issuer": without("iss"),
    "no subject": without("sub"),
    "expired": shifted("exp", -oidc.SKEW_SECONDS - 30),
    "no expiry": without("exp"),
    "made in the future": shifted("iat", oidc.SKEW_SECONDS + 30),
    "not good yet": shifted("nbf", oidc.SKEW_SECONDS + 30),
    "of another access token": changed(at_hash="x"),
    "unsigned": signed(unsigned),
    "signed with the public key": signed(with_the_public_key_as_secret),
    "signed with the client's secret": signed(with_the_clients_secret),
    "signed with another key": signed(with_a_key_of_its_own),
    "signed with a key that it brings": signed(with_a_key_that_it_brings),
    "another signature": signed(cut),
    "no token": signed(lambda provider, claims: "x.y"),
}


def test_a_token_that_is_not_the_providers_for_this_browser_lets_nobody_in(
    browser: TestClient, provider: Provider
) -> None:
    invite()
    found = {}
    for name, forge in FORGERIES.items():
        provider.change, provider.sign = Provider().change, Provider().sign
        forge(provider)
        found[name] = refusal(browser)
    assert found == dict.fromkeys(FORGERIES, "refused")


def test_a_clock_that_is_a_little_off_does_no_harm(browser: TestClient, provider: Provider) -> None:
    invite()
    for change in (shifted("iat", 45), shifted("exp", -45), shifted("nbf", 45)):
        change(provider)
        assert sign_in(browser) == "/#/jobs"


def test_what_a_browser_has_not_begun_is_not_finished_there(browser: TestClient, provider: Provider) -> None:
    invite()
    back = at_provider(browser)
    attempt = browser.cookies[ATTEMPT]
    browser.cookies.clear()
    # Somebody else's browser, which is led to the address, or has begun something of its own.
    assert browser.get(back).headers["location"] == "/#/sign-in/expired"
    own = at_provider(browser)
    assert browser.get(back).headers["location"] == "/#/sign-in/expired"
    assert browser.get(own).headers["location"] == "/#/sign-in/expired"
    browser.cookies.set(ATTEMPT, attempt)
    assert browser.get(back.replace("state=", "state=x")).headers["location"] == "/#/sign-in/expired"
    assert "/token" not in provider.asked
    assert COOKIE not in browser.cookies


def test_a_way_back_is_gone_once(browser: TestClient) -> None:
    invite()
    back, attempt = at_provider(browser), browser.cookies[ATTEMPT]
    assert browser.get(back).headers["location"] == "/#/jobs"
    browser.cookies.clear()
    browser.cookies.set(ATTEMPT, attempt)
    assert browser.get(back).headers["location"] == "/#/sign-in/expired"
    assert COOKIE not in browser.cookies


def test_a_code_of_another_attempt_is_not_taken(browser: TestClient) -> None:
    """The provider holds it against the verifier, which that browser has not."""
    invite()
    stolen = parse_qs(urlsplit(at_provider(browser)).query)["code"][0]
    browser.cookies.clear()
    own = urlsplit(at_provider(browser))
    state = parse_qs(own.query)["state"][0]
    answer = browser.get(f"{own.path}?code={stolen}&state={state}")
    assert answer.headers["location"] == "/#/sign-in/refused"


def test_who_says_no_at_the_provider_is_told_and_nothing_of_its_words_is_shown(browser: TestClient) -> None:
    state = parse_qs(urlsplit(at_provider(browser)).query)["state"][0]
    answer = browser.get(f"{oidc.CALLBACK}?state={state}&error=<script>&error_description=<script>")
    assert answer.headers["location"] == "/#/sign-in/refused"


PAGES = [
    ("job/ftjob-1", "/#/job/ftjob-1"),
    ("https://evil.example/", "/#/https://evil.example/"),
    ("//evil.example", "/#///evil.example"),
    ("\\\\evil.example", "/#/jobs"),
    ("x%0d%0aset-cookie:a=b", "/#/jobs"),
    ("", "/#/jobs"),
]


def test_nobody_is_led_to_another_site(browser: TestClient) -> None:
    invite()
    for next, page in PAGES:
        location = sign_in(browser, f"?next={next}")
        assert (location, urlsplit(location)[:3]) == (page, ("", "", "/"))


def test_a_cookie_that_somebody_planted_is_not_the_session(browser: TestClient, new_key: Callable[..., Key]) -> None:
    invite()
    planted = new_key("globex").plain
    assert browser.post("/dashboard/session", json={"key": planted}, headers=MARK).status_code == 204
    sign_in(browser)
    assert browser.cookies[COOKIE] != planted
    assert browser.get("/dashboard/person").json()["organization"] == "acme"


# The provider


def test_a_provider_that_changes_its_keys_is_asked_for_them(browser: TestClient, provider: Provider) -> None:
    invite()
    sign_in(browser)
    provider.rotate()
    assert sign_in(browser) == "/#/jobs"
    assert provider.asked.count("/keys") == 2
    sign_in(browser)
    assert provider.asked.count("/keys") == 2


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_provider_that_is_away_is_told_of_and_keys_work_on(
    browser: TestClient, provider: Provider, new_key: Callable[..., Key], when: str
) -> None:
    if when == "meanwhile":
        back = at_provider(browser)
    provider.down = True
    answer = browser.get("/dashboard/oidc/start" if when == "before" else back)
    assert (answer.status_code, answer.headers["location"]) == (303, "/#/sign-in/unavailable")
    assert browser.post("/dashboard/session", json={"key": new_key().plain}, headers=MARK).status_code == 204
    assert may_read(browser)


def test_a_provider_that_does_not_answer_is_not_waited_for(
    browser: TestClient, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "PROVIDER_SECONDS", 0.05)
    provider.delay = 0.5
    assert browser.get("/dashboard/oidc/start").headers["location"] == "/#/sign-in/unavailable"


def test_a_provider_that_says_of_itself_what_cannot_be_is_not_used(browser: TestClient, provider: Provider) -> None:
    for provider.metadata in (
        {"issuer": "https://evil.example"},
        {"token_endpoint": "http://evil.example/token"},
        {"jwks_uri": "http://evil.example/keys"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"jwks_uri": 1},
        {"issuer": None},
    ):
        assert browser.get("/dashboard/oidc/start").headers["location"] == "/#/sign-in/unavailable", provider.metadata


def test_without_a_provider_there_is_none(database: Servers) -> None:
    with TestClient(create_app(), base_url=HOME) as client:
        assert client.get("/dashboard/session").json() == {"signed_in": False, "single_sign_on": False}
        assert client.get("/dashboard/oidc/start").status_code == 404
        assert client.get(oidc.CALLBACK).status_code == 404


def test_a_setting_that_is_missing_is_named_before_anybody_comes(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_settings()
    for name in ("OIDC_ORGANIZATION", "OIDC_CLIENT_SECRET", "OIDC_CLIENT_ID", "PUBLIC_URL"):
        monkeypatch.delenv(f"TROLL_{name}")
        settings.cache_clear()
        with pytest.raises(MissingSettingError, match=f"TROLL_{name}"):
            check_settings()


def test_the_clients_secret_may_lie_in_a_file(
    browser: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    invite()
    file = tmp_path_factory.mktemp("secret") / "oidc"
    file.write_text(SECRET + "\n")
    monkeypatch.delenv("TROLL_OIDC_CLIENT_SECRET")
    configure(monkeypatch, oidc_client_secret_file=str(file))
    assert sign_in(browser) == "/#/jobs"


# Sessions


def test_a_session_ends_with_its_time(browser: TestClient, database: Servers) -> None:
    invite()
    sign_in(browser)
    assert may_read(browser)
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        (left,) = owner.execute("SELECT expires_at - created_at FROM api_keys WHERE is_session").fetchone() or (None,)
        owner.execute("UPDATE api_keys SET expires_at = now() WHERE is_session")
    assert left.total_seconds() == 12 * 3600
    assert not may_read(browser)


@pytest.mark.parametrize("what", ["in the project", "in the organisation", "membership", "person"])
def test_a_session_ends_when_its_person_is_somebody_else(browser: TestClient, what: str) -> None:
    user_id = invite()
    sign_in(browser)
    assert may_read(browser)
    with transaction("troll_operator") as session:
        user = administration.user(session, user_id)
        project_id = default_project(user.organization_id)
        if what == "in the project":
            administration.change_member(session, project_id, user_id, "owner")
        elif what == "in the organisation":
            administration.change_user(session, user_id, "owner")
        elif what == "membership":
            administration.remove_member(session, project_id, user_id)
        else:
            administration.delete_user(session, user)
    assert not may_read(browser)


def test_a_person_goes_to_the_projects_that_are_theirs_and_no_other(browser: TestClient) -> None:
    user_id = invite()
    with transaction("troll_operator") as session:
        owner = organization_for(session, "acme")
        mine, others = (create_project(session, owner.id, name).id for name in ("mine", "others"))
        administration.add_member(session, mine, user_id=user_id, email=None, role="reader")
    sign_in(browser)
    before = browser.cookies[COOKIE]
    projects = browser.get("/dashboard/person").json()["projects"]
    assert [(each["name"], each["role"]) for each in projects] == [("Default project", "member"), ("mine", "reader")]
    path = "/dashboard/session/project"
    assert browser.post(path, json={"project_id": others}, headers=MARK).status_code == 404
    assert browser.post(path, json={"project_id": mine}).status_code == 403
    assert browser.post(path, json={"project_id": mine}, headers=MARK).status_code == 204
    person = browser.get("/dashboard/person").json()
    assert (person["project_id"], person["role"]) == (mine, "reader")
    assert browser.get("/v1/files", headers={"Authorization": f"Bearer {before}"}).status_code == 401


def test_a_person_makes_keys_of_their_own_that_do_no_more_than_they(browser: TestClient) -> None:
    invite()
    sign_in(browser)
    assert browser.post("/dashboard/keys", json={"name": "laptop"}).status_code == 403
    too_much = browser.post("/dashboard/keys", json={"name": "laptop", "scopes": ["manage"]}, headers=MARK)
    assert (too_much.status_code, too_much.json()["error"]["param"]) == (400, "scopes")
    made = browser.post("/dashboard/keys", json={"name": "laptop"}, headers=MARK).json()
    listed = browser.get("/dashboard/keys").json()["data"]
    assert [(each["id"], each["name"], "value" in each) for each in listed] == [(made["id"], "laptop", False)]
    with TestClient(create_app(), headers={"Authorization": f"Bearer {made['value']}"}) as client:
        assert client.get("/v1/files").status_code == 200
        assert client.delete("/v1/files/file-x").status_code == 403
        # A key is no session: it makes no others.
        cookies = {COOKIE: made["value"]}
        client.cookies.update(cookies)
        assert client.post("/dashboard/keys", json={"name": "x"}, headers=MARK).status_code == 404
        assert browser.delete(f"/dashboard/keys/{made['id']}", headers=MARK).status_code == 204
        assert client.get("/v1/files").status_code == 401
    assert browser.delete(f"/dashboard/keys/{made['id']}", headers=MARK).status_code == 404


def test_sessions_are_shown_among_no_keys_and_signing_in_is_written_down(
    browser: TestClient, new_key: Callable[..., Key], client_for: Callable[[Key], TestClient]
) -> None:
    invite()
    sign_in(browser)
    browser.delete("/dashboard/session", headers=MARK)
    sign_in(browser)
    admin = new_key(admin=True)
    client = client_for(admin)
    project = default_project(admin.organization_id)
    assert client.get(f"/v1/organization/projects/{project}/api_keys").json()["data"] == []
    with transaction("troll_operator") as session:
        assert [key.id for key, _, _ in repository.keys(session)] == [admin.id]
    events = client.get("/v1/organization/audit_logs?actor_emails[]=" + EMAIL).json()["data"]
    assert [each["type"] for each in events] == ["login.succeeded", "logout.succeeded", "login.succeeded"]


def test_a_name_of_an_organisation_shows_that_one_alone(database: Servers, new_key: Callable[..., Key]) -> None:
    """What lets a sign-in find its organisation opens nothing else of it."""
    new_key("acme"), new_key("globex")
    with transaction("troll_api") as session:
        session.execute(text("SELECT set_config('app.signing_in_to', 'acme', true)"))
        assert session.scalars(text("SELECT name FROM organizations")).all() == ["acme"]
        assert session.scalars(text("SELECT id FROM projects UNION SELECT id FROM api_keys")).all() == []


def test_an_owner_of_the_organisation_administers_it_and_their_keys_do_not(browser: TestClient) -> None:
    invite(role="owner")
    sign_in(browser)
    access = browser.get("/dashboard/access").json()
    assert access == {
        "organization": "acme",
        "scopes": ["manage", "read", "submit"],
        "administers": True,
        "operates": False,
    }
    assert [user["email"] for user in browser.get("/v1/organization/users").json()["data"]] == [EMAIL]
    made = browser.post("/v1/organization/projects", json={"name": "vision"}, headers=MARK)
    assert made.status_code == 200, made.text
    own = browser.post("/dashboard/keys", json={"name": "mine"}, headers=MARK).json()["value"]
    with_key = browser.get("/v1/organization/users", headers={"Authorization": f"Bearer {own}"})
    assert (with_key.status_code, with_key.json()["error"]["code"]) == (403, "missing_scope")
    # What is no administrator's is done in the project at hand, as before.
    assert browser.get("/v1/files").json()["data"] == []


def test_what_an_owner_of_the_organisation_used_is_that_of_all_projects(browser: TestClient, database: Servers) -> None:
    invite(role="owner")
    sign_in(browser)
    other = browser.post("/v1/organization/projects", json={"name": "vision"}, headers=MARK).json()["id"]
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        owner.execute(
            "INSERT INTO project_gpu_usage SELECT organization_id, id, now(), 1800 FROM projects WHERE id = %s", [other]
        )
    asked: dict[str, Any] = {"start_time": int(time.time()) - 86_400, "group_by[]": "project_id", "limit": 2}
    page = browser.get("/v1/organization/usage/gpu_seconds", params=asked).json()
    assert {(each["project_id"], each["gpu_seconds"]) for day in page["data"] for each in day["results"]} == {
        (other, 1800.0)
    }


@pytest.mark.parametrize("role", ["reader", "member"])
def test_whoever_does_not_own_the_organisation_administers_nothing(browser: TestClient, role: str) -> None:
    id = invite(role=role)
    sign_in(browser)
    assert browser.get("/dashboard/access").json()["administers"] is False
    calls = [
        ("GET", "users"),
        ("GET", "projects"),
        ("GET", "admin_api_keys"),
        ("GET", "audit_logs"),
        ("GET", "workers"),
        ("GET", "queue"),
        ("POST", f"users/{id}"),
    ]
    for method, path in calls:
        body = {"role": "owner"} if method == "POST" else None
        answer = browser.request(method, f"/v1/organization/{path}", json=body, headers=MARK)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope"), path


def test_an_owner_of_a_project_alone_administers_nothing(browser: TestClient) -> None:
    id = invite(role=None)
    with transaction("troll_operator") as session:
        where = default_project(organization_for(session, "acme").id)
        administration.add_member(session, where, user_id=id, email=None, role="owner")
    sign_in(browser)
    assert browser.get("/dashboard/access").json()["administers"] is False
    assert browser.get("/v1/organization/users").status_code == 403


def test_an_owner_who_is_one_no_longer_administers_nothing(browser: TestClient) -> None:
    id = invite(role="owner")
    sign_in(browser)
    assert browser.get("/v1/organization/users").status_code == 200
    with transaction("troll_operator") as session:
        # As if the session had not been ended with the role.
        administration.user(session, id).role = "reader"
    assert browser.get("/v1/organization/users").status_code == 403


def test_another_site_changes_nothing_in_an_owners_name(browser: TestClient) -> None:
    invite(role="owner")
    sign_in(browser)
    assert browser.post("/v1/organization/projects", json={"name": "vision"}).status_code == 401
