"""What pruning removes, and above all what it leaves."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.core import clock, storage
from service.core.db import transaction
from service.core.ids import new_id
from service.embedded.servers import Servers
from service.installation import service as installation
from service.installation.repository import get
from service.settings import settings
from tests import factories
from tests.workers.conftest import row
from workers.control import prune as pruning
from workers.control.prune import prune
from workers.jobs import supervisor

DAY = 24 * 3600

pytestmark = pytest.mark.usefixtures("stub")


@pytest.fixture
def folder(database: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of this test's own, tied to the database."""
    shared = settings().data_dir / installation.FILE
    data = tmp_path / "data"
    data.mkdir()
    (data / installation.FILE).write_text(shared.read_text())
    monkeypatch.setenv("TROLL_DATA_DIR", str(data))
    settings.cache_clear()
    yield data
    monkeypatch.undo()
    settings.cache_clear()
    # The shared folder has not seen what was written to this one since.
    with transaction("troll_control") as session:
        kept = get(session)
        kept.beats, kept.careful_until = [shared.read_text().split()[1]], None


def age(path: Path, seconds: float = 2 * DAY) -> Path:
    os.utime(path, (time.time() - seconds,) * 2, follow_symlinks=False)
    return path


def old_file(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return age(path)


def old_folder(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "x").write_text("x")
    return age(path)


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_orphans_are_removed_when_they_are_old(folder: Path) -> None:
    orphans = [
        old_file(folder, new_id("files/file-")),
        old_file(folder, new_id("files/file-") + ".partial"),
        old_folder(folder, new_id("jobs/ftjob-")),
        old_folder(folder, new_id("uploads/upload_")),
    ]
    young = folder / new_id("files/file-")
    young.write_text("x")
    prune()
    assert [path for path in orphans if path.exists()] == []
    assert young.exists()


def test_what_rows_name_stays(folder: Path, client: TestClient) -> None:
    id = factories.upload(client, factories.jsonl(factories.rows(3)))
    age(storage.file_path(id))
    prune()
    assert storage.file_path(id).exists()


@pytest.mark.parametrize(
    "name",
    [
        "files/notes.txt",
        "files/file-short",
        "files/file-" + "é" * 24,
        "files/ftjob-" + 24 * "0",
        "files/file-" + 24 * "0" + ".bak",
        "jobs/lost+found/x",
        "jobs/ftjob-" + 24 * "0" + ".tar",
        "uploads/readme",
        "other/file-" + 24 * "0",
    ],
)
def test_strangers_files_stay(folder: Path, name: str) -> None:
    stranger = old_file(folder, name)
    age(stranger.parent)
    prune()
    assert stranger.exists()


def test_strangers_are_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    old_file(folder, "files/notes.txt")
    with caplog.at_level(logging.WARNING):
        prune()
        prune()
    assert [record.message for record in caplog.records if "notes.txt" in record.message] == [
        f"1 things in {folder / 'files'} are not the service's and are left alone: {folder / 'files' / 'notes.txt'}"
    ]


def test_links_and_things_of_another_kind_stay_whatever_their_name(folder: Path, tmp_path: Path) -> None:
    precious = old_folder(tmp_path, "precious")
    (folder / "jobs").mkdir()
    link = folder / new_id("jobs/ftjob-")
    link.symlink_to(precious)
    age(link)
    as_folder = old_folder(folder, new_id("files/file-"))
    as_file = old_file(folder, new_id("jobs/ftjob-"))
    prune()
    assert link.is_symlink()
    assert (precious / "x").exists()
    assert as_folder.exists()
    assert as_file.exists()


def test_with_another_database_nothing_is_lost(folder: Path) -> None:
    for name in ("files/file-", "uploads/upload_"):
        old_folder(folder, new_id(name))
    old_folder(folder, new_id("jobs/ftjob-") + "/attempt-1/model")
    old_file(folder, "files/notes.txt")
    (folder / installation.FILE).write_text("inst_other abc\n")
    before = everything(folder)
    with pytest.raises(installation.MismatchError):
        prune()
    assert everything(folder) == before


def test_with_a_database_from_before_its_files_nothing_is_lost(folder: Path, client: TestClient) -> None:
    with transaction("troll_control") as session:
        backup = get(session).beats
    id = factories.upload(client, factories.jsonl(factories.rows(3)))
    age(storage.file_path(id))
    old_folder(folder, new_id("jobs/ftjob-"))
    for _ in range(2):
        installation.beat("troll_control")
    with transaction("troll_control") as session:
        get(session).beats = backup
        session.execute(text("DELETE FROM files"))
    before = everything(folder)
    prune()
    installation.beat("troll_control")
    prune()
    assert everything(folder) == before


def test_orphans_go_when_the_careful_time_is_over(folder: Path) -> None:
    orphan = old_file(folder, new_id("files/file-"))
    with transaction("troll_control") as session:
        get(session).careful_until = clock.now(session) + timedelta(days=1)
    prune()
    assert orphan.exists()
    with transaction("troll_control") as session:
        get(session).careful_until = clock.now(session) - timedelta(seconds=1)
    prune()
    assert not orphan.exists()


def test_a_clock_that_is_ahead_makes_nothing_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orphan = old_file(folder, new_id("files/file-"))
    age(orphan, 3600)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    prune()
    assert orphan.exists()


def test_leftovers_of_attempts_at_ended_jobs_are_removed(folder: Path, submit: Callable[..., str]) -> None:
    id = submit()
    supervisor.run("worker-1")
    named = everything(storage.job_dir(id))
    with transaction("troll_worker") as session:
        session.execute(text("UPDATE fine_tuning_jobs SET attempt = 2"))
    # A worker that was thought dead comes back and writes on.
    for name in ("attempt-2/model", "attempt-2/checkpoints/step-000003", "attempt-1/checkpoints/.step-000009.partial"):
        old_folder(storage.job_dir(id), name)
    prune()
    assert (storage.job_dir(id) / "attempt-2" / "model").exists(), "the job has only just ended"
    with transaction("troll_worker") as session:
        session.execute(text("UPDATE fine_tuning_jobs SET finished_at = now() - interval '2 hours'"))
    mine = old_folder(storage.job_dir(id), "attempt-1/checkpoints/my-notes")
    later = old_folder(storage.job_dir(id), "attempt-3/model")
    prune()
    assert row(id).status == "succeeded"
    kept = ("attempt-1/checkpoints/my", "attempt-3")
    left = {name for name in everything(storage.job_dir(id)) if not name.startswith(kept)}
    assert left - {"attempt-2", "attempt-2/checkpoints"} == named
    assert mine.exists()
    assert later.exists(), "the row knows of no third attempt"


def test_more_names_than_a_query_takes_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "BATCH", 3)
    orphans = [old_file(folder, new_id("files/file-")) for _ in range(7)]
    prune()
    assert [path for path in orphans if path.exists()] == []


def ended_job(client: TestClient, submit: Callable[..., str], days: float) -> str:
    id = submit()
    client.post(f"/v1/fine_tuning/jobs/{id}/cancel")
    with transaction("troll_control") as session:
        session.execute(
            text("UPDATE fine_tuning_jobs SET finished_at = now() - make_interval(secs => :age) WHERE id = :id"),
            {"age": days * DAY, "id": id},
        )
    return id


def told(client: TestClient, id: str) -> int:
    return len(client.get(f"/v1/fine_tuning/jobs/{id}/events").json()["data"])


def test_events_of_jobs_that_ended_long_ago_are_removed_where_the_operator_says_so(
    folder: Path, client: TestClient, submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "JOBS_AT_ONCE", 2)
    old, new = [ended_job(client, submit, 31) for _ in range(5)], ended_job(client, submit, 29)
    running = submit()
    prune()
    assert all(told(client, id) for id in old)
    monkeypatch.setenv("TROLL_EVENTS_KEPT_DAYS", "30")
    settings.cache_clear()
    prune()
    assert [told(client, id) for id in old] == [0] * 5
    assert told(client, new)
    assert told(client, running)
    shown = [client.get(f"/v1/fine_tuning/jobs/{id}").json()["progress"]["events_removed_at"] for id in (old[0], new)]
    assert shown[0] is not None
    assert shown[1] is None


def test_who_follows_a_job_without_its_events_is_told_that_it_has_ended(
    folder: Path, client: TestClient, submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    id = ended_job(client, submit, 2)
    monkeypatch.setenv("TROLL_EVENTS_KEPT_DAYS", "1")
    settings.cache_clear()
    prune()
    for after in ("0", "1"):
        frames = client.get(f"/v1/fine_tuning/jobs/{id}/events?stream=true&after={after}").text
        assert frames == "data: [DONE]\n\n"


def test_nobody_can_remove_the_events_of_a_job_that_has_not_ended_long_ago(
    client: TestClient, submit: Callable[..., str]
) -> None:
    ids = [submit(), ended_job(client, submit, 0.5), ended_job(client, submit, 1)]
    with transaction("troll_control") as session:
        removed = session.execute(text("DELETE FROM fine_tuning_events RETURNING job_id")).scalars().all()
    assert set(removed) == {ids[2]}
    assert [bool(told(client, id)) for id in ids] == [True, True, False]


def test_more_than_one_batch_is_removed_at_a_time(
    folder: Path, client: TestClient, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning._until_none_is_left, "__kwdefaults__", {"limit": 2})
    ids = [factories.upload(client, factories.jsonl(factories.rows(1, n))) for n in range(5)]
    with psycopg.connect(servers.database_owner_url, autocommit=True) as owner:
        owner.execute("UPDATE files SET expires_at = now() - interval '1 second'")
    prune()
    assert [id for id in ids if storage.file_path(id).exists()] == []
    assert client.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize("end", ["cancelled", "succeeded", "failed"])
def test_the_rows_of_a_job_go_with_its_end(
    folder: Path, client: TestClient, submit: Callable[..., str], end: str
) -> None:
    id = submit("user-error" if end == "failed" else "succeed")
    assert storage.job_data(id, "training").exists()
    if end == "cancelled":
        client.post(f"/v1/fine_tuning/jobs/{id}/cancel")
    else:
        supervisor.run("worker-1")
    assert row(id).status == end
    assert list(storage.job_dir(id).glob("*.jsonl")) == []


def test_the_rows_of_a_job_that_ended_under_an_earlier_version_are_pruned(
    folder: Path, client: TestClient, submit: Callable[..., str]
) -> None:
    id = ended_job(client, submit, 1)
    left = storage.job_data(id, "training")
    left.write_text("x")
    running = submit()
    prune()
    assert not left.exists()
    assert storage.job_data(running, "training").exists()
