"""The token bucket of each key, on real Redis."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis.asyncio
from fastapi.testclient import TestClient

from service.accounts import keys, repository
from service.accounts import service as accounts
from service.core import db, live
from service.core.rate_limit import LOOKUPS_PER_REQUEST, address_of
from service.settings import settings
from tests.conftest import Key


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that a busy machine holds up for a second is not away: then nobody would be limited."""
    monkeypatch.setattr(live, "ANSWER_SECONDS", 60.0)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch, database: object) -> Iterator[Callable[[int], None]]:
    """``limit(3)`` allows three requests a minute."""

    def change(requests: int) -> None:
        monkeypatch.setenv("TROLL_REQUESTS_PER_MINUTE", str(requests))
        settings.cache_clear()

    yield change
    monkeypatch.undo()
    settings.cache_clear()


def statuses(client: TestClient, count: int) -> list[int]:
    return [client.get("/v1/files").status_code for _ in range(count)]


def test_a_key_that_has_used_its_tokens_is_told_to_wait(client: TestClient, limit: Callable[[int], None]) -> None:
    limit(3)
    assert statuses(client, 3) == [200] * 3
    refusal = client.get("/v1/files")
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refusal.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refusal.headers["retry-after"]) <= 20
    assert 0 < int(refusal.headers["retry-after-ms"]) <= 20_000
    assert refusal.headers["x-request-id"].startswith("req_")


def test_every_answer_tells_what_is_left(client: TestClient, limit: Callable[[int], None]) -> None:
    limit(3)
    left = [client.get("/v1/files").headers["x-ratelimit-remaining-requests"] for _ in range(3)]
    assert left == ["2", "1", "0"]


def test_tokens_come_back_with_time(client: TestClient, limit: Callable[[int], None]) -> None:
    limit(6000)
    statuses(client, 1)
    (bucket,) = live.client().keys("rate:*")
    live.client().hset(bucket, mapping={"tokens": "0.0"})
    before = float(live.client().hget(bucket, "at") or "nan")
    live.client().hset(bucket, mapping={"at": f"{before - 1:.6f}"})
    left = int(client.get("/v1/files").headers["x-ratelimit-remaining-requests"])
    assert 99 <= left < 6000


def test_keys_have_buckets_of_their_own(
    client: TestClient, client_for: Callable[..., TestClient], new_key: Callable[..., Key], limit: Callable[[int], None]
) -> None:
    limit(1)
    other = client_for(new_key(name="other"))
    assert statuses(client, 2) == [200, 429]
    assert statuses(other, 1) == [200]


def test_health_is_not_limited(client: TestClient, limit: Callable[[int], None]) -> None:
    limit(1)
    assert [client.get("/healthz").status_code for _ in range(3)] == [200] * 3


def test_zero_is_no_limit(client: TestClient, limit: Callable[[int], None]) -> None:
    limit(0)
    assert "x-ratelimit-limit-requests" not in client.get("/v1/files").headers


def test_without_redis_nobody_is_limited(
    client: TestClient, limit: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(1)
    monkeypatch.setattr(live, "shared", lambda: redis.asyncio.Redis.from_url("unix:///nowhere/redis.sock"))
    assert statuses(client, 3) == [200] * 3


# One key, one bucket

SPELLINGS = [
    "Bearer {}",
    "bearer {}",
    "BEARER {}",
    "bEaReR {}",
    "Bearer  {}",
    "Bearer    {}",
    "Bearer \t{}",
    "Bearer {} ",
    "Bearer {}\t ",
    " Bearer {}",
]


def ask(client: TestClient, authorization: str | None, path: str = "/v1/files", name: str = "authorization") -> Any:
    client.headers.pop("authorization", None)
    sent = [] if authorization is None else [(name.encode(), authorization.encode("latin-1"))]
    return client.get(path, headers=sent)


def test_a_key_has_one_bucket_however_its_header_is_spelled(
    client_for: Callable[..., TestClient], api_key: Key, limit: Callable[[int], None]
) -> None:
    client = client_for(None)
    limit(100)
    for spelling in SPELLINGS:
        answer = ask(client, spelling.format(api_key.plain).strip(" "), name="AUTHORIZATION")
        assert answer.status_code == 200, spelling
    assert len(live.client().keys("rate:*")) == 1


def test_the_bucket_is_that_of_the_key_that_is_authenticated(
    client_for: Callable[..., TestClient], new_key: Callable[..., Key], limit: Callable[[int], None]
) -> None:
    limit(1)
    mine, other = new_key(name="mine"), new_key(name="other")
    client = client_for(None)
    client.headers.pop("authorization", None)

    def both(first: Key, second: Key) -> int:
        sent = [(b"authorization", f"Bearer {key.plain}".encode()) for key in (first, second)]
        return client.get("/v1/files", headers=sent).status_code

    assert [both(mine, other), both(mine, other), both(other, mine)] == [200, 429, 200]


# Strangers

ILL_FORMED = [None, "Bearer", "Bearer sk-troll-nonsense", "Basic dTpw", "Bearer\tx", "sk-troll-x", "Bearer \xff"]


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch, database: object) -> Iterator[Callable[[int], None]]:
    """``strangers(3)`` allows an address three requests a minute without a valid key."""

    def change(requests: int) -> None:
        monkeypatch.setenv("TROLL_STRANGER_REQUESTS_PER_MINUTE", str(requests))
        settings.cache_clear()

    yield change
    monkeypatch.undo()
    settings.cache_clear()


def wrong() -> str:
    """A key that could be right and is none's."""
    return f"Bearer {keys.generate()}"


@pytest.mark.parametrize("authorization", ILL_FORMED)
@pytest.mark.parametrize("path", ["/v1/files", "/v1/nowhere", "/v1"])
def test_who_sends_no_key_is_limited(
    client_for: Callable[..., TestClient], strangers: Callable[[int], None], authorization: str | None, path: str
) -> None:
    client = client_for(None)
    strangers(2)
    answers = [ask(client, authorization, path) for _ in range(3)]
    assert [answer.status_code == 429 for answer in answers] == [False, False, True]
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert answers[-1].headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", ["/v1/files", "/v1/nowhere"])
def test_wrong_keys_are_limited_however_many_there_are(
    client_for: Callable[..., TestClient], strangers: Callable[[int], None], path: str
) -> None:
    client = client_for(None)
    strangers(2)
    assert [ask(client, wrong(), path).status_code == 429 for _ in range(4)] == [False, False, True, True]


def test_a_right_key_works_where_wrong_ones_come_from(
    client_for: Callable[..., TestClient], new_key: Callable[..., Key], strangers: Callable[[int], None]
) -> None:
    client, used, unused = client_for(None), new_key(name="used"), new_key(name="unused")
    strangers(2)
    assert ask(client, f"Bearer {used.plain}").status_code == 200
    assert [ask(client, wrong()).status_code for _ in range(4)] == [401, 401, 429, 429]
    assert [ask(client, None).status_code for _ in range(2)] == [429, 429]
    assert [ask(client, f"Bearer {key.plain}").status_code for key in (used, unused, used)] == [200] * 3


def test_look_ups_are_limited_but_for_keys_that_were_right(
    client_for: Callable[..., TestClient],
    new_key: Callable[..., Key],
    strangers: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, used = client_for(None), new_key(name="used")
    strangers(1)
    assert ask(client, f"Bearer {used.plain}").status_code == 200
    looked_up: list[str] = []
    identify = repository.identify

    def noted(session: Any, hash: str, every: Any) -> Any:
        looked_up.append(hash)
        return identify(session, hash, every)

    monkeypatch.setattr(repository, "identify", noted)
    for _ in range(3 * LOOKUPS_PER_REQUEST):
        ask(client, wrong())
    # The first one was that of the right key.
    assert len(looked_up) == LOOKUPS_PER_REQUEST - 1
    assert ask(client, f"Bearer {used.plain}").status_code == 200


def test_a_right_key_is_not_counted_as_a_stranger(
    client_for: Callable[..., TestClient], api_key: Key, strangers: Callable[[int], None]
) -> None:
    client = client_for(None)
    strangers(1)
    assert [ask(client, f"Bearer {api_key.plain}").status_code for _ in range(5)] == [200] * 5
    assert ask(client, None).status_code == 401


def test_a_revoked_key_makes_a_stranger(
    client_for: Callable[..., TestClient], api_key: Key, strangers: Callable[[int], None]
) -> None:
    client = client_for(None)
    strangers(1)
    assert ask(client, f"Bearer {api_key.plain}").status_code == 200
    with db.transaction("troll_operator") as session:
        accounts.revoke_key(session, api_key.id)
    assert [ask(client, f"Bearer {api_key.plain}").status_code for _ in range(3)] == [401, 429, 429]


def test_zero_does_not_limit_strangers(client_for: Callable[..., TestClient], strangers: Callable[[int], None]) -> None:
    client = client_for(None)
    strangers(0)
    assert [ask(client, authorization).status_code for authorization in (None, wrong(), None)] == [401] * 3


@pytest.mark.parametrize(
    ("host", "counted_as"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_whose_requests_are_counted_together(host: str | None, counted_as: str) -> None:
    assert address_of({"client": None if host is None else (host, 1234)}) == counted_as
