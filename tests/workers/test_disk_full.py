"""A job on a full disk waits, uses no strike up, and goes on when there is room."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.core import storage
from service.core.db import transaction
from service.settings import settings
from tests.disks import empty, fill, small_disk
from tests.workers.conftest import events, row
from workers.control import sweep
from workers.jobs import supervisor
from workers.jobs.settle import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS

pytestmark = pytest.mark.usefixtures("stub")
Submit = Callable[..., str]


@pytest.fixture
def small(database: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder on a small disk."""
    with small_disk(tmp_path / "small", 2 * 1024**2) as data:
        shutil.copy(settings().data_dir / "installation", data)
        monkeypatch.setenv("TROLL_DATA_DIR", str(data))
        settings.cache_clear()
        yield data
        monkeypatch.undo()
        settings.cache_clear()


def make_eligible() -> None:
    with transaction("troll_worker") as session:
        session.execute(text("UPDATE fine_tuning_jobs SET eligible_at = now()"))


def seconds_to_wait(id: str) -> float:
    with transaction("troll_worker") as session:
        return float(session.scalar(text("SELECT extract(epoch FROM eligible_at - now()) FROM fine_tuning_jobs")))


def assert_waits(id: str) -> None:
    job, told = row(id), events(id)[-1]
    assert (job.status, job.strikes, job.lease_expires_at) == ("queued", 0, None)
    assert (told.level, told.data) == ("warn", {"code": "disk_full"})
    assert told.message.startswith("The disk is full. The job waits and is tried again in")
    assert seconds_to_wait(id) > 0


def assert_goes_on(id: str) -> None:
    make_eligible()
    supervisor.run("worker-1")
    assert (row(id).status, row(id).error) == ("succeeded", None)


def test_no_room_for_what_the_child_is_told(submit: Submit, small: Path) -> None:
    id = submit()
    fill(small)
    for _ in range(4):
        make_eligible()
        supervisor.run("worker-1")
        assert_waits(id)
    empty(small)
    assert_goes_on(id)


def test_it_waits_longer_each_time_and_tells_it_once(submit: Submit, small: Path) -> None:
    id = submit()
    fill(small)
    waited = []
    for _ in range(7):
        make_eligible()
        supervisor.run("worker-1")
        waited.append(seconds_to_wait(id))
    assert waited == pytest.approx([30, 60, 120, 240, 480, 900, 900], abs=20)
    assert (FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS) == (30, 900)
    assert [event.seq for event in events(id)] == list(range(1, len(events(id)) + 1))


def test_a_child_that_finds_no_room(submit: Submit, small: Path) -> None:
    id = submit("full-once")
    supervisor.run("worker-1")
    assert_waits(id)
    assert_goes_on(id)
    steps = [event.data["step"] for event in events(id) if event.type == "metrics"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_no_room_for_the_result_file(submit: Submit, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    id = submit()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_file", full)
        supervisor.run("worker-1")
    assert_waits(id)
    assert_goes_on(id)
    assert not (storage.job_dir(id) / "attempt-1" / "model").exists()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_room_for_the_childs_own_folder(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    id = submit()
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkdtemp", full)
        supervisor.run("worker-1")
    assert_waits(id)
    assert_goes_on(id)


def test_no_room_for_the_log_is_no_reason_to_end(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    id = submit()
    monkeypatch.setattr(shutil, "copyfile", full)
    supervisor.run("worker-1")
    assert row(id).status == "succeeded"


def test_a_child_that_cannot_be_kept_waiting_is_no_reason_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    supervisor.WarmChildren().warm_up()


def test_a_waiting_job_can_be_cancelled_and_paused(submit: Submit, small: Path, client: TestClient) -> None:
    id, other = submit(), submit()
    fill(small)
    supervisor.run("worker-1")
    supervisor.run("worker-1")
    assert client.post(f"/v1/fine_tuning/jobs/{id}/cancel").json()["status"] == "cancelled"
    assert client.post(f"/v1/fine_tuning/jobs/{other}/pause").json()["status"] == "paused"


def test_a_folder_that_cannot_be_used_is_tried_again_and_named(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    id = submit()
    monkeypatch.setenv("TROLL_RETRY_DELAY_SECONDS", "0")
    settings.cache_clear()
    monkeypatch.setattr(supervisor, "_prepare", broken)
    while row(id).status == "queued":
        supervisor.run("worker-1")
    error = row(id).error
    assert error is not None
    assert error["code"] == "worker_unavailable"
    assert "Read-only file system" in error["message"]


def test_a_sweep_with_no_room_does_the_rest_of_its_work(submit: Submit, small: Path) -> None:
    id = submit()
    with transaction("troll_worker") as session:
        session.execute(
            text(
                "UPDATE fine_tuning_jobs SET status = 'running', attempt = 1, worker = 'gone', "
                "lease_expires_at = now() - interval '1 second'"
            )
        )
    fill(small)
    sweep.sweep()
    assert row(id).status == "queued"
