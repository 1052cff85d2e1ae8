"""What a job's checkpoints and results take on disk, as its row says it."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.core import storage
from service.core.db import transaction
from service.core.ids import new_id
from service.jobs import repository
from service.models import repository as models
from service.models.models import TunedModel
from tests import factories
from workers import wire
from workers.jobs import sink

Checkpoint = Callable[[int, int], None]


@pytest.fixture
def job(client: TestClient, models_dir: Path) -> str:
    """A running job."""
    id = str(factories.create_job(client, factories.offer_model(models_dir))["id"])
    with transaction("troll_worker") as session:
        assert repository.claim(session, worker="w", lease=timedelta(seconds=60), max_running=1)
    return id


@pytest.fixture
def checkpoint(job: str) -> Checkpoint:
    """``checkpoint(step, size)``: a model and a training state of so many bytes each."""

    def save(step: int, size: int) -> None:
        folder = storage.job_dir(job) / "attempt-1" / "checkpoints" / f"step-{step}"
        for part in ("model", "state"):
            (folder / part).mkdir(parents=True)
            (folder / part / "weights").write_bytes(b"\0" * size)
        with transaction("troll_worker") as session:
            row = repository.fenced(session, job, 1)
            assert row is not None
            sink.write(session, row, [wire.Checkpoint(step=step, path=folder, metrics={"full_valid_mean_reward": 0.5})])

    return save


def stored(job: str) -> int:
    with transaction("troll_worker") as session:
        row = repository.get(session, job)
        assert row is not None
        return row.stored_bytes


def on_disk(job: str) -> int:
    return storage.bytes_in([storage.job_dir(job) / "attempt-1"])


def test_checkpoints_count_as_long_as_they_are_there(job: str, checkpoint: Checkpoint) -> None:
    sizes = []
    for step in range(1, 9):
        checkpoint(step, 1000 + step)
        assert stored(job) == on_disk(job)
        sizes.append(stored(job))
    assert 0 < sizes[-1] < sum(2 * (1000 + step) for step in range(1, 9)), "some were forgotten"


def test_a_deleted_model_counts_no_longer(job: str, checkpoint: Checkpoint, client: TestClient) -> None:
    checkpoint(1, 700)
    folder = storage.job_dir(job) / "attempt-1" / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"\0" * 300)
    with transaction("troll_worker") as session:
        row = repository.fenced(session, job, 1)
        assert row is not None
        row.stored_bytes = on_disk(job)
        model = TunedModel(
            id=f"ft:{new_id('m-')}",
            organization_id=row.organization_id,
            job_id=job,
            base_model=row.model,
            path="attempt-1/model",
        )
        models.add(session, model)
    assert client.delete(f"/v1/models/{model.id}").status_code == 200
    assert stored(job) == on_disk(job) == 1400


def test_logs_that_nobody_can_delete_do_not_count(job: str, checkpoint: Checkpoint) -> None:
    log = storage.job_dir(job) / "attempt-1" / "logs" / "train.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"\0" * 5000)
    checkpoint(1, 700)
    assert stored(job) == on_disk(job) - 5000 == 1400


def test_links_and_what_is_gone_are_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert storage.bytes_in([tmp_path, tmp_path / "missing"]) == 5
