"""A request that is sent again, by the client on its own or by its owner, is carried out once."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

import service
from service.core import live, threads
from service.core.db import tenant
from service.core.errors import DomainError
from service.files import service as files
from service.idempotency.models import KeptAnswer
from service.settings import settings
from service.submission import service as submission
from tests import factories
from tests.conftest import Key
from tests.contract.conftest import Official

RETRY = {"x-stainless-retry-count": "1"}
DATA = factories.jsonl(factories.rows(3))


def jobs(client: openai.OpenAI) -> list[str]:
    return [job.id for job in client.fine_tuning.jobs.list()]


def test_a_retried_create_makes_one_job(official: Official, acme: openai.OpenAI, body: dict[str, Any]) -> None:
    create = official.client.fine_tuning.jobs.create
    first = official.ask(create(**body))
    again = official.ask(create(**body, extra_headers=RETRY))
    assert again.id == first.id
    assert jobs(acme) == [first.id]


def test_a_second_create_without_the_mark_makes_a_second_job(acme: openai.OpenAI, body: dict[str, Any]) -> None:
    ids = {acme.fine_tuning.jobs.create(**body).id for _ in range(2)}
    assert set(jobs(acme)) == ids
    assert len(ids) == 2


def test_a_retry_with_other_content_is_another_request(acme: openai.OpenAI, body: dict[str, Any]) -> None:
    first = acme.fine_tuning.jobs.create(**body)
    other = acme.fine_tuning.jobs.create(**{**body, "seed": 7}, extra_headers=RETRY)
    assert other.id != first.id


def test_a_retry_whose_first_attempt_never_arrived_is_carried_out(acme: openai.OpenAI, body: dict[str, Any]) -> None:
    assert acme.fine_tuning.jobs.create(**body, extra_headers=RETRY).status == "queued"


def test_another_keys_request_is_no_retry_of_mine(
    acme: openai.OpenAI, connect: Any, new_key: Any, body: dict[str, Any]
) -> None:
    colleague = connect(new_key(name="second key of acme"))
    first = acme.fine_tuning.jobs.create(**body)
    assert colleague.fine_tuning.jobs.create(**body, extra_headers=RETRY).id != first.id


def test_a_retried_upload_makes_one_file(official: Official, acme: openai.OpenAI) -> None:
    create = official.client.files.create
    first = official.ask(create(file=DATA, purpose="fine-tune"))
    again = official.ask(create(file=DATA, purpose="fine-tune", extra_headers=RETRY))
    assert again.id == first.id
    assert [file.id for file in acme.files.list()] == [first.id]


def test_retried_steps_of_a_chunked_upload(official: Official, acme: openai.OpenAI) -> None:
    uploads = official.client.uploads

    def twice(call: Any, *args: Any, **options: Any) -> Any:
        first = official.ask(call(*args, **options))
        again = official.ask(call(*args, **options, extra_headers=RETRY))
        assert again.id == first.id
        return first

    upload = twice(uploads.create, bytes=len(DATA), filename="r.jsonl", mime_type="text/plain", purpose="fine-tune")
    part = twice(uploads.parts.create, upload.id, data=DATA)
    done = twice(uploads.complete, upload.id, part_ids=[part.id])
    assert [file.id for file in acme.files.list()] == [done.file.id]


def test_an_idempotency_key_answers_the_same_again(acme: openai.OpenAI, body: dict[str, Any]) -> None:
    header = {"Idempotency-Key": "nightly-run-17"}
    first = acme.fine_tuning.jobs.with_raw_response.create(**body, extra_headers=header)
    again = acme.fine_tuning.jobs.with_raw_response.create(**body, extra_headers=header)
    assert again.parse().id == first.parse().id
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert len(jobs(acme)) == 1


def test_an_idempotency_key_is_for_one_content(acme: openai.OpenAI, body: dict[str, Any], attempts: list[str]) -> None:
    header = {"Idempotency-Key": "nightly-run-17"}
    acme.fine_tuning.jobs.create(**body, extra_headers=header)
    attempts.clear()
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.fine_tuning.jobs.create(**{**body, "seed": 7}, extra_headers=header)
    assert (refusal.value.code, refusal.value.param) == ("idempotency_key_reused", "Idempotency-Key")
    assert len(attempts) == 1


def test_an_idempotency_key_of_a_refused_request_is_free(acme: openai.OpenAI, body: dict[str, Any]) -> None:
    header = {"Idempotency-Key": "second-try"}
    with pytest.raises(openai.BadRequestError):
        acme.fine_tuning.jobs.create(**{**body, "model": "none"}, extra_headers=header)
    assert acme.fine_tuning.jobs.create(**body, extra_headers=header).status == "queued"


def test_organisations_do_not_share_idempotency_keys(
    acme: openai.OpenAI, connect: Any, new_key: Any, body: dict[str, Any]
) -> None:
    header = {"Idempotency-Key": "1"}
    mine = acme.files.create(file=DATA, purpose="fine-tune", extra_headers=header)
    stranger = connect(new_key(organization="globex"))
    assert stranger.files.create(file=DATA, purpose="fine-tune", extra_headers=header).id != mine.id


def test_simultaneous_requests_of_one_key_make_one_job(acme: openai.OpenAI, body: dict[str, Any]) -> None:
    header, ids = {"Idempotency-Key": "race"}, []
    threads = [
        threading.Thread(target=lambda: ids.append(acme.fine_tuning.jobs.create(**body, extra_headers=header).id))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 4
    assert jobs(acme) == [ids[0]]
    assert len(set(ids)) == 1


def test_a_request_that_lost_its_key_meanwhile_leaves_nothing(
    acme: openai.OpenAI, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, acme = submission.create, acme.with_options(max_retries=0)

    def after_its_hold_ran_out(session: Session, examined: Any) -> Any:
        with tenant(examined.draft.training) as other:
            other.execute(update(KeptAnswer).values(holder="attempt_of_another"))
        return finish(session, examined)

    monkeypatch.setattr(submission, "create", after_its_hold_ran_out)
    with pytest.raises(openai.InternalServerError) as refusal:
        acme.fine_tuning.jobs.create(**body, extra_headers={"Idempotency-Key": "slow"})
    assert (refusal.value.status_code, refusal.value.code) == (503, "request_in_progress")
    assert jobs(acme) == []


def test_a_request_that_ends_late_keeps_its_key(
    acme: openai.OpenAI, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, release, acme = submission.create, threading.Event(), acme.with_options(max_retries=0)

    def late(session: Session, examined: Any) -> Any:
        job = finish(session, examined)
        assert release.wait(30)
        return job

    monkeypatch.setattr(submission, "create", late)
    monkeypatch.setattr(threads, "REQUEST_SECONDS", 2.0)
    header = {"Idempotency-Key": "late"}
    for code in ("database_unavailable", "request_in_progress"):
        with pytest.raises(openai.InternalServerError) as refusal:
            acme.fine_tuning.jobs.create(**body, extra_headers=header)
        assert refusal.value.code == code
    release.set()
    monkeypatch.setattr(submission, "create", finish)
    monkeypatch.setattr(threads, "REQUEST_SECONDS", 30.0)
    deadline = time.monotonic() + 30
    while not jobs(acme):
        assert time.monotonic() < deadline, "the late request is never carried out"
        time.sleep(0.05)
    again = acme.fine_tuning.jobs.create(**body, extra_headers=header)
    assert jobs(acme) == [again.id]


@pytest.mark.parametrize(
    ("status", "headers", "times", "at_least"),
    [
        (409, {}, 2, 0.0),
        (409, {"x-should-retry": "false"}, 1, 0.0),
        (429, {"retry-after-ms": "20"}, 2, 0.0),
        (429, {"Retry-After": "1"}, 2, 1.0),
        (429, {"Retry-After": "300"}, 1, 0.0),
        (429, {"x-should-retry": "false"}, 1, 0.0),
        (500, {"retry-after-ms": "20"}, 2, 0.0),
        (503, {"Retry-After": "300"}, 1, 0.0),
        (400, {}, 1, 0.0),
        (400, {"x-should-retry": "true", "retry-after-ms": "20"}, 2, 0.0),
    ],
)
def test_the_headers_of_an_error_decide_over_its_retry(
    connect: Any,
    api_key: Key,
    attempts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    headers: dict[str, str],
    times: int,
    at_least: float,
) -> None:
    """What the service relies on when it chooses statuses and headers. ``DomainError`` carries them to the client."""

    def refuse(*_: Any) -> Any:
        raise DomainError(status, "refused", "Refused.", headers=headers)

    monkeypatch.setattr(files, "retrieve", refuse)
    began = time.monotonic()
    with pytest.raises(openai.APIStatusError):
        connect(api_key, max_retries=1).files.retrieve("file-1")
    assert len(attempts) == times
    assert time.monotonic() - began >= at_least


def test_no_answer_is_a_409() -> None:
    sources = [path.read_text() for path in Path(service.__path__[0]).rglob("*.py")]
    assert len(sources) > 50
    assert not [
        text for text in sources if re.search(r"(DomainError|HTTPException|error_answer|status_code=)\(?409", text)
    ]


def test_a_full_quota_is_not_retried(
    connect: Any, api_key: Key, body: dict[str, Any], attempts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROLL_MAX_QUEUED_JOBS", "0")
    settings.cache_clear()
    try:
        attempts.clear()
        with pytest.raises(openai.RateLimitError) as refusal:
            connect(api_key).fine_tuning.jobs.create(**body)
        assert refusal.value.code == "job_quota_exceeded"
        assert len(attempts) == 1
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_a_throttled_client_waits_as_told_and_gets_through(
    connect: Any, api_key: Key, attempts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROLL_REQUESTS_PER_MINUTE", "120")
    settings.cache_clear()
    try:
        client = connect(api_key)
        client.files.list()
        (bucket,) = live.client().keys("rate:*")
        live.client().hset(bucket, "tokens", "0")
        attempts.clear()
        assert list(client.files.list()) == []
        assert len(attempts) == 2
    finally:
        monkeypatch.undo()
        settings.cache_clear()
