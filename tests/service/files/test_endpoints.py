"""Files over HTTP."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.settings import settings
from tests import factories
from tests.conftest import Key


def stored(data_dir: Path) -> set[str]:
    return {path.name for path in (data_dir / "files").iterdir()}


def refused(client: TestClient, data_dir: Path, data: bytes, purpose: str = "fine-tune") -> dict[str, Any]:
    """The error of an upload, after making sure that nothing of it is left."""
    before = stored(data_dir)
    answer = client.post("/v1/files", files={"file": ("rows.jsonl", data)}, data={"purpose": purpose})
    assert answer.status_code == 400, answer.text
    assert stored(data_dir) == before
    assert client.get("/v1/files").json()["data"] == []
    return answer.json()["error"]


def test_content_comes_back_byte_for_byte(client: TestClient) -> None:
    data = factories.jsonl(factories.rows(3))
    id = factories.upload(client, data)
    assert client.get(f"/v1/files/{id}/content").content == data


def test_a_file_tells_its_size_rows_and_name(client: TestClient) -> None:
    data = factories.jsonl(factories.rows(3))
    file = client.get(f"/v1/files/{factories.upload(client, data, filename='a/b/../c.jsonl')}").json()
    assert (file["bytes"], file["rows"], file["filename"], file["status"]) == (len(data), 3, "c.jsonl", "processed")


def test_every_bad_line_is_named_at_once(client: TestClient, data_dir: Path) -> None:
    good = json.dumps(factories.rows(1)[0])
    data = "\n".join([good, "{not json", good, '{"messages": []}', good]).encode()
    error = refused(client, data_dir, data)
    assert (error["code"], error["param"]) == ("invalid_file", "file")
    assert "line 2" in error["message"]
    assert "line 4" in error["message"]


def test_an_empty_file_is_refused(client: TestClient, data_dir: Path) -> None:
    assert "no rows" in refused(client, data_dir, b"")["message"]


def test_other_purposes_are_refused(client: TestClient, data_dir: Path) -> None:
    assert refused(client, data_dir, factories.jsonl(factories.rows(1)), purpose="batch")["param"] == "purpose"


def test_a_missing_part_is_named(client: TestClient) -> None:
    answer = client.post("/v1/files", files={"file": ("x.jsonl", b"{}")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "purpose")


def test_a_body_over_the_limit_is_a_413(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from service import app

    monkeypatch.setattr(app, "settings", lambda: settings().model_copy(update={"max_file_bytes": 1000}))
    answer = client.post("/v1/files", files={"file": ("x.jsonl", b"x" * 100_000)}, data={"purpose": "fine-tune"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_body_that_lies_about_its_length_is_cut_off(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.core import bodies

    monkeypatch.setattr(bodies, "settings", lambda: settings().model_copy(update={"max_body_bytes": 1000}))
    answer = client.post("/v1/fine_tuning/jobs", content=(b"x" * 500 for _ in range(10)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_stranger_cannot_make_the_server_read_an_upload(client_for: Callable[..., TestClient]) -> None:
    answer = client_for(None).post("/v1/files", content=b"not even multipart")
    assert answer.status_code == 401


def test_delete_answers_with_an_object_and_removes_the_bytes(client: TestClient, data_dir: Path) -> None:
    id = factories.upload(client, factories.jsonl(factories.rows(1)))
    assert client.delete(f"/v1/files/{id}").json() == {"id": id, "object": "file", "deleted": True}
    assert id not in stored(data_dir)
    assert client.get(f"/v1/files/{id}").status_code == 404


def test_expiry_is_kept_and_checked(client: TestClient) -> None:
    def create(seconds: str) -> Any:
        form = {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}
        return client.post("/v1/files", files={"file": ("x", factories.jsonl(factories.rows(1)))}, data=form)

    file = create("3600").json()
    assert file["expires_at"] - file["created_at"] == 3600
    assert create("10").json()["error"]["param"] == "expires_after.seconds"


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/content"), ("DELETE", "")])
def test_another_organisations_file_looks_like_none(
    client: TestClient,
    client_for: Callable[..., TestClient],
    new_key: Callable[..., Key],
    method: str,
    path: str,
) -> None:
    id = factories.upload(client, factories.jsonl(factories.rows(1)))
    answer = client_for(new_key(organization="globex")).request(method, f"/v1/files/{id}{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
    assert client.get(f"/v1/files/{id}").status_code == 200


def test_listing_pages_in_both_orders(client: TestClient) -> None:
    ids = [factories.upload(client, factories.jsonl(factories.rows(1))) for _ in range(3)]
    page = client.get("/v1/files", params={"order": "asc", "limit": 2}).json()
    rest = client.get("/v1/files", params={"order": "asc", "after": page["last_id"]}).json()
    assert [file["id"] for file in page["data"] + rest["data"]] == ids
    assert [file["id"] for file in client.get("/v1/files").json()["data"]] == ids[::-1]


def test_an_unknown_cursor_is_refused(client: TestClient) -> None:
    answer = client.get("/v1/files", params={"after": "file-none"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")
