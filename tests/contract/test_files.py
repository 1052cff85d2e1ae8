"""Files as the official client uploads, lists, reads and deletes them."""

import io
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests import factories
from tests.contract.conftest import Official

DATA = factories.jsonl(factories.rows(3))


def on_disk(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize(
    ("source", "filename"),
    [
        (lambda folder: DATA, "upload"),
        (lambda folder: io.BytesIO(DATA), "upload"),
        (on_disk, "rows.jsonl"),
        (lambda folder: on_disk(folder).open("rb"), "rows.jsonl"),
        (lambda folder: ("mine.txt", DATA, "text/plain"), "mine.txt"),
    ],
    ids=["bytes", "BytesIO", "path", "open file", "tuple"],
)
def test_every_kind_of_file_argument(official: Official, tmp_path: Path, source: Any, filename: str) -> None:
    file = official.ask(official.client.files.create(file=source(tmp_path), purpose="fine-tune"))
    assert (file.filename, file.bytes, file.purpose, file.status) == (filename, len(DATA), "fine-tune", "processed")


def test_content_is_the_bytes_that_were_uploaded(official: Official, tmp_path: Path) -> None:
    file = official.ask(official.client.files.create(file=DATA, purpose="fine-tune"))
    content = official.ask(official.client.files.content(file.id))
    assert content.content == DATA


def test_an_expiry_is_kept(official: Official) -> None:
    expires_after = {"anchor": "created_at", "seconds": 3600}
    file = official.ask(official.client.files.create(file=DATA, purpose="fine-tune", expires_after=expires_after))
    assert file.expires_at == pytest.approx(file.created_at + 3600, abs=1)
    assert file.expires_at - time.time() < 3601


def test_a_deleted_file_is_an_object_and_gone(official: Official) -> None:
    file = official.ask(official.client.files.create(file=DATA, purpose="fine-tune"))
    gone = official.ask(official.client.files.delete(file.id))
    assert (gone.id, gone.object, gone.deleted) == (file.id, "file", True)
    with pytest.raises(openai.NotFoundError):
        official.ask(official.client.files.retrieve(file.id))


def test_waiting_for_processing_ends(official: Official) -> None:
    file = official.ask(official.client.files.create(file=DATA, purpose="fine-tune"))
    assert official.ask(official.client.files.wait_for_processing(file.id)).status == "processed"


def test_paging_shows_each_file_once_newest_first(official: Official) -> None:
    ids = [official.ask(official.client.files.create(file=DATA, purpose="fine-tune")).id for _ in range(5)]
    assert [file.id for file in official.everything(official.client.files.list(limit=2))] == ids[::-1]
    assert [file.id for file in official.everything(official.client.files.list(limit=2, order="asc"))] == ids


def test_a_bad_file_names_its_lines(official: Official) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        official.ask(official.client.files.create(file=DATA + b"{\n", purpose="fine-tune"))
    assert (refusal.value.code, refusal.value.param) == ("invalid_file", "file")
    assert "line 4" in refusal.value.message
