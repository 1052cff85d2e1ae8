"""Exports over HTTP: what is refused, what is told, what is kept and for how long."""

import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from service.core.db import transaction
from service.embedded.servers import Servers
from service.exports import repository, seal
from service.exports import service as exports
from service.settings import settings
from tests import factories
from tests.conftest import Key
from workers.control import exporter, prune
from workers.control.sweep import export as sweep

LEASE = exporter.LEASE
HUB = {"repository": "me/mine", "token": "hf_secret"}


@pytest.fixture
def model(models_dir: Path) -> str:
    """A base model with an adapter beside it, as LoRA's results have."""
    name = factories.offer_model(models_dir, "export/lora")
    (models_dir / name / "adapter").mkdir(exist_ok=True)
    (models_dir / name / "adapter" / "adapter_config.json").write_text("{}")
    return name


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TROLL_HUB_URL", "https://hub.test")
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """``process(code)`` makes exports run ``code``, in which ``order`` is what is asked for and ``tell`` says a line.

    Returns a file of one line for each run.
    """
    runs = tmp_path / "runs"

    def use(code: str) -> Path:
        script = tmp_path / "process.py"
        script.write_text(
            "import json, os, sys, time, pathlib\n"
            "order = json.load(sys.stdin)\n"
            "tell = lambda **line: print(json.dumps(line), flush=True)\n"
            f"open({str(runs)!r}, 'a').write(json.dumps(order) + '\\n')\n{code}\n"
        )
        monkeypatch.setattr(exporter, "COMMAND", ["python3", str(script)])
        return runs

    return use


DONE = """
folder = pathlib.Path(order["folder"])
folder.mkdir(parents=True)
(folder / "model.gguf").write_bytes(b"weights" * 1000)
(folder / "Modelfile").write_text("FROM ./model.gguf")
import hashlib
sys.path.insert(0, os.getcwd())
from service.models import archive
files = archive.contents(folder)
content = b"".join(archive.read(files, 0, archive.size(files)))
tell(progress=0.5)
tell(type="bf16", notes=["mind this"], bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
"""


def ask(client: TestClient, model: str, format: str = "huggingface", status: int = 200, **more: Any) -> Any:
    answer = client.post(f"/v1/models/{model}/exports", json={"format": format, **more})
    assert answer.status_code == status, answer.text
    return answer.json() if status == 200 else answer.json()["error"]


def again(client: TestClient, export: dict[str, Any]) -> Any:
    return client.get(f"/v1/models/{export['model']}/exports/{export['id']}").json()


def expire(database: Servers, id: str, column: str = "lease_expires_at") -> None:
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        owner.execute(f"UPDATE exports SET {column} = now() - interval '1 second' WHERE id = %s", [id])


# What is asked for


def test_a_new_export_waits(client: TestClient, model: str) -> None:
    made = ask(client, model, "gguf", type="q8_0")
    expected = {"status": "queued", "progress": 0, "bytes": None, "sha256": None, "error": None, "type": "q8_0"}
    assert {name: made[name] for name in expected} == expected
    assert again(client, made) == made
    assert client.get(f"/v1/models/{model}/exports").json()["data"] == [made]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"format": "gguf", "type": "q4_k"}, "invalid_value"),
        ({"format": "onnx"}, "invalid_value"),
        ({"format": "huggingface", "type": "f16"}, "invalid_value"),
        ({"format": "huggingface", "hub": HUB}, "hub_not_allowed"),
    ],
    ids=["type", "format", "type-of-a-folder", "hub"],
)
def test_what_cannot_be_is_refused(client: TestClient, model: str, body: dict[str, Any], code: str) -> None:
    answer = client.post(f"/v1/models/{model}/exports", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text


@pytest.mark.parametrize("format", ["adapter", "merged"])
def test_a_model_without_an_adapter_has_none(client: TestClient, models_dir: Path, format: str) -> None:
    error = ask(client, factories.offer_model(models_dir, "export/full"), format, 400)
    assert error["code"] == "no_adapter"
    assert "huggingface" in error["message"]


def test_a_family_that_llama_cpp_does_not_know_is_refused_before_any_work(client: TestClient, models_dir: Path) -> None:
    name = factories.offer_model(models_dir, "export/mamba")
    (models_dir / name / "config.json").write_text('{"model_type": "mamba"}')
    error = ask(client, name, "gguf", 400)
    assert error["code"] == "unsupported_family"
    assert "qwen3, qwen3_moe" in error["message"]


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    "repository",
    [
        *("mine", "../x/y", "me/mine/yours", "https://elsewhere/me"),
        *("me/a--b", "me/a..b", "me/a-", "me/a.", "a-/b", "me/a.git", "me/a\n", f"me/{'a' * 97}"),
    ],
)
def test_a_repository_is_an_owner_and_a_name(client: TestClient, model: str, repository: str) -> None:
    error = ask(client, model, status=400, hub=HUB | {"repository": repository})
    assert error["param"] == "hub.repository"
    assert "hf_secret" not in json.dumps(error)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("repository", ["me/a.b-c_d", "_/x", f"me/{'a' * 96}", "a.git.b/git", "me/a.-b"])
def test_a_repository_that_is_taken_is_one_to_the_hubs_library(client: TestClient, model: str, repository: str) -> None:
    ask(client, model, hub=HUB | {"repository": repository})
    validate_repo_id(repository)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("token", ["hf_secret\n", " hf_secret", "hf_secr\u00e9t", "hf_\0secret"])
def test_a_token_that_no_header_can_hold_is_refused(client: TestClient, model: str, token: str) -> None:
    error = ask(client, model, status=400, hub=HUB | {"token": token})
    assert error["param"] == "hub.token"
    assert "secr" not in json.dumps(error)


def test_an_organisation_has_so_many_at_a_time(client: TestClient, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "MAX_OPEN", 1)
    ask(client, model)
    assert ask(client, model, status=429)["code"] == "export_quota_exceeded"


def test_a_repeated_request_makes_one_export(client: TestClient, model: str) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"format": "huggingface"}
    first, second = (client.post(f"/v1/models/{model}/exports", json=body, headers=headers).json() for _ in range(2))
    assert first["id"] == second["id"]


def test_exports_count_as_storage(client: TestClient, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROLL_MAX_STORAGE_BYTES", "100000")
    settings.cache_clear()
    try:
        made = ask(client, model)
        assert ask(client, model, status=429)["code"] == "insufficient_quota"
        client.delete(f"/v1/models/{model}/exports/{made['id']}")
        ask(client, model)
    finally:
        monkeypatch.undo()
        settings.cache_clear()


# The work


def test_a_finished_export_is_downloaded_in_parts(
    client: TestClient, model: str, process: Callable[[str], Path]
) -> None:
    process(DONE)
    made = ask(client, model, "gguf")
    address = f"/v1/models/{model}/exports/{made['id']}"
    assert client.get(f"{address}/content").json()["error"]["code"] == "export_not_ready"
    exporter.work()
    done = again(client, made)
    assert [done[name] for name in ("status", "progress", "type", "notes")] == ["succeeded", 1, "bf16", ["mind this"]]
    whole = client.get(f"{address}/content")
    assert (len(whole.content), hashlib.sha256(whole.content).hexdigest()) == (done["bytes"], done["sha256"])
    with tarfile.open(fileobj=io.BytesIO(whole.content)) as tar:
        assert tar.getnames() == ["Modelfile", "model.gguf"]
    rest = client.get(f"{address}/content", headers={"range": "bytes=700-", "if-range": whole.headers["etag"]})
    assert (rest.status_code, rest.content) == (206, whole.content[700:])
    assert [file["name"] for file in client.get(f"{address}/files").json()["data"]] == ["Modelfile", "model.gguf"]
    assert client.get(f"{address}/files/Modelfile").text == "FROM ./model.gguf"


def test_a_failure_says_why_and_takes_no_room(
    client: TestClient, model: str, process: Callable[[str], Path], database: Servers, data_dir: Path
) -> None:
    process('tell(failure={"code": "invalid_model", "message": "The model is odd."})')
    made = ask(client, model)
    exporter.work()
    done = again(client, made)
    assert done["status"] == "failed"
    assert done["error"] == {"code": "invalid_model", "message": "The model is odd."}
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        assert owner.execute("SELECT bytes FROM exports WHERE id = %s", [made["id"]]).fetchone() == (0,)
    assert list((data_dir / "exports").glob(f"{made['id']}*")) == []


def test_a_process_that_dies_is_begun_again_and_in_the_end_given_up(
    client: TestClient, model: str, process: Callable[[str], Path], database: Servers, data_dir: Path
) -> None:
    runs = process("tell(progress=0.3); pathlib.Path(order['folder']).mkdir(parents=True); os.kill(os.getpid(), 9)")
    made = ask(client, model)
    for attempt in range(exporter.MAX_ATTEMPTS):
        exporter.work()
        assert again(client, made)["status"] == "running"
        assert len(runs.read_text().splitlines()) == attempt + 1
        expire(database, made["id"])
    sweep()
    exporter.work()
    done = again(client, made)
    assert (done["status"], done["error"]["code"]) == ("failed", "export_failed")
    assert list((data_dir / "exports").glob(f"{made['id']}*")) == []


def test_what_a_lost_worker_has_begun_is_removed_by_whoever_goes_on(
    client: TestClient, model: str, process: Callable[[str], Path], database: Servers, data_dir: Path
) -> None:
    process(DONE)
    made = ask(client, model, "gguf")
    with transaction("troll_control") as session:
        assert repository.claim(session, lease=LEASE, kept_for=exports.kept_for(), each=1)
    begun = data_dir / "exports" / f"{made['id']}.partial" / "attempt-1"
    begun.mkdir(parents=True)
    (begun / "model.gguf").write_bytes(b"half of it")
    expire(database, made["id"])
    exporter.work()
    assert again(client, made)["status"] == "succeeded"
    assert [path.name for path in (data_dir / "exports").glob(f"{made['id']}*")] == [made["id"]]


def test_a_worker_that_ends_leaves_its_export_to_another_and_begins_none(
    client: TestClient, model: str, process: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = process("tell(progress=0.1); time.sleep(600)")
    monkeypatch.setattr(exporter, "closing", threading.Event())
    monkeypatch.setattr(exporter, "AT_ONCE_EACH", 2)
    first, second = (ask(client, model) for _ in range(2))
    working = threading.Thread(target=exporter.work)
    working.start()
    while not (runs.exists() and runs.read_text().endswith("\n")):
        assert working.is_alive()
        time.sleep(0.01)
    exporter.close()
    working.join(60)
    assert not working.is_alive()
    assert len(runs.read_text().splitlines()) == 1
    assert [again(client, each)["status"] for each in (first, second)] == ["queued", "queued"]
    with transaction("troll_control") as session:
        row = repository.claim(session, lease=LEASE, kept_for=exports.kept_for(), each=1)
        # As often as it was begun by workers that did not end on purpose.
        assert (row.id, row.attempt) == (first["id"], 1) if row else False


def test_a_lost_worker_changes_nothing(client: TestClient, model: str, database: Servers) -> None:
    made = ask(client, model)

    def claim() -> Any:
        with transaction("troll_control") as session:
            return repository.claim(session, lease=LEASE, kept_for=exports.kept_for(), each=1)

    first = claim()
    assert claim() is None
    expire(database, made["id"])
    second = claim()
    assert (first.id, first.attempt, second.attempt) == (made["id"], 1, 2)
    with transaction("troll_control") as session:
        assert not repository.renew(session, first, 0.5, LEASE)
        assert not repository.finish(session, first, "failed", exports.kept_for())
        assert repository.finish(session, second, "succeeded", exports.kept_for(), bytes=1, sha256="")
    assert again(client, made)["status"] == "succeeded"


def test_one_organisations_many_exports_do_not_hold_up_anothers(
    client: TestClient, model: str, new_key: Callable[..., Key]
) -> None:
    mine = [ask(client, model) for _ in range(2)]
    other = {"Authorization": f"Bearer {new_key(organization='globex').plain}"}
    theirs = client.post(f"/v1/models/{model}/exports", json={"format": "huggingface"}, headers=other).json()
    taken = []
    with transaction("troll_control") as session:
        while (row := repository.claim(session, lease=LEASE, kept_for=exports.kept_for(), each=1)) is not None:
            taken.append(row.id)
    assert taken == [mine[0]["id"], theirs["id"]]


def test_whoever_was_served_last_waits_for_the_others(
    client: TestClient, model: str, new_key: Callable[..., Key], database: Servers
) -> None:
    """One worker makes one export at a time, so that nobody has any at work when the next is chosen."""
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        owner.execute("DELETE FROM exports")
    mine = [ask(client, model)["id"] for _ in range(3)]
    other = {"Authorization": f"Bearer {new_key(organization='globex').plain}"}
    address, body = f"/v1/models/{model}/exports", {"format": "huggingface"}
    theirs = [client.post(address, json=body, headers=other).json()["id"] for _ in range(2)]
    taken = []
    for _ in range(5):
        with transaction("troll_control") as session:
            row = repository.claim(session, lease=LEASE, kept_for=exports.kept_for(), each=1)
            assert row is not None
            taken.append(row.id)
        with transaction("troll_control") as session:
            assert repository.finish(session, row, "failed", exports.kept_for())
    assert taken == [mine[0], theirs[0], mine[1], theirs[1], mine[2]]


def test_an_export_that_is_removed_at_work_ends(
    client: TestClient, model: str, process: Callable[[str], Path], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process("pathlib.Path(order['folder']).mkdir(parents=True); tell(progress=0.1); time.sleep(600)")
    monkeypatch.setattr(exporter, "RENEW_SECONDS", 0.01)
    made = ask(client, model)
    removed: list[int] = []
    renew = repository.renew

    def remove_first(*given: Any) -> bool:
        if not removed:
            removed.append(client.delete(f"/v1/models/{model}/exports/{made['id']}").status_code)
        return renew(*given)

    monkeypatch.setattr(repository, "renew", remove_first)
    exporter.work()
    assert removed == [200]
    assert list((data_dir / "exports").glob(f"{made['id']}*")) == []


# The hub's token


@pytest.mark.usefixtures("allowed")
def test_the_token_is_for_the_worker_alone_and_then_forgotten(
    client: TestClient, model: str, process: Callable[[str], Path], database: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    runs = process('tell(type=None, notes=[], url="https://hub.test/me/mine", revision="abc")')
    with caplog.at_level("DEBUG"):
        made = ask(client, model, hub=HUB)
        assert made["hub"] == {"repository": "me/mine", "private": True, "url": None, "revision": None}
        assert "hf_secret" not in everything(database)
        exporter.work()
    assert json.loads(runs.read_text())["hub"] == {**HUB, "url": "https://hub.test", "private": True}
    done = again(client, made)
    assert (done["status"], done["hub"]["url"], done["hub"]["revision"]) == (
        "succeeded",
        "https://hub.test/me/mine",
        "abc",
    )
    assert "hf_secret" not in json.dumps(done) + caplog.text
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        row = owner.execute("SELECT sealed_token, bytes FROM exports WHERE id = %s", [made["id"]]).fetchone()
    assert row == (None, 0)
    answer = client.get(f"/v1/models/{model}/exports/{made['id']}/content")
    assert answer.json()["error"]["code"] == "export_not_kept"


def everything(database: Servers) -> str:
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        tables = owner.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        rows = [owner.execute(f"SELECT t.*::text FROM {name} t").fetchall() for (name,) in tables]
    return str(rows)


def test_a_token_is_read_for_its_own_export_only(database: Servers) -> None:
    sealed = seal.seal("export-1", "hf_secret")
    assert seal.unseal("export-1", sealed) == "hf_secret"
    assert "hf_secret" not in sealed
    assert sealed != seal.seal("export-1", "hf_secret")
    with pytest.raises(seal.UnreadableTokenError):
        seal.unseal("export-2", sealed)


# The end


def test_an_expired_export_is_gone_and_its_files_are_pruned(
    client: TestClient, model: str, process: Callable[[str], Path], database: Servers, data_dir: Path
) -> None:
    process(DONE)
    made = ask(client, model)
    exporter.work()
    assert (data_dir / "exports" / made["id"]).is_dir()
    expire(database, made["id"], "expires_at")
    assert again(client, made)["error"]["code"] == "export_not_found"
    prune._prune_expired()
    assert not (data_dir / "exports" / made["id"]).exists()
    with transaction("troll_control") as session:
        assert repository.existing(session, [made["id"]]) == set()


def test_removing_one_removes_its_files_and_is_audited(
    client: TestClient, model: str, process: Callable[[str], Path], database: Servers, data_dir: Path
) -> None:
    process(DONE)
    made = ask(client, model)
    exporter.work()
    answer = client.delete(f"/v1/models/{model}/exports/{made['id']}")
    assert answer.json() == {"id": made["id"], "object": "model.export", "deleted": True}
    assert not (data_dir / "exports" / made["id"]).exists()
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        rows = owner.execute("SELECT type FROM audit_logs WHERE object_id = %s ORDER BY sequence", [made["id"]])
        assert [type for (type,) in rows] == ["export.created", "export.deleted"]
