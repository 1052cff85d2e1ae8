"""trackio: runs of jobs in a store of its own, read back by trackio."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests import factories
from tests.workers.conftest import events, row
from tests.workers.jobs.test_supervisor import wait_for
from workers.jobs import supervisor
from workers.tracking import reporter
from workers.tracking.run import End, Header, Row, Run
from workers.tracking.trackio import TrackioRun

pytestmark = pytest.mark.usefixtures("stub")
Submit = Callable[..., str]

READ = """
import json, sys
from trackio.fragments import import_inbox_dir
from trackio.sqlite_storage import SQLiteStorage

import_inbox_dir()
found = {}
for project in SQLiteStorage.get_projects():
    for run in SQLiteStorage.get_run_records(project):
        id = run["id"]
        logs = SQLiteStorage.get_logs(project, run["name"], run_id=id)
        found[f"{project}/{id}"] = [run["name"], SQLiteStorage.get_run_config(project, run_id=id), logs]
json.dump(found, sys.stdout)
"""
"""In a process of its own, for trackio looks where its store is when it is imported."""


def stored(folder: Path) -> dict[str, Any]:
    """Name, settings and steps of each run, by project and id."""
    environment = {**os.environ, "TRACKIO_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", READ], env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def rewards(logs: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(each["step"], each["train_mean_reward"]) for each in logs]


STEPS = [(n, n / 6) for n in range(1, 7)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def submit(client: TestClient, models_dir: Path, store: Path, faster: Callable[..., None]) -> Submit:
    """``submit("crash-once", {"project": …})`` queues a job with a run for each further argument, or one."""
    faster(trackio_dir=store)
    model = factories.offer_model(models_dir)

    def make(plan: str = "succeed", *runs: dict[str, Any]) -> str:
        integrations = [{"type": "trackio", "trackio": {"project": "additions"} | run} for run in runs or ({},)]
        body = factories.job_body(client, model) | {"suffix": plan, "integrations": integrations}
        answer = client.post("/v1/fine_tuning/jobs", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    return make


def test_each_run_holds_every_step_and_says_whose_it_is(submit: Submit, store: Path) -> None:
    id = submit("succeed", {}, {"project": "nightly", "name": "first try"})
    supervisor.run("worker-1")
    found = stored(store)
    assert {place: name for place, (name, _, _) in found.items()} == {
        f"additions/{id}": id,
        f"nightly/{id}-2": "first try",
    }
    for _, config, logs in found.values():
        assert config["method"]["hyperparameters"]["batch_size"] == 8
        assert rewards(logs) == STEPS
    metrics = [event for event in events(id) if event.type == "metrics"]
    assert [each["timestamp"] for each in found[f"additions/{id}"][2]] == [
        event.created_at.isoformat() for event in metrics
    ]


def test_a_job_that_is_tried_again_goes_on_with_its_run(submit: Submit, store: Path) -> None:
    id = submit("crash-once")
    supervisor.run("worker-1")
    first = rewards(stored(store)[f"additions/{id}"][2])
    assert 0 < len(first) < 6
    supervisor.run("worker-2")
    assert {place: rewards(logs) for place, (_, _, logs) in stored(store).items()} == {f"additions/{id}": STEPS}


@pytest.mark.parametrize("why", ["a name of trackio's own", "no folder"])
def test_a_failure_is_a_warning_and_no_harm(submit: Submit, client: TestClient, store: Path, why: str) -> None:
    if why == "no folder":
        store.write_text("")
    id = submit("wait", {"project": "registry-of-others" if why == "a name of trackio's own" else "additions"})
    thread = threading.Thread(target=supervisor.run, args=["worker-1"])
    thread.start()
    wait_for(lambda: any("trackio failed" in event.message for event in events(id)))
    client.post(f"/v1/fine_tuning/jobs/{id}/cancel")
    thread.join(20)
    (warning,) = [event for event in events(id) if "trackio" in event.message]
    assert (row(id).status, warning.level) == ("cancelled", "warn")
    assert "reserved" in warning.message if why == "a name of trackio's own" else str(store) in warning.message


def made(tmp_path: Path) -> TrackioRun:
    settings = {"type": "trackio", "trackio": {"project": "p", "name": None}}
    run = Run(index=0, id="ftjob-1", name="n", settings=settings)
    return TrackioRun(run, Header(runs=[], job_id="ftjob-1", model="m", config={"seed": 7}, folder=tmp_path))


@pytest.mark.parametrize("mode", ["sqlite", "jsonl"])
def test_both_ways_to_write_hold_the_same_and_ask_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Path, mode: str
) -> None:
    from trackio import sqlite_storage, utils

    def refuse(*_: object) -> None:
        raise AssertionError("asked somebody")

    monkeypatch.setenv("TRACKIO_STORAGE_MODE", mode)
    for module in (utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", store)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    for _ in range(2):  # The second attempt tells everything again.
        run = made(tmp_path)
        for step in (1, 2):
            run.log(Row(step=step, time=1.5, numbers={"train_mean_reward": step / 2, "loss": float("nan")}))
            run.flush()
        run.finish(End(end="succeeded"))
    monkeypatch.undo()
    assert (store / "p.db").exists() == (mode == "sqlite")
    ((place, (name, config, logs)),) = stored(store).items()
    assert (place, name, config, rewards(logs)) == ("p/ftjob-1", "n", {"seed": 7}, [(1, 0.5), (2, 1.0)])
    assert logs[0]["timestamp"] == "1970-01-01T00:00:01.500000+00:00"


def test_its_process_is_told_the_folder_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Path, faster: Callable[..., None]
) -> None:
    faster(trackio_dir=store)
    for name in ("HF_TOKEN", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TROLL_DATABASE_URL"):
        monkeypatch.setenv(name, "x")
    given = reporter.environment("trackio", tmp_path)
    assert (given["TRACKIO_DIR"], given["HF_HUB_OFFLINE"]) == (str(store), "1")
    assert "x" not in given.values()
