"""Files in parts through the official client."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psycopg
import pytest

from service.core import storage
from service.embedded.servers import Servers
from service.settings import settings
from tests import factories
from tests.contract.conftest import Official
from workers.control.prune import prune

DATA = factories.jsonl(factories.rows(40))


def announce(official: Official, size: int = len(DATA)) -> Any:
    uploads = official.client.uploads
    return official.ask(
        uploads.create(bytes=size, filename="rows.jsonl", mime_type="application/jsonl", purpose="fine-tune")
    )


def send(official: Official, upload: Any, data: bytes) -> str:
    part = official.ask(official.client.uploads.parts.create(upload.id, data=data))
    assert (part.object, part.upload_id) == ("upload.part", upload.id)
    return part.id


def complete(official: Official, upload: Any, part_ids: list[str], **options: Any) -> Any:
    return official.ask(official.client.uploads.complete(upload.id, part_ids=part_ids, **options))


def test_a_file_in_chunks_is_the_file(official: Official, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(DATA)
    upload = official.ask(
        official.client.uploads.upload_file_chunked(
            file=path,
            mime_type="application/jsonl",
            purpose="fine-tune",
            part_size=1000,
            md5=hashlib.md5(DATA).hexdigest(),
        )
    )
    assert (upload.status, upload.file.filename, upload.file.bytes) == ("completed", "rows.jsonl", len(DATA))
    assert official.ask(official.client.files.content(upload.file.id)).content == DATA


def test_chunks_of_bytes_in_memory(official: Official) -> None:
    upload = official.ask(
        official.client.uploads.upload_file_chunked(
            file=DATA, filename="m.jsonl", bytes=len(DATA), mime_type="text/plain", purpose="fine-tune", part_size=900
        )
    )
    assert upload.file.filename == "m.jsonl"


def test_parts_take_the_order_of_their_ids(official: Official) -> None:
    upload = announce(official)
    second, first = send(official, upload, DATA[1000:]), send(official, upload, DATA[:1000])
    file = complete(official, upload, [first, second]).file
    assert official.ask(official.client.files.content(file.id)).content == DATA


def test_an_announced_upload_is_pending_for_an_hour(official: Official) -> None:
    upload = announce(official)
    assert (upload.object, upload.status, upload.file) == ("upload", "pending", None)
    assert upload.expires_at - upload.created_at == 3600


def test_an_expiry_becomes_the_files(official: Official) -> None:
    upload = official.ask(
        official.client.uploads.create(
            bytes=len(DATA),
            filename="r",
            mime_type="text/plain",
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 7200},
        )
    )
    file = complete(official, upload, [send(official, upload, DATA)]).file
    assert file.expires_at - file.created_at == 7200


def refused(call: Any, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        call()
    assert refusal.value.code == code


def test_too_few_bytes_are_refused(official: Official) -> None:
    upload = announce(official)
    part = send(official, upload, DATA[:-1])
    refused(lambda: complete(official, upload, [part]), "upload_size_mismatch")


def test_too_many_bytes_are_refused_and_not_kept(official: Official) -> None:
    upload = announce(official, size=10)
    refused(lambda: send(official, upload, DATA), "upload_size_mismatch")
    assert list(storage.upload_dir(upload.id).iterdir()) == []


def test_a_wrong_checksum_leaves_nothing_behind_and_may_be_corrected(official: Official, data_dir: Path) -> None:
    upload = announce(official)
    part = send(official, upload, DATA)
    before = set((data_dir / "files").iterdir())
    refused(lambda: complete(official, upload, [part], md5="0" * 32), "checksum_mismatch")
    assert set((data_dir / "files").iterdir()) == before
    assert complete(official, upload, [part], md5=hashlib.md5(DATA).hexdigest()).status == "completed"


def test_parts_of_another_upload_are_refused(official: Official) -> None:
    mine, other = announce(official), announce(official)
    part = send(official, other, DATA)
    refused(lambda: complete(official, mine, [part]), "part_not_found")


def test_a_part_named_twice_is_refused(official: Official) -> None:
    upload = announce(official)
    part = send(official, upload, DATA)
    refused(lambda: complete(official, upload, [part, part]), "invalid_value")


def test_joined_parts_are_checked_like_any_file(official: Official) -> None:
    upload = announce(official, size=4)
    part = send(official, upload, b"{}\n\n")
    refused(lambda: complete(official, upload, [part]), "invalid_file")


def test_an_upload_too_large_is_refused_at_once(official: Official) -> None:
    refused(lambda: announce(official, size=settings().max_upload_bytes + 1), "file_too_large")


def test_a_cancelled_upload_takes_nothing_and_keeps_no_bytes(official: Official) -> None:
    upload = announce(official)
    part = send(official, upload, DATA)
    assert official.ask(official.client.uploads.cancel(upload.id)).status == "cancelled"
    assert not storage.upload_dir(upload.id).exists()
    refused(lambda: send(official, upload, DATA), "invalid_upload_state")
    refused(lambda: complete(official, upload, [part]), "invalid_upload_state")


def test_a_completed_upload_keeps_no_parts_and_is_over(official: Official) -> None:
    upload = announce(official)
    part = send(official, upload, DATA)
    complete(official, upload, [part])
    assert not storage.upload_dir(upload.id).exists()
    refused(lambda: complete(official, upload, [part]), "invalid_upload_state")


def test_an_expired_upload_takes_nothing_and_is_pruned(official: Official, database: Servers) -> None:
    expired, live = announce(official), announce(official)
    part = send(official, expired, DATA)
    send(official, live, DATA)
    with psycopg.connect(database.database_owner_url, autocommit=True) as connection:
        connection.execute("UPDATE uploads SET expires_at = now() WHERE id = %s", [expired.id])
    refused(lambda: complete(official, expired, [part]), "invalid_upload_state")
    prune()
    assert not storage.upload_dir(expired.id).exists()
    assert storage.upload_dir(live.id).exists()


def test_another_organisations_upload_is_not_found(official: Official, connect: Any, new_key: Any) -> None:
    upload = announce(official)
    stranger = connect(new_key(organization="globex"))
    calls: list[Callable[[], object]] = [
        lambda: stranger.uploads.parts.create(upload.id, data=b"x"),
        lambda: stranger.uploads.complete(upload.id, part_ids=["part_x"]),
        lambda: stranger.uploads.cancel(upload.id),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError):
            call()


def test_a_part_too_large_is_refused(connect: Any, api_key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROLL_MAX_PART_BYTES", "1000")
    settings.cache_clear()
    try:
        client = connect(api_key)
        upload = client.uploads.create(bytes=10_000_000, filename="r", mime_type="text/plain", purpose="fine-tune")
        with pytest.raises(openai.APIStatusError) as refusal:
            client.uploads.parts.create(upload.id, data=io.BytesIO(b"x" * 200_000))
        assert refusal.value.status_code == 413
    finally:
        monkeypatch.undo()
        settings.cache_clear()
