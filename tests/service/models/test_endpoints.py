"""Models over HTTP: the operator's list and what jobs made."""

import base64
import hashlib
import io
import json
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.core.db import transaction
from service.files.repository import now
from service.jobs import repository as jobs
from service.jobs.models import Checkpoint
from service.models import archive, repository
from service.models.models import TunedModel
from service.settings import settings as service_settings
from tests import factories


@pytest.fixture
def tuned(client: TestClient, models_dir: Path, data_dir: Path) -> str:
    """A tuned model with files of odd sizes, one of them its adapter's."""
    job = factories.create_job(client, factories.offer_model(models_dir))
    folder = data_dir / "jobs" / job["id"] / "attempt-1" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 41)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    id = "ft:tiny/base:acme:mine:AbCdEf12"
    with transaction("troll_worker") as session:
        row = jobs.get(session, job["id"])
        assert row is not None
        repository.add(
            session,
            TunedModel(
                id=id, organization_id=row.organization_id, job_id=row.id, base_model=row.model, path="attempt-1/model"
            ),
        )
    return id


def ids(client: TestClient) -> list[str]:
    return [model["id"] for model in client.get("/v1/models").json()["data"]]


def test_the_operators_folder_is_the_list(client: TestClient, models_dir: Path) -> None:
    name = factories.offer_model(models_dir, "org/listed")
    assert name in ids(client)
    assert client.get(f"/v1/models/{name}").json()["owned_by"] == "system"


@pytest.mark.parametrize("file", ["modeling.py", "pytorch_model.bin", "weights.pkl"])
def test_a_folder_that_could_run_code_is_not_on_the_list(client: TestClient, models_dir: Path, file: str) -> None:
    name = factories.offer_model(models_dir, f"org/unsafe-{file}")
    (models_dir / name / file).write_text("")
    assert name not in ids(client)


def test_a_folder_with_custom_code_is_not_on_the_list(client: TestClient, models_dir: Path) -> None:
    name = factories.offer_model(models_dir, "org/custom")
    (models_dir / name / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "x.Y"}}))
    assert name not in ids(client)


def test_a_tuned_model_is_listed_and_found_by_its_name(client: TestClient, tuned: str) -> None:
    assert tuned in ids(client)
    assert client.get(f"/v1/models/{tuned}").json()["id"] == tuned


def test_an_archive_holds_the_models_files(client: TestClient, tuned: str) -> None:
    answer = client.get(f"/v1/models/{tuned}/archive")
    assert len(answer.content) == int(answer.headers["content-length"])
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        read = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    weights = bytes(range(256)) * 41
    assert read == {"config.json": b'{"a": 1}', "model.safetensors": weights, "adapter/adapter_config.json": b"{}"}


def tar_of(client: TestClient, model: str, **headers: str) -> Any:
    return client.get(f"/v1/models/{model}/archive", headers={name.replace("_", "-"): v for name, v in headers.items()})


@pytest.mark.parametrize(
    ("wanted", "first", "end"),
    [("bytes=0-99", 0, 100), ("bytes=500-1600", 500, 1601), ("bytes=700-", 700, None), ("bytes=-10", -10, None)],
)
def test_any_part_of_an_archive_is_that_part_of_the_whole(
    client: TestClient, tuned: str, wanted: str, first: int, end: int | None
) -> None:
    whole, part = tar_of(client, tuned), tar_of(client, tuned, range=wanted)
    assert (part.status_code, part.content) == (206, whole.content[first:end])
    assert int(part.headers["content-length"]) == len(part.content)
    assert part.headers["content-range"].endswith(f"/{len(whole.content)}")
    assert part.headers["etag"] == whole.headers["etag"]


def test_any_cut_of_an_archive_can_be_mended(client: TestClient, tuned: str) -> None:
    folder = service_settings().data_dir / "jobs" / job_of(client) / "attempt-1" / "model"
    files = archive.contents(folder)
    size = archive.size(files)
    whole = b"".join(archive.read(files, 0, size))
    assert len(whole) == size
    for cut in range(0, size, 97):
        assert b"".join(archive.read(files, 0, cut)) + b"".join(archive.read(files, cut, size)) == whole


@pytest.mark.parametrize("wanted", ["bytes=5-3", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "bytes="])
def test_a_range_that_is_none_gets_everything(client: TestClient, tuned: str, wanted: str) -> None:
    assert tar_of(client, tuned, range=wanted).status_code == 200


def test_a_range_behind_the_end_is_an_error(client: TestClient, tuned: str) -> None:
    size = len(tar_of(client, tuned).content)
    refusal = tar_of(client, tuned, range=f"bytes={size}-")
    assert (refusal.status_code, refusal.headers["content-range"]) == (416, f"bytes */{size}")
    assert refusal.json()["error"]["code"] == "range_not_satisfiable"


def test_a_part_of_other_content_is_never_sent(client: TestClient, tuned: str) -> None:
    tag = tar_of(client, tuned).headers["etag"]
    assert tar_of(client, tuned, range="bytes=9-", if_range=tag).status_code == 206
    folder = service_settings().data_dir / "jobs" / job_of(client) / "attempt-1" / "model"
    (folder / "config.json").write_text('{"a": 2}')
    answer = tar_of(client, tuned, range="bytes=9-", if_range=tag)
    assert answer.status_code == 200
    assert answer.headers["etag"] != tag


def test_files_are_listed_with_checksums_that_hold(client: TestClient, tuned: str) -> None:
    listed = client.get(f"/v1/models/{tuned}/files").json()["data"]
    sizes = {"config.json": 8, "model.safetensors": 10496, "adapter/adapter_config.json": 2}
    assert {file["name"]: file["bytes"] for file in listed} == sizes
    for file in listed:
        answer = client.get(f"/v1/models/{tuned}/files/{file['name']}")
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        assert answer.headers["etag"] == f'"{file["sha256"]}"'
        digest = base64.b64encode(bytes.fromhex(file["sha256"])).decode()
        assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"


def test_a_part_of_a_file(client: TestClient, tuned: str) -> None:
    answer = client.get(f"/v1/models/{tuned}/files/model.safetensors", headers={"range": "bytes=10494-"})
    assert (answer.status_code, answer.content) == (206, b"\xfe\xff")


@pytest.mark.parametrize("name", ["other.json", "..%2F..%2Ftraining.jsonl", "%2Fetc%2Fpasswd"])
def test_only_a_models_own_files_are_read(client: TestClient, tuned: str, name: str) -> None:
    assert client.get(f"/v1/models/{tuned}/files/{name}").status_code == 404


def test_a_tuned_model_can_be_trained_on(client: TestClient, tuned: str) -> None:
    assert factories.create_job(client, tuned)["model"] == tuned


def test_a_job_cannot_begin_from_a_model_while_it_is_deleted(
    client: TestClient, tuned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, answers = factories.job_body(client, tuned), []
    creation = threading.Thread(target=lambda: answers.append(client.post("/v1/fine_tuning/jobs", json=body)))
    users = jobs.unfinished_from

    def slow(*arguments: Any) -> Any:
        """Between the look at who uses the model and its end there is time for a job to be created."""
        found = users(*arguments)
        creation.start()
        creation.join(0.5)
        return found

    monkeypatch.setattr(jobs, "unfinished_from", slow)
    assert client.delete(f"/v1/models/{tuned}").status_code == 200
    creation.join(10)
    assert answers[0].status_code == 400, answers[0].text
    assert answers[0].json()["error"]["code"] == "model_not_found"


def test_another_organisations_model_is_no_base(client_for: Any, new_key: Any, tuned: str) -> None:
    stranger = client_for(new_key(organization="globex"))
    answer = stranger.post("/v1/fine_tuning/jobs", json=factories.job_body(stranger, tuned))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


@pytest.mark.parametrize("path", ["", "/archive", "/files", "/files/config.json"])
def test_another_organisations_model_looks_like_none(client_for: Any, new_key: Any, tuned: str, path: str) -> None:
    answer = client_for(new_key(organization="globex")).get(f"/v1/models/{tuned}{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("id", ["../secrets", "..%2F..%2Fetc", "nothing"])
def test_names_do_not_lead_out_of_the_list(client: TestClient, id: str) -> None:
    assert client.get(f"/v1/models/{id}").status_code == 404


# Deleting


def end(job_id: str) -> None:
    """Cancel a job as its worker would."""
    with transaction("troll_worker") as session:
        job = jobs.locked(session, job_id)
        assert job is not None
        job.status, job.finished_at = "cancelled", now(session)


def job_of(client: TestClient) -> str:
    return client.get("/v1/fine_tuning/jobs").json()["data"][0]["id"]


def checkpoint(job_id: str, data_dir: Path) -> Checkpoint:
    folder = data_dir / "jobs" / job_id / "attempt-1" / "step-2" / "model"
    folder.mkdir(parents=True)
    with transaction("troll_worker") as session:
        job = jobs.get(session, job_id)
        assert job is not None
        row = Checkpoint(
            id=f"ftckpt_{job_id[-8:]}",
            job_id=job_id,
            organization_id=job.organization_id,
            step=2,
            attempt=1,
            path="attempt-1/step-2",
            model=f"ft:tiny/base:acme::{job_id[-8:]}:ckpt-step-2",
            metrics={},
        )
        jobs.record_checkpoint(session, row)
    return row


def test_a_deleted_model_is_gone_with_its_weights(client: TestClient, tuned: str, data_dir: Path) -> None:
    folder = data_dir / "jobs" / job_of(client) / "attempt-1" / "model"
    assert client.delete(f"/v1/models/{tuned}").json() == {"id": tuned, "object": "model", "deleted": True}
    assert not folder.exists()
    assert tuned not in ids(client)
    assert client.get(f"/v1/models/{tuned}").status_code == 404


def test_a_base_model_cannot_be_deleted(client: TestClient, models_dir: Path) -> None:
    name = factories.offer_model(models_dir)
    answer = client.delete(f"/v1/models/{name}")
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
    assert (models_dir / name / "config.json").exists()


def test_a_model_that_a_job_trains_from_cannot_be_deleted(client: TestClient, tuned: str) -> None:
    answer = client.post("/v1/fine_tuning/jobs", json=factories.job_body(client, tuned))
    assert answer.status_code == 200, answer.text
    refusal = client.delete(f"/v1/models/{tuned}")
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (400, "model_in_use")
    client.post(f"/v1/fine_tuning/jobs/{answer.json()['id']}/cancel")
    assert client.delete(f"/v1/models/{tuned}").status_code == 200


def test_a_checkpoint_can_be_deleted_once_its_job_has_ended(
    client: TestClient, models_dir: Path, data_dir: Path
) -> None:
    job = factories.create_job(client, factories.offer_model(models_dir))["id"]
    row = checkpoint(job, data_dir)
    refusal = client.delete(f"/v1/models/{row.model}")
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (400, "model_in_use")
    end(job)
    assert client.delete(f"/v1/models/{row.model}").status_code == 200
    assert client.get(f"/v1/fine_tuning/jobs/{job}/checkpoints").json()["data"] == []
    assert not (data_dir / "jobs" / job / row.path / "model").exists()
