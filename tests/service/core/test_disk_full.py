"""Requests on a full disk: 507 in OpenAI's envelope, and nothing half-made stays."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.core import storage
from service.files import repository as files
from service.jobs import repository as jobs
from service.settings import settings
from tests import factories
from tests.disks import empty, fill, small_disk


@pytest.fixture
def small(database: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder on a disk of a megabyte."""
    with small_disk(tmp_path / "small", 1024 * 1024) as data:
        shutil.copy(settings().data_dir / "installation", data)
        monkeypatch.setenv("TROLL_DATA_DIR", str(data))
        settings.cache_clear()
        yield data
        monkeypatch.undo()
        settings.cache_clear()


def no_room(session: Session, *_: object) -> None:
    """What PostgreSQL answers when its own disk is full."""
    session.execute(text("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$"))


def assert_full(answer: Any) -> None:
    assert answer.status_code == 507, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("disk_full", "server_error")
    assert "no room" in error["message"]


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def upload(client: TestClient, data: bytes) -> Any:
    return client.post("/v1/files", files={"file": ("rows.jsonl", data)}, data={"purpose": "fine-tune"})


@pytest.mark.parametrize("room", [0, 16 * 1024])
def test_an_upload(client: TestClient, small: Path, room: int) -> None:
    fill(small, room)
    assert_full(upload(client, factories.jsonl(factories.rows(1000))))
    assert left(small) == ["ballast", "installation"]
    assert client.get("/v1/files").json()["data"] == []
    empty(small)
    assert upload(client, factories.jsonl(factories.rows(1000))).status_code == 200


def test_a_part_and_the_joined_file(client: TestClient, small: Path) -> None:
    data = factories.jsonl(factories.rows(1000))
    body = {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": len(data), "mime_type": "text/jsonl"}
    id = client.post("/v1/uploads", json=body).json()["id"]

    def part() -> Any:
        return client.post(f"/v1/uploads/{id}/parts", files={"data": ("part", data)})

    fill(small)
    assert_full(part())
    empty(small)
    sent = part().json()["id"]
    fill(small, 8192)
    before = left(small)
    complete = {"part_ids": [sent]}
    assert_full(client.post(f"/v1/uploads/{id}/complete", json=complete))
    assert left(small) == before
    empty(small)
    assert client.post(f"/v1/uploads/{id}/complete", json=complete).json()["status"] == "completed"


def test_a_job(client: TestClient, small: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = factories.job_body(client, factories.offer_model(models_dir))
    fill(small)

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    # Where there are no links, files are copied.
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        assert_full(client.post("/v1/fine_tuning/jobs", json=body))
    assert list((small / "jobs").iterdir()) == []
    assert client.get("/v1/fine_tuning/jobs").json()["data"] == []
    empty(small)
    assert client.post("/v1/fine_tuning/jobs", json=body).status_code == 200


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_and_a_full_disk_of_temporary_files(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", full)
    assert_full(upload(client, b"{}"))


def test_any_other_error_of_the_system_is_still_one(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(storage, "write_file", broken)
    answer = upload(client, factories.jsonl(factories.rows(3)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")


def test_postgres_own_disk(
    client: TestClient, data_dir: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = factories.job_body(client, factories.offer_model(models_dir))
    kept = set((data_dir / "jobs").iterdir())

    monkeypatch.setattr(jobs, "add", no_room)
    assert_full(client.post("/v1/fine_tuning/jobs", json=body))
    assert set((data_dir / "jobs").iterdir()) == kept


def test_a_file_whose_row_finds_no_room_does_not_stay(
    client: TestClient, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set((data_dir / "files").iterdir())

    monkeypatch.setattr(files, "add", no_room)
    assert_full(upload(client, factories.jsonl(factories.rows(3))))
    assert set((data_dir / "files").iterdir()) == before
