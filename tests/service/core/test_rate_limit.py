"""The token bucket of each key, on real Redis."""

from collections.abc import Callable, Iterator

import pytest
import redis.asyncio
from fastapi.testclient import TestClient

from service.core import live
from service.settings import settings
from tests.conftest import Key


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
    before = float(live.client().hget(bucket, "at"))
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
