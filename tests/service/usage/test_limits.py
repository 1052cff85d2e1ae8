"""What an organisation may use: set by an operator, told when it is used up, and nobody else's business."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from service.core import forms, stream_slots
from service.core.bodies import MULTIPART_ALLOWANCE
from service.core.db import WholeOrganization, tenant, transaction
from service.core.errors import DomainError
from service.exports import service as exports
from service.exports.schemas import CreateExport
from service.jobs import repository as jobs
from service.jobs.models import Job
from service.settings import settings
from service.uploads import service as uploads
from service.uploads.schemas import CreateUpload
from service.usage import meter, repository, service
from service.webhooks import service as webhooks
from service.webhooks.schemas import CreateEndpoint
from tests import factories
from tests.conftest import Key

ROWS = factories.jsonl(factories.rows(4))
Limit = Callable[..., None]


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    for known in (service._remembered, service._told_to_ask):
        known.clear()
    yield
    for known in (service._remembered, service._told_to_ask):
        known.clear()


@pytest.fixture
def limit(api_key: Key) -> Limit:
    """``limit(storage_bytes=100)`` limits ``acme``."""

    def change(**limits: int | None) -> None:
        with transaction("troll_operator") as session:
            repository.set_limits(session, api_key.organization_id, limits)

    return change


@pytest.fixture
def other(client_for: Callable[[Key | None], TestClient], new_key: Callable[..., Key]) -> TestClient:
    """A client of another organisation."""
    return client_for(new_key(organization="globex"))


def send(client: TestClient, data: bytes = ROWS) -> Any:
    return client.post("/v1/files", files={"file": ("rows.jsonl", data)}, data={"purpose": "fine-tune"})


def announce(client: TestClient, size: int) -> Any:
    body = {"bytes": size, "filename": "rows.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    return client.post("/v1/uploads", json=body)


def told(answer: Any) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["type"], error["code"]


EXHAUSTED = (429, "insufficient_quota", "insufficient_quota")


def test_a_file_beyond_the_storage_is_refused_and_nothing_of_it_is_kept(
    client: TestClient, other: TestClient, limit: Limit, data_dir: Path
) -> None:
    limit(storage_bytes=2 * len(ROWS))
    first, second = send(client), send(client)
    assert (first.status_code, second.status_code) == (200, 200)
    before = set((data_dir / "files").iterdir())
    refused = send(client)
    assert told(refused) == EXHAUSTED
    assert refused.headers["x-should-retry"] == "false"
    assert f"stores {2 * len(ROWS)} of the {2 * len(ROWS)} bytes" in refused.json()["error"]["message"]
    assert set((data_dir / "files").iterdir()) == before
    assert send(other).status_code == 200
    client.delete(f"/v1/files/{first.json()['id']}")
    assert send(client).status_code == 200


def test_of_two_files_at_once_only_one_gets_the_last_bytes(client: TestClient, limit: Limit) -> None:
    limit(storage_bytes=len(ROWS) + len(ROWS) // 2)
    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(answer.status_code for answer in pool.map(lambda _: send(client), range(4)))
    assert statuses == [200, 429, 429, 429]


def test_an_announced_upload_has_its_room(client: TestClient, limit: Limit) -> None:
    limit(storage_bytes=2 * len(ROWS))
    upload = announce(client, len(ROWS) + 1).json()
    assert told(send(client)) == EXHAUSTED
    assert told(announce(client, len(ROWS))) == EXHAUSTED
    client.post(f"/v1/uploads/{upload['id']}/cancel")
    assert send(client).status_code == 200


def test_an_upload_that_was_announced_can_be_completed(client: TestClient, limit: Limit, api_key: Key) -> None:
    limit(storage_bytes=len(ROWS))
    upload = announce(client, len(ROWS)).json()
    part = client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": ("part", ROWS)}).json()
    done = client.post(f"/v1/uploads/{upload['id']}/complete", json={"part_ids": [part["id"]]})
    assert done.json()["status"] == "completed"
    with tenant(WholeOrganization(api_key.organization_id)) as session:
        assert repository.stored_bytes(session, api_key.organization_id) == len(ROWS)


def test_checkpoints_and_results_count_as_stored(client: TestClient, limit: Limit, models_dir: Path) -> None:
    body = factories.job_body(client, factories.offer_model(models_dir))
    job = client.post("/v1/fine_tuning/jobs", json=body).json()
    limit(storage_bytes=1000_000)
    with transaction("troll_worker") as session:
        session.execute(update(Job).where(Job.id == job["id"]).values(stored_bytes=1000_000))
    assert told(send(client)) == EXHAUSTED
    assert told(client.post("/v1/fine_tuning/jobs", json=body)) == EXHAUSTED


@pytest.mark.parametrize("way", ["file", "upload"])
def test_one_file_may_be_so_large(client: TestClient, other: TestClient, limit: Limit, way: str) -> None:
    limit(upload_bytes=len(ROWS) - 1)
    ways = {"file": send, "upload": lambda who: announce(who, len(ROWS))}
    refused = ways[way](client)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413 if way == "file" else 400, "file_too_large")
    assert ways[way](other).status_code == 200
    limit(upload_bytes=len(ROWS))
    assert ways[way](client).status_code == 200


def test_so_many_jobs_may_wait(client: TestClient, other: TestClient, limit: Limit, models_dir: Path) -> None:
    model = factories.offer_model(models_dir)
    limit(queued_jobs=1)
    factories.create_job(client, model)
    refused = client.post("/v1/fine_tuning/jobs", json=factories.job_body(client, model))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "job_quota_exceeded")
    factories.create_job(other, model)
    limit(queued_jobs=None)
    factories.create_job(client, model)


def test_jobs_that_are_paused_before_they_begin_make_no_room(
    client: TestClient, limit: Limit, models_dir: Path
) -> None:
    model = factories.offer_model(models_dir)
    limit(queued_jobs=1)
    path = f"/v1/fine_tuning/jobs/{factories.create_job(client, model)['id']}"
    assert client.post(f"{path}/pause").json()["status"] == "paused"
    refused = client.post("/v1/fine_tuning/jobs", json=factories.job_body(client, model))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "job_quota_exceeded")
    assert client.post(f"{path}/resume").json()["status"] == "queued"


@pytest.mark.parametrize("what", ["uploads", "webhook endpoints", "exports"])
def test_two_at_once_are_no_more_than_one_may_have(
    api_key: Key, monkeypatch: pytest.MonkeyPatch, models_dir: Path, what: str
) -> None:
    monkeypatch.setattr(uploads, "MAX_PENDING", 1)
    monkeypatch.setattr(webhooks, "MAX_ENDPOINTS", 1)
    monkeypatch.setattr(exports, "MAX_OPEN", 1)
    model = factories.offer_model(models_dir)
    upload = CreateUpload(bytes=1, filename="a", mime_type="text/plain", purpose="fine-tune")
    endpoint = CreateEndpoint(name="a", url="https://example.com/", event_types=["fine_tuning.job.failed"])
    who: Any = api_key
    making: dict[str, Callable[[Any], Any]] = {
        "uploads": lambda session: uploads.create(session, who, upload),
        "webhook endpoints": lambda session: webhooks.create(session, who, endpoint),
        "exports": lambda session: exports.create(session, who, model, CreateExport(format="huggingface")),
    }
    make = making[what]

    def second() -> None:
        with tenant(api_key) as session:
            make(session)

    with ThreadPoolExecutor() as threads:
        with tenant(api_key) as session:
            make(session)
            late = threads.submit(second)
            wait([late], timeout=0.5)
        with pytest.raises(DomainError):
            late.result(30)


def test_a_file_for_which_there_is_no_room_is_refused_before_it_is_read(
    client: TestClient, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(storage_bytes=1000)

    async def read(*_: Any, **__: Any) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(forms, "read", read)
    large = {"file": ("a.jsonl", ROWS + b" " * 2 * MULTIPART_ALLOWANCE)}
    assert told(client.post("/v1/files", data={"purpose": "fine-tune"}, files=large)) == EXHAUSTED


def test_so_many_jobs_may_run(client: TestClient, other: TestClient, limit: Limit, models_dir: Path) -> None:
    model = factories.offer_model(models_dir)
    own = [factories.create_job(client, model)["id"] for _ in range(3)]
    others = [factories.create_job(other, model)["id"] for _ in range(2)]
    limit(running_jobs=2)
    claimed = []
    for _ in range(6):
        with transaction("troll_worker") as session:
            job = jobs.claim(session, worker="w", lease=timedelta(seconds=60), max_running=1)
            claimed.append(job.id if job else None)
    assert set(claimed) - {None} == {own[0], own[1], others[0]}, "the others may have one, as the installation says"


def test_requests_of_a_minute_are_those_of_the_organisation(
    client: TestClient, other: TestClient, limit: Limit, api_key: Key
) -> None:
    limit(requests_a_minute=3)
    client.get("/v1/files")
    service._remembered.clear()
    service.remembered(api_key.organization_id)
    answers = [client.get("/v1/files") for _ in range(4)]
    assert answers[-1].status_code == 429
    assert "more than 3 requests a minute" in answers[-1].json()["error"]["message"]
    assert other.get("/v1/files").headers["x-ratelimit-limit-requests"] == str(settings().requests_per_minute)


def test_a_limit_reaches_who_only_asks(client: TestClient, limit: Limit, api_key: Key) -> None:
    """Nobody waits for it: the first requests go by what holds for everybody."""
    limit(requests_a_minute=5000)
    until = time.monotonic() + 30
    while client.get("/v1/files").headers["x-ratelimit-limit-requests"] != "5000":
        assert time.monotonic() < until
        time.sleep(0.02)


def test_of_many_one_is_told_to_ask(database: object) -> None:
    assert [service.at_hand("org-many")[1] for _ in range(3)] == [True, False, False]


def test_event_streams_are_those_of_the_organisation(client: TestClient, limit: Limit, models_dir: Path) -> None:
    job = factories.create_job(client, factories.offer_model(models_dir))
    limit(streams=0)
    refused = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events?stream=true")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")


def test_slots_are_as_many_as_may_be_open(database: object) -> None:
    assert stream_slots.acquire("key_1", 1)
    with pytest.raises(DomainError):
        stream_slots.acquire("key_1", 1)
    assert stream_slots.acquire("key_1", 2)


def ask(client: TestClient, model: str) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "12+34="}]}
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("written", [True, False])
def test_tokens_of_the_day_run_out(
    client: TestClient, other: TestClient, limit: Limit, api_key: Key, models_dir: Path, written: bool
) -> None:
    model = factories.offer_model(models_dir)
    limit(chat_tokens_a_day=100)
    meter.count(api_key.organization_id, api_key.project_id, model, input=60, output=40)
    if written:
        meter.write()
    refused = ask(client, model)
    assert told(refused) == EXHAUSTED
    assert "used 100 tokens of chats today and may use 100" in refused.json()["error"]["message"]
    # Nobody serves here: it came as far as that.
    assert told(ask(other, model))[0] == 503
    limit(chat_tokens_a_day=101)
    assert told(ask(client, model))[0] == 503


def test_what_cannot_be_written_is_kept(api_key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    meter.write()
    with monkeypatch.context() as patch:

        def away(*_: Any) -> None:
            raise OperationalError("", {}, Exception("away"))

        patch.setattr(repository, "add_tokens", away)
        meter.count(api_key.organization_id, api_key.project_id, "m", input=3, output=4)
        meter.write()
        assert meter.pending(api_key.organization_id) == 7
    meter.write()
    assert meter.pending(api_key.organization_id) == 0


def test_many_threads_count_each_token_once(api_key: Key) -> None:
    def work() -> None:
        for _ in range(50):
            meter.count(api_key.organization_id, api_key.project_id, "m", input=1, output=2)
            meter.write()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with transaction("troll_operator") as session:
        [row] = repository.used(session, datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
    assert (row.requests, row.input_tokens, row.output_tokens) == (150, 150, 300)
