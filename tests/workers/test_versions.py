"""Workers beside servers and rows of another version: what they do not know they leave alone, or refuse by name."""

import io
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.core import ask, broker, storage
from service.core.db import transaction
from service.embedded.servers import Servers
from service.jobs import repository, stored
from service.jobs.examination import Findings, Question
from service.jobs.models import Checkpoint, Examination, Job
from tests import factories
from tests.contract.test_graders import control_worker
from tests.factories import UNREADABLE
from tests.workers.conftest import events, row
from tests.workers.control.test_sweep import lose_worker
from workers import wire
from workers.control import examiner, prune, trial, webhooks
from workers.control.sweep import sweep
from workers.jobs import sink, supervisor
from workers.tracking.registry import TRACKERS
from workers.tracking.reporter import Tracker

__all__ = ["control_worker"]

pytestmark = pytest.mark.usefixtures("stub")
Submit = Callable[..., str]


def columns(job_id: str) -> dict[str, Any]:
    job = row(job_id)
    return {column.key: getattr(job, column.key) for column in Job.__mapper__.column_attrs}


# Jobs


@pytest.mark.parametrize("how", UNREADABLE)
def test_a_supervisor_leaves_what_it_cannot_read_and_runs_the_next(submit: Submit, database: Servers, how: str) -> None:
    left, other = submit(), submit()
    factories.spoil(database, left, how)
    before = columns(left), events(left)
    supervisor.run("worker-1")
    supervisor.run("worker-1")
    assert row(other).status == "succeeded"
    assert (columns(left), [event.seq for event in events(left)]) == (before[0], [event.seq for event in before[1]])


@pytest.mark.parametrize("how", UNREADABLE)
def test_the_sweep_leaves_a_lost_job_that_it_cannot_read_and_sees_to_the_next(
    submit: Submit, database: Servers, how: str
) -> None:
    left, other = submit(), submit()
    for id in (left, other):
        lose_worker(id, strikes=3)
    factories.spoil(database, left, how)
    before = columns(left)
    sweep()
    sweep()
    assert columns(left) == before
    assert row(other).status == "failed"


def test_the_sweep_rings_for_jobs_of_newer_versions_too(submit: Submit, database: Servers) -> None:
    factories.spoil(database, submit(), "newer")
    with transaction("troll_control") as session:
        assert len(repository.waiting(session, 10)) == 1


def test_what_attempts_at_a_job_of_a_newer_version_left_is_not_removed(submit: Submit, database: Servers) -> None:
    ids = [submit("user-error"), submit("user-error")]
    for id in ids:
        supervisor.run("worker-1")
        (storage.job_dir(id) / "attempt-1" / "model").mkdir()
    with transaction("troll_worker") as session:
        session.execute(text("UPDATE fine_tuning_jobs SET finished_at = now() - interval '2 hours'"))
    factories.spoil(database, ids[0], "newer")
    left = prune._left_by_attempts()
    assert storage.job_dir(ids[1]) / "attempt-1" / "model" in left
    assert not [path for path in left if path.is_relative_to(storage.job_dir(ids[0]))]


# Examinations


@pytest.fixture
def asked(submit: Submit) -> Callable[..., str]:
    """``asked(question)`` is the id of a job in ``validating_files`` whose examination asks this."""

    def make(question: Any = None) -> str:
        id = submit()
        plain = stored.write(Question(model=None, files={}, grader=None, counts="8 training rows"))
        with transaction("troll_api") as session:
            session.execute(
                text("SELECT set_config('app.organization_id', :id, true)"), {"id": row(id).organization_id}
            )
            job = repository.locked(session, id)
            assert job is not None
            job.status = "validating_files"
            organization_id = job.organization_id
            repository.add_examination(session, Examination(id=id, organization_id=organization_id, question=plain))
        return id

    return make


QUESTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "newer": lambda question: question | {"version": 1000},
    "unknown field": lambda question: question | {"foresight": 1},
    "unknown grader": lambda question: question | {"grader": {"type": "oracle"}},
    "list": lambda question: [question],
    "version in words": lambda question: question | {"version": "two"},
}


def spoil_question(database: Servers, id: str, how: str) -> None:
    plain = stored.write(Question(model=None, files={}, grader=None))
    factories.rewrite(database, id, table="examinations", column="question", content=QUESTIONS[how](plain))


def examined() -> str | None:
    """The examination that a control worker takes, if any."""
    with transaction("troll_control") as session:
        found = repository.claim_examination(session, lease=timedelta(seconds=60), each=8)
        return found.id if found else None


@pytest.mark.parametrize("how", QUESTIONS)
def test_a_question_that_cannot_be_read_is_left_and_the_next_one_taken(
    asked: Callable[..., str], database: Servers, how: str
) -> None:
    left, other = asked(), asked()
    spoil_question(database, left, how)
    assert [examined(), examined()] == [other, None]
    assert row(left).status == "validating_files"
    with transaction("troll_control") as session:
        assert not repository.examinations_wait(session), "sweeps would start an examiner again and again"
        found = repository.examination_locked(session, left)
        assert found is not None
        assert (found.strikes, found.answer) == (0, None)


@pytest.mark.parametrize("how", ["newer", "unknown setting"])
def test_a_job_that_cannot_be_read_is_not_examined(asked: Callable[..., str], database: Servers, how: str) -> None:
    left, other = asked(), asked()
    factories.spoil(database, left, how)
    if how == "newer":
        spoil_question(database, left, "newer")
    assert [examined(), examined()] == [other, None]
    assert row(left).status == "validating_files"


def test_a_job_that_waits_to_be_examined_by_a_newer_worker_can_be_cancelled(
    asked: Callable[..., str], database: Servers, client: TestClient
) -> None:
    id = asked()
    factories.spoil(database, id, "newer")
    spoil_question(database, id, "newer")
    assert client.post(f"/v1/fine_tuning/jobs/{id}/cancel").json()["status"] == "cancelled"


def test_an_examination_that_can_be_read_is_concluded(asked: Callable[..., str]) -> None:
    id = asked()
    assert examined() == id
    examiner.conclude(id, Findings())
    assert row(id).status == "queued"
    assert events(id)[-1].message == "Files validated: 8 training rows; job queued"


# Messages


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch, database: object) -> list[tuple[str, str]]:
    """What is said to whoever asked, as pairs of a question's id and a kind."""
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(ask, "reply", lambda id, kind, answer=None: said.append((id, kind)))
    return said


def logged(monkeypatch: pytest.MonkeyPatch, log: logging.Logger) -> list[str]:
    """What is logged as an error. Celery workers of other tests take the logging that pytest listens to."""
    said: list[str] = []
    monkeypatch.setattr(log, "error", lambda text, *values: said.append(text % values))
    return said


def send(task: str, question: dict[str, Any]) -> None:
    """Have a control worker's task take a question that somebody waits for."""
    from workers import tasks

    ask._send(broker.RUN_GRADER, "ask_1", question)
    getattr(tasks, task)("ask_1", question)


GRADER_QUESTION = {
    "organization_id": "org_1",
    "grader": factories.GRADER,
    "model_sample": "46",
    "item": {"answer": "46"},
}


@pytest.mark.parametrize(
    ("task", "question"),
    [
        ("run_grader", {}),
        ("run_grader", GRADER_QUESTION | {"foresight": 1}),
        ("run_grader", GRADER_QUESTION | {"grader": {"type": "oracle", "name": "o"}}),
        ("load_grader", {"organization_id": "org_1", "grader": {"type": "oracle", "name": "o"}}),
        ("load_grader", GRADER_QUESTION),
        ("test_webhook", {"organization_id": "org_1"}),
        ("test_webhook", {"organization_id": "org_1", "endpoint_id": "we_1", "event_type": "e", "foresight": 1}),
    ],
)
def test_a_question_of_another_version_is_refused_at_once(
    replies: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, task: str, question: dict[str, Any]
) -> None:
    from workers import tasks

    told = logged(monkeypatch, tasks.log)
    send(task, question)
    assert replies == [("ask_1", ask.UNKNOWN)]
    assert "is not known here" in told[0]


def test_questions_of_this_version_are_taken(replies: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(trial.threads, "submit", lambda *each: taken.append(each[0]))
    monkeypatch.setattr(webhooks._tests, "submit", lambda *each: taken.append(each[0]))
    webhook = {"organization_id": "org_2", "endpoint_id": "we_1", "event_type": "e"}
    for task, question in (("run_grader", GRADER_QUESTION), ("test_webhook", webhook)):
        send(task, question)
    assert taken == ["org_1", "org_2"]
    assert replies == [("ask_1", ask.ACCEPTED)] * 2


def test_a_message_of_an_unknown_kind_is_refused_by_name_and_the_worker_goes_on(
    client: TestClient, control_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import app

    told = logged(monkeypatch, app.log)
    body = {"grader": factories.GRADER, "model_sample": "46", "item": {"answer": "46"}}
    with monkeypatch.context() as newer:
        newer.setattr(broker, "RUN_GRADER", "workers.ask_oracle")
        answer = client.post("/v1/fine_tuning/alpha/graders/run", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
    assert "another version" in answer.json()["error"]["message"]
    assert "'workers.ask_oracle' is not known here" in told[0]
    assert client.post("/v1/fine_tuning/alpha/graders/run", json=body).json()["reward"] == 1.0


@pytest.mark.parametrize("told", [{"kind": "later", "answer": {}}, {"kind": "answer", "answer": {"prize": 1}}])
def test_an_answer_of_another_version_is_a_503(
    client: TestClient, database: object, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]
) -> None:
    async def answered(client: Any, id: str, seconds: float) -> Any:
        return told["kind"], told["answer"]

    monkeypatch.setattr(ask, "_next", answered)
    body = {"grader": factories.GRADER, "model_sample": "46"}
    answer = client.post("/v1/fine_tuning/alpha/graders/run", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")


def test_a_kept_answer_of_another_version_is_given_again_as_it_was(
    client: TestClient, models_dir: Path, database: Servers
) -> None:
    body = factories.job_body(client, factories.offer_model(models_dir))
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/fine_tuning/jobs", json=body, headers=headers).json()
    assert client.post("/v1/fine_tuning/jobs", json=body, headers=headers).json() == first
    first["method"]["reinforcement"]["hyperparameters"]["foresight"] = 1
    with transaction("troll_api") as session:
        session.execute(text("SELECT set_config('app.organization_id', :id, true)"), {"id": first["organization_id"]})
        changed = {"answer": json.dumps(first)}
        session.execute(text("UPDATE kept_answers SET answer = cast(:answer AS jsonb) WHERE key = 'key:once'"), changed)
    again = client.post("/v1/fine_tuning/jobs", json=body, headers=headers)
    assert (again.status_code, again.json()) == (200, first)


def test_a_line_of_the_tracking_process_that_is_not_known_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said = b'a library prints this\n{"oracle": 1}\n{"index": 0, "url": "https://runs.example.com/1"}\n'
    runs = object.__new__(Tracker)
    runs.job_id, runs.kind, runs._said, runs._failed, runs._places = "ftjob-1", "wandb", b"", set(), [0]
    runs._tracker = TRACKERS["wandb"]
    runs._process = SimpleNamespace(stdout=io.BytesIO(said), poll=lambda: None)  # type: ignore[assignment]
    assert [event.message for event in runs.news()] == ["Weights & Biases run: https://runs.example.com/1"]


def test_a_training_process_goes_on_behind_a_command_that_it_does_not_know() -> None:
    ours, theirs = socket.socketpair()
    program = (
        "import socket, sys; from workers.training.processes import channel;"
        "print(channel.over(socket.socket(fileno=int(sys.argv[1]))).starts.get(), flush=True)"
    )
    with theirs, ours:
        ours.sendall(b'{"line": "oracle"}\n' + wire.Start(run=Path("/run.json")).model_dump_json().encode() + b"\n")
        command = [sys.executable, "-c", program, str(theirs.fileno())]
        done = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=60)
    assert done.stdout == "/run.json\n"
    assert "oracle" in done.stderr


@pytest.mark.parametrize("stored", [[1, 2], "text", {"valid_reward_mean": "high"}, {"valid_loss": [1.0]}, {}])
def test_a_checkpoint_whose_metrics_are_not_known_is_the_least(stored: Any) -> None:
    known = [
        sink._quality(Checkpoint(metrics=metrics)) for metrics in ({"valid_reward_mean": -5.0}, {"valid_loss": 5.0})
    ]
    assert sink._quality(Checkpoint(metrics=stored)) < min(known)


def test_a_job_ends_well_behind_metrics_that_are_not_known(submit: Submit, client: TestClient) -> None:
    id = submit()
    with transaction("troll_worker") as session:
        job = repository.locked(session, id)
        assert job is not None
        news: Any = [1, 2]
        repository.append_events(session, job, [repository.EventDraft("news", type="metrics", data=news)])
    supervisor.run("worker-1")
    job = client.get(f"/v1/fine_tuning/jobs/{id}").json()
    assert job["status"] == "succeeded"
    assert len(client.get(f"/v1/files/{job['result_files'][0]}/content").text.splitlines()) == 1 + 6
