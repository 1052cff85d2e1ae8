"""Polls that cost little: a job that is as the client knows it, and one that is waited for."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.core import live
from service.jobs import waiting
from service.settings import settings
from tests import factories
from tests.conftest import Key


@pytest.fixture
def url(client: TestClient, models_dir: Path) -> str:
    job = factories.create_job(client, factories.offer_model(models_dir))
    return f"/v1/fine_tuning/jobs/{job['id']}"


def known(client: TestClient, url: str) -> dict[str, str]:
    return {"if-none-match": client.get(url).headers["etag"]}


def test_a_poll_of_what_is_known_has_no_body(client: TestClient, url: str) -> None:
    answer = client.get(url, headers=known(client, url))
    assert (answer.status_code, answer.content) == (304, b"")


def test_a_poll_after_a_change_has_the_job(client: TestClient, url: str) -> None:
    before = known(client, url)
    client.post(f"{url}/cancel")
    answer = client.get(url, headers=before)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


def test_lists_are_conditional_too(client: TestClient, url: str) -> None:
    for path in ("/v1/fine_tuning/jobs", f"{url}/events", "/v1/files"):
        assert client.get(path, headers=known(client, path)).status_code == 304, path


@pytest.mark.parametrize("redis", ["there", "away"])
def test_a_wait_ends_with_the_change(client: TestClient, url: str, redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if redis == "away":
        monkeypatch.setattr(waiting, "READ_SECONDS", 0.3)
        monkeypatch.setattr(live, "stream", lambda owner, job_id: "nothing is ever written here")
    before, asked = known(client, url), threading.Event()
    stored = waiting.until

    async def noted(*arguments: Any) -> None:
        asked.set()
        await stored(*arguments)

    monkeypatch.setattr(waiting, "until", noted)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.get, url, params={"wait": 60}, headers=before)
        assert asked.wait(30)
        assert not answer.done()
        client.post(f"{url}/cancel")
        assert answer.result(30).json()["status"] == "cancelled"


def test_a_wait_for_nothing_ends_in_time(client: TestClient, url: str) -> None:
    assert client.get(url, params={"wait": 0.3}, headers=known(client, url)).status_code == 304
    assert client.get(url, params={"wait": 0.3}).json()["status"] == "queued"


def test_what_changed_before_the_wait_is_not_waited_for(client: TestClient, url: str) -> None:
    before = known(client, url)
    client.post(f"{url}/pause")
    assert client.get(url, params={"wait": 60}, headers=before).json()["status"] == "paused"


def test_a_job_that_has_ended_is_not_waited_for(client: TestClient, url: str) -> None:
    client.post(f"{url}/cancel")
    assert client.get(url, params={"wait": 60}).json()["status"] == "cancelled"
    assert client.get(url, params={"wait": 60}, headers=known(client, url)).status_code == 304


@pytest.mark.parametrize("wait", ["-1", "61", "x", "nan", "inf"])
def test_a_wait_has_bounds(client: TestClient, url: str, wait: str) -> None:
    answer = client.get(url, params={"wait": wait})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "wait")


def test_waits_are_streams_of_their_key(client: TestClient, url: str, api_key: Key) -> None:
    slots = {f"other-{n}": 4e9 for n in range(settings().max_streams_per_key)}
    live.client().zadd(f"seats:{api_key.id}", slots)
    answer = client.get(url, params={"wait": 60}, headers=known(client, url))
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_streams")
    live.client().zrem(f"seats:{api_key.id}", "other-0")
    client.get(url, params={"wait": 0.1})
    assert live.client().zcard(f"seats:{api_key.id}") == len(slots) - 1


def test_another_organisations_job_is_not_found(
    url: str, client_for: Callable[[Key], TestClient], new_key: Callable[..., Key]
) -> None:
    stranger = client_for(new_key("rival"))
    assert stranger.get(url, params={"wait": 60}, headers={"if-none-match": "*"}).status_code == 404
