"""Jobs that take longer to examine than a request waits are in ``validating_files``, and nobody waits for them."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import openai
import pytest

from service.core import ask
from service.core.db import transaction
from service.jobs import repository
from service.jobs.examination import Findings, Question
from service.jobs.models import Examination
from service.settings import settings
from service.submission import service as submission
from tests.conftest import Key
from tests.contract.test_graders import control_worker
from workers.control import examiner
from workers.control.sweep import sweep

GRADER = "method.reinforcement.grader"
__all__ = ["control_worker"]

PATIENCE = 30.0
FAILS = Findings(problems={GRADER: "The grader fails on the first rows, whatever is answered."})


class Slow:
    """Examinations that end when they are let go, with ``answer``."""

    def __init__(self) -> None:
        self.answer = Findings()
        self.go = threading.Event()
        self.asked: list[Question] = []

    def examine(self, question: Question, seconds: float) -> Findings:
        self.asked.append(question)
        assert self.go.wait(PATIENCE)
        return self.answer


@pytest.fixture
def slow(control_worker: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    ask.report_alive()
    monkeypatch.setattr(submission, "ANSWER_SECONDS", 0.3)
    examinations = Slow()
    monkeypatch.setattr(examiner, "examine", examinations.examine)
    yield examinations
    examinations.go.set()
    # Nothing of it may be left at work when the next test's database is emptied.
    for _ in range(examiner.AT_ONCE):
        assert examiner._places.acquire(timeout=PATIENCE)
    examiner._places.release(examiner.AT_ONCE)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def status(client: openai.OpenAI, id: str) -> str:
    return client.fine_tuning.jobs.retrieve(id).status


def messages(client: openai.OpenAI, id: str) -> list[str]:
    return [event.message for event in client.fine_tuning.jobs.list_events(id)][::-1]


def test_what_is_not_known_in_time_is_found_out_while_files_are_validated(
    acme: openai.OpenAI, body: dict[str, Any], slow: Slow
) -> None:
    job = acme.fine_tuning.jobs.create(**body)
    assert job.status == "validating_files"
    assert messages(acme, job.id)[-1] == f"Validating files: {job.training_file} and {job.validation_file}"
    slow.go.set()
    until(lambda: status(acme, job.id) == "queued", "the job is never queued")
    assert messages(acme, job.id)[-1] == "Files validated: 8 training rows, 4 validation rows; job queued"


@pytest.mark.parametrize("in_time", [True, False])
def test_answers_that_the_context_has_no_room_for_are_shortened_and_told(
    acme: openai.OpenAI, body: dict[str, Any], slow: Slow, monkeypatch: pytest.MonkeyPatch, in_time: bool
) -> None:
    slow.answer = Findings(longest_answer=100)
    if in_time:
        monkeypatch.setattr(submission, "ANSWER_SECONDS", PATIENCE)
        slow.go.set()
    job = acme.fine_tuning.jobs.create(**body)
    slow.go.set()
    until(lambda: status(acme, job.id) == "queued", "the job is never queued")
    shown = acme.fine_tuning.jobs.retrieve(job.id).to_dict()
    assert shown["method"]["reinforcement"]["hyperparameters"]["max_completion_tokens"] == 100  # type: ignore[index]
    told = "max_completion_tokens is 100 and not 1024: the model's context leaves no more beside the prompt"
    assert told in messages(acme, job.id)


def test_an_error_that_is_found_later_is_the_jobs(acme: openai.OpenAI, body: dict[str, Any], slow: Slow) -> None:
    slow.answer = FAILS
    job = acme.fine_tuning.jobs.create(**body)
    slow.go.set()
    until(lambda: status(acme, job.id) == "failed", "the job does not fail")
    error = acme.fine_tuning.jobs.retrieve(job.id).error
    assert error is not None
    assert (error.code, error.param, error.message) == ("invalid_grader", GRADER, FAILS.problems[GRADER])


def test_an_error_that_is_found_in_time_is_a_400_and_leaves_nothing(
    acme: openai.OpenAI, body: dict[str, Any], slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "ANSWER_SECONDS", PATIENCE)
    slow.answer = FAILS
    slow.go.set()
    folders = set((settings().data_dir / "jobs").iterdir())
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.fine_tuning.jobs.create(**body)
    assert (refusal.value.code, refusal.value.param) == ("invalid_grader", GRADER)
    assert list(acme.fine_tuning.jobs.list()) == []
    assert set((settings().data_dir / "jobs").iterdir()) == folders


@pytest.mark.parametrize("overdue", [0.0, 0.5])
def test_files_that_take_long_to_read_are_left_to_the_worker(
    acme: openai.OpenAI, body: dict[str, Any], slow: Slow, monkeypatch: pytest.MonkeyPatch, overdue: float
) -> None:
    def never_in_time(question: Question, give_up_at: float) -> Findings:
        # A long line is looked at to its end.
        time.sleep(max(0.0, give_up_at - time.monotonic()) + overdue)
        raise TimeoutError

    monkeypatch.setattr("service.jobs.examination.check_files", never_in_time)
    job = acme.fine_tuning.jobs.create(**body)
    until(lambda: bool(slow.asked), "no worker is asked")
    assert (job.status, slow.asked[0].files_checked) == ("validating_files", False)


def test_a_validated_job_can_be_cancelled(acme: openai.OpenAI, body: dict[str, Any], slow: Slow) -> None:
    job = acme.fine_tuning.jobs.create(**body)
    assert acme.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert examined(job.id)
    slow.go.set()
    assert status(acme, job.id) == "cancelled"


def examined(id: str) -> bool:
    with transaction("troll_control") as session:
        row = repository.examination_locked(session, id)
        return row is not None and row.answer is not None


def test_a_job_that_is_paused_while_validated_waits_for_its_owner(
    connect: Any, api_key: Key, body: dict[str, Any], slow: Slow
) -> None:
    client = connect(api_key)  # Strict clients do not know the status.
    job = client.fine_tuning.jobs.create(**body)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert status(client, job.id) == "validating_files"
    slow.go.set()
    until(lambda: status(client, job.id) == "paused", "the job is not paused")
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"


def test_identical_creations_wait_for_nobody(acme: openai.OpenAI, body: dict[str, Any], slow: Slow) -> None:
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda _: acme.fine_tuning.jobs.create(**body), range(12)))
    assert {job.status for job in made} == {"validating_files"}
    assert len({job.id for job in made}) == 12


def test_a_repetition_of_a_request_that_is_still_handled_is_told_so(
    connect: Any, api_key: Key, body: dict[str, Any], slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "ANSWER_SECONDS", PATIENCE)
    client, header = connect(api_key, max_retries=0), {"Idempotency-Key": "held"}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.fine_tuning.jobs.create, **body, extra_headers=header)
        until(lambda: bool(slow.asked), "the first request does not arrive")
        with pytest.raises(openai.InternalServerError) as told:
            client.fine_tuning.jobs.create(**body, extra_headers=header)
        assert (told.value.status_code, told.value.code) == (503, "request_in_progress")
        assert told.value.response.headers["retry-after"] == "1"
        slow.go.set()
        made = first.result(PATIENCE)
    assert client.fine_tuning.jobs.create(**body, extra_headers=header).id == made.id


def test_no_more_jobs_wait_than_may_however_many_are_created_at_once(
    connect: Any, api_key: Key, body: dict[str, Any], slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROLL_MAX_QUEUED_JOBS", "5")
    settings.cache_clear()
    client = connect(api_key, max_retries=0)

    def attempt(_: int) -> str:
        try:
            client.fine_tuning.jobs.create(**body)
        except openai.RateLimitError as error:
            return str(error.code)
        return "created"

    try:
        with ThreadPoolExecutor(12) as pool:
            told = list(pool.map(attempt, range(12)))
        assert sorted(told) == ["created"] * 5 + ["job_quota_exceeded"] * 7
    finally:
        settings.cache_clear()


def test_resumed_jobs_count_against_the_quota(
    connect: Any, api_key: Key, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROLL_MAX_QUEUED_JOBS", "2")
    settings.cache_clear()
    client = connect(api_key, max_retries=0)
    try:
        jobs = [client.fine_tuning.jobs.create(**body).id for _ in range(2)]
        for id in jobs:
            client.fine_tuning.jobs.pause(id)
        # Set aside before they began, they count for new jobs.
        with pytest.raises(openai.RateLimitError):
            client.fine_tuning.jobs.create(**body)
        client.fine_tuning.jobs.resume(jobs[1])
        monkeypatch.setenv("TROLL_MAX_QUEUED_JOBS", "1")
        settings.cache_clear()
        with pytest.raises(openai.RateLimitError) as refusal:
            client.fine_tuning.jobs.resume(jobs[0])
        assert refusal.value.code == "job_quota_exceeded"
        assert status(client, jobs[0]) == "paused"
    finally:
        settings.cache_clear()


def test_one_organisations_examinations_leave_room_for_anothers(
    acme: openai.OpenAI, body: dict[str, Any], slow: Slow
) -> None:
    for _ in range(4):
        acme.fine_tuning.jobs.create(**body)
    until(lambda: len(slow.asked) == examiner.AT_ONCE_EACH, "the first are not examined")
    with transaction("troll_control") as session:
        assert repository.examinations_wait(session)
        assert repository.claim_examination(session, lease=timedelta(seconds=1), each=examiner.AT_ONCE_EACH) is None


def test_what_a_lost_worker_had_begun_is_begun_again(
    acme: openai.OpenAI, body: dict[str, Any], slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_with_its_worker, answer = threading.Event(), examiner._answer

    def lost(row: Examination) -> Findings:
        if row.strikes == 1:
            ends_with_its_worker.set()
            raise RuntimeError("as if the worker had died")
        return answer(row)

    monkeypatch.setattr(examiner, "LEASE", timedelta(seconds=0))
    monkeypatch.setattr(examiner, "_answer", lost)
    slow.go.set()
    job = acme.fine_tuning.jobs.create(**body)
    assert job.status == "validating_files"
    assert ends_with_its_worker.wait(PATIENCE)
    sweep()
    until(lambda: status(acme, job.id) == "queued", "nobody examines the job")
