"""Attempts from claim to outcome, with a stub for the training child and everything else real."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.core import storage
from service.core.db import transaction
from service.embedded.servers import Servers
from service.jobs import repository
from service.jobs.models import Job
from service.jobs.spec import RunSpec
from tests.workers.conftest import events, row
from workers.control.sweep import sweep
from workers.jobs import supervisor
from workers.jobs.lease import lease_time

pytestmark = pytest.mark.usefixtures("stub")
Submit = Callable[..., str]


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def running(job_id: str) -> threading.Thread:
    """A supervisor at work on ``job_id``, which has told at least one step."""
    thread = threading.Thread(target=supervisor.run, args=["worker-1"])
    thread.start()
    wait_for(lambda: row(job_id).step >= 1)
    return thread


def assert_told_once_and_in_order(job_id: str) -> None:
    told = events(job_id)
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    steps = [event.data["step"] for event in told if event.type == "metrics"]
    assert steps == sorted(set(steps))


def test_a_job_succeeds_with_a_model_a_result_file_and_checkpoints(submit: Submit, client: TestClient) -> None:
    id = submit()
    supervisor.run("worker-1")
    job = client.get(f"/v1/fine_tuning/jobs/{id}").json()
    assert (job["status"], job["error"], job["trained_tokens"]) == ("succeeded", None, 600)
    assert client.get(f"/v1/models/{job['fine_tuned_model']}").status_code == 200
    table = client.get(f"/v1/files/{job['result_files'][0]}/content").text
    assert table.splitlines()[0].startswith("step,")
    assert len(table.splitlines()) == 1 + 6
    checkpoints = client.get(f"/v1/fine_tuning/jobs/{id}/checkpoints").json()["data"]
    assert [checkpoint["step_number"] for checkpoint in checkpoints] == [6, 4, 2]
    assert checkpoints[0]["metrics"]["valid_reward_mean"] == 1.0


def test_the_result_file_of_a_supervised_job_has_openais_columns(submit: Submit, client: TestClient) -> None:
    id = submit(supervised=True)
    supervisor.run("worker-1")
    job = client.get(f"/v1/fine_tuning/jobs/{id}").json()
    assert job["status"] == "succeeded"
    table = client.get(f"/v1/files/{job['result_files'][0]}/content").text.splitlines()
    assert table[:2] == ["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy", "1,0.5,0.75,,"]
    assert len(table) == 1 + 6


def test_of_a_supervised_job_the_checkpoints_of_least_loss_are_kept(
    submit: Submit, client: TestClient, faster: Callable[..., None]
) -> None:
    faster(checkpoints_kept=1)
    id = submit(supervised=True)
    supervisor.run("worker-1")
    checkpoints = client.get(f"/v1/fine_tuning/jobs/{id}/checkpoints").json()["data"]
    # The two newest are for resuming; the first was the best.
    assert [checkpoint["step_number"] for checkpoint in checkpoints] == [6, 4, 2]
    assert [checkpoint["metrics"]["valid_loss"] for checkpoint in checkpoints] == [1.0, 4 / 6, 2 / 6]


def test_an_evaluation_ends_with_a_result_file_and_without_a_model(submit: Submit, client: TestClient) -> None:
    id = submit(evaluation=True)
    supervisor.run("worker-1")
    job = client.get(f"/v1/fine_tuning/jobs/{id}").json()
    assert (job["status"], job["fine_tuned_model"], job["progress"]["step"]) == ("succeeded", None, 4)
    table = client.get(f"/v1/files/{job['result_files'][0]}/content").text.splitlines()
    assert table == ["step,total_steps,validation_sets.a.mean_at_k", "4,4,0.5"]
    assert [path.name for path in storage.job_dir(id).rglob("answered")] == []
    assert row(id).stored_bytes == 0


@pytest.mark.parametrize("verb", ["cancel", "resume"])
def test_answers_of_a_paused_evaluation_count_as_stored(submit: Submit, client: TestClient, verb: str) -> None:
    def stored() -> int:
        return int(client.get("/v1/organization/limits").json()["used"]["storage_bytes"])

    id = submit("wait", evaluation=True)
    before = stored()
    thread = threading.Thread(target=supervisor.run, args=["worker-1"])
    thread.start()
    wait_for(lambda: row(id).step >= 1)
    client.post(f"/v1/fine_tuning/jobs/{id}/pause")
    thread.join(20)
    kept = storage.bytes_in(storage.answers(id))
    assert (row(id).status, row(id).stored_bytes, kept > 0) == ("paused", kept, True)
    assert stored() == before + kept
    assert client.post(f"/v1/fine_tuning/jobs/{id}/{verb}").status_code == 200
    assert stored() == before


def test_an_evaluation_that_gets_on_with_every_attempt_does_not_run_out_of_them(
    submit: Submit, faster: Callable[..., None]
) -> None:
    faster(max_strikes=2, retry_delay_seconds=0)
    id = submit("crash-after-each", evaluation=True)
    for _ in range(5):
        supervisor.run("worker-1")
    job = row(id)
    assert (job.status, job.attempt, job.step) == ("succeeded", 5, 4)


def test_nothing_queued_is_nothing_done(database: object) -> None:
    supervisor.run("worker-1")


def test_a_killed_child_is_tried_again_from_its_checkpoint(submit: Submit) -> None:
    id = submit("crash-once")
    supervisor.run("worker-1")
    assert row(id).status == "queued"
    supervisor.run("worker-1")
    job = row(id)
    assert (job.status, job.attempt) == ("succeeded", 2)
    assert_told_once_and_in_order(id)
    by_attempt = [event.data["attempt"] for event in events(id) if event.type == "metrics"]
    assert by_attempt == [1, 1, 1, 2, 2, 2]


def test_a_job_that_always_crashes_fails_after_its_strikes(submit: Submit, faster: Callable[..., None]) -> None:
    faster(retry_delay_seconds=0)
    id = submit("crash-always")
    attempts = 0
    while row(id).status == "queued":
        supervisor.run("worker-1")
        attempts += 1
    job = row(id)
    # The first attempt reaches a checkpoint, which clears its strike; the three after it reach nothing new.
    assert (job.status, attempts) == ("failed", 4)
    assert job.error is not None
    assert job.error["code"] == "worker_crashed"
    assert_told_once_and_in_order(id)


def test_a_user_error_fails_at_once_with_the_childs_words(submit: Submit, client: TestClient) -> None:
    id = submit("user-error")
    supervisor.run("worker-1")
    job = client.get(f"/v1/fine_tuning/jobs/{id}").json()
    assert job["status"] == "failed"
    assert job["error"] == {
        "code": "non_finite_loss",
        "message": "The loss is not finite.",
        "param": "learning_rate",
    }


def test_a_bug_is_tried_twice(submit: Submit, faster: Callable[..., None]) -> None:
    faster(retry_delay_seconds=0)
    id = submit("bug")
    supervisor.run("worker-1")
    assert row(id).status == "queued"
    while row(id).status == "queued":
        supervisor.run("worker-1")
    error = row(id).error
    assert error is not None
    assert error["code"] == "internal_error"


def test_cancel_stops_a_running_job_and_keeps_its_checkpoints(submit: Submit, client: TestClient) -> None:
    id = submit("wait")
    thread = running(id)
    assert client.post(f"/v1/fine_tuning/jobs/{id}/cancel").json()["status"] == "cancelled"
    thread.join(20)
    job = row(id)
    assert (job.status, job.desired, job.lease_expires_at) == ("cancelled", "cancel", None)


def test_a_deaf_child_is_killed_after_the_grace(
    submit: Submit, client: TestClient, faster: Callable[..., None]
) -> None:
    faster(stop_grace_seconds=0.5)
    id = submit("deaf")
    thread = threading.Thread(target=supervisor.run, args=["worker-1"])
    thread.start()
    wait_for(lambda: row(id).step >= 3)
    client.post(f"/v1/fine_tuning/jobs/{id}/cancel")
    thread.join(20)
    assert row(id).status == "cancelled"


def test_pause_and_resume(submit: Submit, client: TestClient) -> None:
    id = submit("wait")
    thread = running(id)
    client.post(f"/v1/fine_tuning/jobs/{id}/pause")
    thread.join(20)
    assert row(id).status == "paused"
    client.post(f"/v1/fine_tuning/jobs/{id}/resume")
    assert row(id).status == "queued"


def test_a_grader_that_is_away_pauses_the_job_with_the_reason(submit: Submit, client: TestClient) -> None:
    id = submit("grader-away")
    supervisor.run("worker-1")
    job, told = row(id), events(id)[-1]
    assert (job.status, job.desired, job.strikes, job.error) == ("paused", "pause", 0, None)
    assert told.data == {"code": "grader_unavailable"}
    assert told.message.startswith("Job paused: The scoring service could not be reached. Resume it when")
    assert client.post(f"/v1/fine_tuning/jobs/{id}/resume").json()["status"] == "queued"
    supervisor.run("worker-1")
    assert row(id).status == "succeeded"
    assert_told_once_and_in_order(id)


def test_a_stopping_worker_gives_its_job_back_without_a_strike(submit: Submit) -> None:
    id = submit("wait")
    thread = running(id)
    supervisor.shutting_down.set()
    thread.join(20)
    job = row(id)
    assert (job.status, job.strikes, job.worker) == ("queued", 0, None)


def test_a_silent_child_is_killed(submit: Submit, faster: Callable[..., None]) -> None:
    faster(progress_timeout_seconds=1)
    id = submit("deaf")
    supervisor.run("worker-1")
    assert row(id).status == "queued"
    assert "SIGKILL" in events(id)[-1].message


def test_a_supervisor_that_lost_its_lease_kills_its_child_and_writes_nothing(submit: Submit) -> None:
    id = submit("wait")
    thread = running(id)
    with transaction("troll_worker") as session:
        session.execute(text("UPDATE fine_tuning_jobs SET attempt = attempt + 1"))
    before = len(events(id))
    thread.join(20)
    assert not thread.is_alive()
    assert (row(id).status, len(events(id))) == ("running", before)


def test_a_lost_worker_is_noticed_and_the_job_goes_on(submit: Submit) -> None:
    id = submit()
    with transaction("troll_worker") as session:
        repository.claim(session, worker="gone", lease=lease_time(), max_running=8)
        session.execute(text("UPDATE fine_tuning_jobs SET lease_expires_at = now() - interval '1 second'"))
    sweep()
    assert row(id).status == "queued"
    supervisor.run("worker-2")
    job = row(id)
    assert (job.status, job.attempt) == ("succeeded", 2)
    assert_told_once_and_in_order(id)


def test_the_childs_log_is_kept_with_the_attempt(submit: Submit) -> None:
    id = submit()
    supervisor.run("worker-1")
    assert (storage.job_dir(id) / "attempt-1" / "training.log").exists()


def test_connections_that_break_lose_nothing(submit: Submit, servers: Servers) -> None:
    id = submit("wait")
    thread = running(id)
    with psycopg.connect(servers.database_owner_url, autocommit=True) as connection:
        broken = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchall()
    assert broken
    supervisor.shutting_down.set()
    thread.join(20)
    assert row(id).status == "queued"
    assert_told_once_and_in_order(id)


def test_a_nul_in_what_the_child_says_is_left_out(submit: Submit) -> None:
    id = submit("nul")
    supervisor.run("worker-1")
    assert row(id).status == "succeeded"
    assert "a b" in [event.message for event in events(id)]


def test_a_child_that_does_not_stop_in_time_is_no_crash(submit: Submit, faster: Callable[..., None]) -> None:
    faster(stop_grace_seconds=0.5)
    id = submit("deaf")
    thread = threading.Thread(target=supervisor.run, args=["worker-1"])
    thread.start()
    wait_for(lambda: row(id).step >= 3)
    supervisor.shutting_down.set()
    thread.join(20)
    job = row(id)
    assert (job.status, job.strikes) == ("queued", 0)


def test_what_a_killed_attempt_left_half_made_is_removed(submit: Submit) -> None:
    id = submit("crash-once")
    supervisor.run("worker-1")
    folder = storage.job_dir(id) / "attempt-1" / "checkpoints"
    half_made = folder / ".step-000004.partial"
    half_made.mkdir()
    supervisor.run("worker-1")
    assert not half_made.exists()
    assert (folder / "step-000002").exists()


def leave(job_id: str, *names: str) -> None:
    for name in names:
        (storage.job_dir(job_id) / name).mkdir(parents=True)


LEFT = ("attempt-1/model", "attempt-1/.model.partial", "attempt-1/checkpoints/step-000003")


def test_what_a_child_left_whose_result_nobody_took_is_removed_at_the_next_attempt(submit: Submit) -> None:
    id = submit("crash-once")
    supervisor.run("worker-1")
    leave(id, *LEFT)
    supervisor.run("worker-1")
    assert [name for name in LEFT if (storage.job_dir(id) / name).exists()] == []
    assert (storage.job_dir(id) / "attempt-1" / "checkpoints" / "step-000002").exists()


@pytest.mark.parametrize("plan", ["succeed", "user-error"])
def test_what_attempts_left_is_removed_when_the_job_ends(submit: Submit, plan: str) -> None:
    id = submit(plan)
    with transaction("troll_worker") as session:
        session.execute(text("UPDATE fine_tuning_jobs SET attempt = 1"))
    prepare = supervisor._prepare

    def then_leave(job: Job) -> Path:
        prepared = prepare(job)
        # As a worker that was thought dead and comes back does.
        leave(id, *LEFT)
        return prepared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "_prepare", then_leave)
        supervisor.run("worker-1")
    assert [name for name in LEFT if (storage.job_dir(id) / name).exists()] == []
    assert (storage.job_dir(id) / "attempt-2" / "model").exists() == (plan == "succeed")


def test_an_attempt_that_the_database_has_forgotten_is_not_written_over(submit: Submit) -> None:
    id = submit()
    leave(id, "attempt-1/model")
    supervisor.run("worker-1")
    assert row(id).status == "succeeded"
    assert len(list(storage.job_dir(id).glob("attempt-1*/model"))) == 2


def test_every_attempt_is_told_when_the_job_was_created(submit: Submit) -> None:
    id = submit()
    supervisor.run("worker-1")
    (path,) = storage.job_dir(id).glob("attempt-*/run.json")
    assert RunSpec.model_validate_json(path.read_bytes()).now == row(id).created_at
