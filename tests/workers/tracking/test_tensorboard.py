"""Files of TensorBoard, read by TensorBoard's own reader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from service.core import storage
from service.jobs import repository, service
from tests.workers.conftest import events, row
from workers.jobs import supervisor
from workers.tracking import reporter
from workers.tracking.tensorboard import EventFile

Submit = Callable[..., str]


def read(path: Path) -> Any:
    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def test_numbers_of_every_size_are_read_as_they_were(tmp_path: Path) -> None:
    numbers = {"train_mean_reward": 0.25, "troll/kl": -1e-30, "größe": 3, "vast": 1e300, "n" * 300: 2**70}
    file = EventFile(tmp_path / "events.out.tfevents.1", 1_700_000_000.5)
    for step in (0, 1, 127, 128, 100_000):
        file.add(step, 1_700_000_001.5 + step, numbers)
    file.close()
    found = read(tmp_path)
    assert set(found.Tags()["scalars"]) == set(numbers)
    scalars = found.Scalars("troll/kl")
    assert [each.step for each in scalars] == [0, 1, 127, 128, 100_000]
    assert [each.wall_time for each in scalars][:2] == [1_700_000_001.5, 1_700_000_002.5]
    assert scalars[0].value == pytest.approx(-1e-30)
    assert found.Scalars("vast")[0].value == float("inf")


@pytest.mark.usefixtures("stub")
def test_a_job_has_each_step_once_however_many_attempts_it_took(
    submit: Submit, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "HISTORY_PART", 2)
    id = submit("crash-once")
    route = f"/v1/fine_tuning/jobs/{id}/tensorboard"
    assert client.get(route).json()["error"]["code"] == "event_file_not_found"
    supervisor.run("worker-1")
    assert [each.step for each in read(storage.job_dir(id) / "tensorboard").Scalars("train_mean_reward")] == [1, 2, 3]
    supervisor.run("worker-2")
    (kept,) = (storage.job_dir(id) / "tensorboard").iterdir()
    found = read(kept.parent).Scalars("train_mean_reward")
    assert [(each.step, each.value) for each in found] == [(n, pytest.approx(n / 6)) for n in range(1, 7)]
    answer = client.get(route)
    assert (answer.status_code, answer.content) == (200, kept.read_bytes())
    assert kept.name in answer.headers["content-disposition"]


@pytest.mark.usefixtures("stub")
def test_a_file_is_sent_in_pieces_as_it_was_when_it_was_asked_for(
    submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = submit("succeed")
    supervisor.run("worker-1")
    (path,) = (storage.job_dir(id) / "tensorboard").iterdir()
    content = path.read_bytes()
    monkeypatch.setattr(storage, "CHUNK", 100)
    file = service.event_file(row(id))
    with path.open("ab") as writer:
        writer.write(b"the next step")
    path.unlink()
    pieces = list(file.content())
    assert b"".join(pieces) == content
    assert (file.size, max(map(len, pieces))) == (len(content), 100)
    assert file.opened.closed


@pytest.mark.usefixtures("stub")
def test_what_cannot_be_told_again_stays_as_it_was_told(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    id = submit("crash-once")
    supervisor.run("worker-1")
    (path,) = (storage.job_dir(id) / "tensorboard").iterdir()
    content = path.read_bytes()
    history = repository.metric_events

    def broken(*given: Any) -> Any:
        yield from history(*given)
        raise OperationalError("SELECT", {}, Exception("the server closed the connection"))

    with monkeypatch.context() as patched:
        patched.setattr(repository, "metric_events", broken)
        again = row(id)
        again.attempt = 2
        tracking = reporter.Tracking(again, path.parent)
    assert {each: each.read_bytes() for each in path.parent.iterdir()} == {path: content}
    tracking.close("preempted")


@pytest.mark.usefixtures("stub")
def test_a_full_disk_leaves_the_file_out_and_not_the_job(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reporter, "EventFile", full)
    id = submit()
    supervisor.run("worker-1")
    told = [event.message for event in events(id) if "TensorBoard" in event.message]
    assert row(id).status == "succeeded"
    assert told == [
        "The file for TensorBoard cannot be written, and the job goes on without it: No space left on device"
    ]
