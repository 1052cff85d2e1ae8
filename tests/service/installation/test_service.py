"""A database and its data folder: tied when they are new or evidently of one kind, kept apart otherwise."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.core.db import transaction
from service.core.ids import new_id
from service.embedded.servers import Servers
from service.installation import service as installation
from service.installation.models import Installation
from service.installation.repository import get
from service.settings import settings
from tests import factories

Upload = Callable[[], str]


@pytest.fixture
def folder(database: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of this test's own, which the database has never seen any other than."""
    monkeypatch.setenv("TROLL_DATA_DIR", str(tmp_path / "data"))
    settings.cache_clear()
    with transaction("troll_control") as session:
        row = get(session)
        before = row.tied_at, row.beats, row.careful_until
        row.tied_at, row.beats, row.careful_until = None, [], None
    yield tmp_path / "data"
    monkeypatch.undo()
    settings.cache_clear()
    with transaction("troll_control") as session:
        row = get(session)
        row.tied_at, row.beats, row.careful_until = before


@pytest.fixture
def upload(client: TestClient) -> Upload:
    return lambda: factories.upload(client, factories.jsonl(factories.rows(3)))


def tie() -> None:
    with transaction("troll_control") as session:
        installation.tie(session)


def row() -> Installation:
    with transaction("troll_control") as session:
        return get(session)


def careful() -> bool:
    with transaction("troll_control") as session:
        return installation.is_careful(session)


def marker(folder: Path) -> Path:
    return folder / installation.FILE


def test_a_new_database_and_a_new_folder_are_tied(folder: Path) -> None:
    tie()
    assert marker(folder).read_text().split()[0] == row().id
    assert marker(folder).stat().st_mode & 0o777 == 0o600
    assert not careful()
    tie()


def test_an_installation_from_before_there_were_ids_is_tied_by_what_it_holds(folder: Path, upload: Upload) -> None:
    upload()
    assert not marker(folder).exists()
    tie()
    assert marker(folder).read_text().split()[0] == row().id


def test_nothing_unknown_is_deleted_for_a_while_where_it_is_not_known_what_came_before(
    folder: Path, upload: Upload
) -> None:
    upload()
    tie()
    assert careful()


def test_strangers_files_in_a_new_folder_are_no_obstacle(folder: Path) -> None:
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "notes.txt").write_text("mine")
    tie()
    assert not careful()


@pytest.mark.parametrize("name", ["files/file-", "jobs/ftjob-", "uploads/upload_"])
def test_an_empty_database_is_not_tied_to_a_full_folder(folder: Path, name: str) -> None:
    (folder / new_id(name)).mkdir(parents=True)
    with pytest.raises(installation.MismatchError, match=r"has no id.*It holds 1 files and jobs, none of which"):
        tie()
    assert not marker(folder).exists()


def test_a_full_database_is_not_tied_to_an_empty_folder(
    folder: Path, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload()
    monkeypatch.setenv("TROLL_DATA_DIR", str(folder.with_name("another")))
    settings.cache_clear()
    with pytest.raises(installation.MismatchError, match="It is empty"):
        tie()


def test_a_volume_that_was_swapped_for_an_empty_one_is_noticed(folder: Path) -> None:
    tie()
    marker(folder).unlink()
    with pytest.raises(installation.MismatchError, match="It is empty"):
        tie()


def test_a_folder_of_another_database_is_refused_with_both_ids_and_a_way_out(folder: Path, upload: Upload) -> None:
    upload()
    marker(folder).write_text("inst_other abc\n")
    with pytest.raises(installation.MismatchError) as refusal:
        tie()
    said = str(refusal.value)
    assert "inst_other" in said
    assert f"echo {row().id} > {marker(folder)}" in said


def test_the_way_out_works_and_is_a_careful_one(folder: Path) -> None:
    (folder / new_id("files/file-")).mkdir(parents=True)
    marker(folder).write_text(f"{row().id}\n")
    tie()
    assert careful()
    installation.beat("troll_control")
    assert careful()


def test_beats_go_on_and_change_nothing_else(folder: Path) -> None:
    tie()
    before = marker(folder).read_text()
    for _ in range(3):
        installation.beat("troll_control")
        assert not careful()
    assert marker(folder).read_text() != before


def test_a_beat_that_did_not_reach_the_folder_is_harmless(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tie()

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(installation, "_write", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                installation.beat("troll_control")
    installation.beat("troll_control")
    assert not careful()


def test_a_database_that_was_set_back_is_noticed(folder: Path) -> None:
    tie()
    before = row().beats
    for _ in range(2):
        installation.beat("troll_control")
    with transaction("troll_control") as session:
        get(session).beats = before
    assert careful()
    installation.beat("troll_control")
    assert careful()
    assert row().careful_until is not None


def test_a_copy_of_the_database_at_work_on_the_same_folder_is_noticed_by_both(folder: Path) -> None:
    tie()
    ours = theirs = row().beats
    for turn in range(4):
        with transaction("troll_control") as session:
            get(session).beats = ours if turn % 2 == 0 else theirs
        installation.beat("troll_control")
        if turn % 2 == 0:
            ours = row().beats
        else:
            theirs = row().beats
    assert row().careful_until is not None


def test_nobody_beats_for_another_folder(folder: Path) -> None:
    tie()
    marker(folder).write_text("inst_other abc\n")
    with pytest.raises(installation.MismatchError):
        installation.beat("troll_control")
    assert marker(folder).read_text() == "inst_other abc\n"


def test_the_api_is_ready_only_on_its_own_folder(folder: Path) -> None:
    client = TestClient(create_app())
    assert client.get("/readyz").json()["error"]["code"] == "data_folder_untied"
    tie()
    assert client.get("/readyz").status_code == 200
    marker(folder).write_text("inst_other abc\n")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "data_folder_mismatch")
    assert "inst_other" in answer.json()["error"]["message"]


def test_the_api_does_not_start_on_another_folder(folder: Path) -> None:
    tie()
    marker(folder).write_text("inst_other abc\n")
    with pytest.raises(installation.MismatchError), TestClient(create_app()):
        pass


def test_no_job_is_taken_on_another_folder(
    folder: Path, client: TestClient, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.jobs import supervisor

    tie()
    factories.create_job(client, factories.offer_model(models_dir))
    marker(folder).write_text("inst_other abc\n")
    supervisor.run("worker-1")
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"]) as connection:
        assert connection.execute("SELECT status FROM fine_tuning_jobs").fetchall() == [("queued",)]
