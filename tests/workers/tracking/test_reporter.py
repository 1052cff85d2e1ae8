"""Weights & Biases: its own library against a server on loopback, in every way that it can fail."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.core import storage
from service.embedded.servers import Servers
from tests import factories
from tests.workers.conftest import events, row
from tests.workers.jobs.test_supervisor import wait_for
from tests.workers.wandb_server import KEY, KeptRun, WandbServer
from workers.jobs import supervisor
from workers.tracking import reporter

pytestmark = pytest.mark.usefixtures("stub")
Submit = Callable[..., str]


@pytest.fixture
def wandb_server() -> Iterator[WandbServer]:
    running = WandbServer()
    yield running
    running.stop()


@pytest.fixture
def submit(
    client: TestClient, models_dir: Any, wandb_server: WandbServer, faster: Callable[..., None]
) -> Callable[..., str]:
    """``submit("crash-once", {"project": …})`` queues a job with a run for each further argument, or one."""
    faster(wandb_mode="online", wandb_base_url=wandb_server.url, wandb_api_key=KEY)
    model = factories.offer_model(models_dir)

    def make(plan: str = "succeed", *runs: dict[str, Any]) -> str:
        integrations = [
            {"type": "wandb", "wandb": {"project": "additions", "entity": "acme"} | run} for run in runs or ({},)
        ]
        body = factories.job_body(client, model) | {"suffix": plan, "integrations": integrations}
        answer = client.post("/v1/fine_tuning/jobs", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    return make


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged as a warning. Celery workers of other tests take the logging that pytest listens to."""
    said: list[str] = []
    monkeypatch.setattr(reporter.log, "warning", lambda text, *values: said.append(text % values))
    return said


def only(server: WandbServer) -> KeptRun:
    (run,) = server.runs.values()
    return run


def told(id: str) -> list[Any]:
    return [event for event in events(id) if "Weights & Biases" in event.message]


def test_each_run_holds_every_step_and_says_whose_it_is(submit: Submit, wandb_server: WandbServer) -> None:
    mine = {"project": "nightly", "name": "first try", "tags": ["night", "openai/finetune"]}
    id = submit("succeed", {}, mine)
    supervisor.run("worker-1")
    first, second = wandb_server.runs["acme", "additions", id], wandb_server.runs["acme", "nightly", f"{id}-2"]
    assert (first.name, second.name) == (id, "first try")
    assert first.tags == ["openai/finetune", "openai/tiny/base", f"openai/{id}"]
    assert second.tags == [*first.tags, "night"]
    for run in (first, second):
        assert run.config["method"]["hyperparameters"]["batch_size"] == 8
        assert [(each["step"], each["train_mean_reward"]) for each in run.history] == [(n, n / 6) for n in range(1, 7)]
        assert run.steps == [1, 2, 3, 4, 5, 6]
        assert (run.exit_codes, run.preempting) == ([0], 0)
        # Nothing but the numbers and the job's settings: no code, no packages, no console, no machine.
        assert set(run.files) <= {"config.yaml", "wandb-summary.json"}


def test_a_job_that_is_tried_again_goes_on_with_its_run(submit: Submit, wandb_server: WandbServer) -> None:
    id = submit("crash-once")
    supervisor.run("worker-1")
    assert (row(id).status, only(wandb_server).exit_codes) == ("queued", [1])
    assert only(wandb_server).preempting == 1
    supervisor.run("worker-2")
    run = only(wandb_server)
    assert row(id).status == "succeeded"
    assert (run.sessions, run.steps, run.exit_codes) == (2, [1, 2, 3, 4, 5, 6], [1, 0])


def test_what_a_run_missed_is_told_by_the_next_attempt(submit: Submit, wandb_server: WandbServer) -> None:
    submit("crash-once")
    wandb_server.refusing = True
    supervisor.run("worker-1")
    wandb_server.refusing = False
    assert wandb_server.runs == {}
    supervisor.run("worker-1")
    assert only(wandb_server).steps == [1, 2, 3, 4, 5, 6]


def test_a_refusal_is_one_warning_and_no_harm(
    submit: Submit, wandb_server: WandbServer, client: TestClient, logged: list[str]
) -> None:
    wandb_server.refusing = True
    id = submit("wait")
    for attempt in (1, 2):
        thread = threading.Thread(target=supervisor.run, args=["worker-1"])
        thread.start()
        wait_for(lambda: sum("CommError" in line for line in logged) == attempt)  # noqa: B023
        client.post(f"/v1/fine_tuning/jobs/{id}/pause")
        thread.join(20)
        assert row(id).status == "paused"
        client.post(f"/v1/fine_tuning/jobs/{id}/resume")
    (warning,) = told(id)
    assert warning.level == "warn"
    assert "invalid API key" in warning.message
    assert sum("did not get 1 rows" in line for line in logged) == 2


def test_a_server_that_never_answers_holds_nothing_up(
    submit: Submit, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr(reporter, "FINISH_SECONDS", 0.3)
    wandb_server.silent = True
    id = submit()
    supervisor.run("worker-1")
    assert row(id).status == "succeeded"
    assert any("did not take the last rows" in line for line in logged)


def test_followers_learn_where_the_run_is(submit: Submit, wandb_server: WandbServer) -> None:
    id = submit("wait")
    thread = threading.Thread(target=supervisor.run, args=["worker-1"])
    thread.start()
    wait_for(lambda: bool(told(id)))
    supervisor.shutting_down.set()
    thread.join(20)
    assert told(id)[0].message == f"Weights & Biases run: {wandb_server.url}/acme/additions/runs/{id}"


def test_offline_runs_are_kept_with_the_job(submit: Submit, faster: Callable[..., None]) -> None:
    faster(wandb_mode="offline")
    id = submit()
    supervisor.run("worker-1")
    (kept,) = storage.job_dir(id).glob(f"wandb/wandb/offline-run-*-{id}/run-{id}.wandb")
    assert kept.stat().st_size > 0


def test_what_was_turned_off_since_is_left_out(
    submit: Submit, wandb_server: WandbServer, faster: Callable[..., None]
) -> None:
    id = submit()
    faster(wandb_mode="off")
    supervisor.run("worker-1")
    assert (row(id).status, wandb_server.runs) == ("succeeded", {})


def test_its_process_knows_no_secret_but_the_key(
    submit: Submit, tmp_path: Any, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = servers.database_url("troll_worker")
    monkeypatch.setenv("DATABASE_URL", url)
    given = reporter.environment("wandb", tmp_path)
    assert given["WANDB_API_KEY"] == KEY
    assert not [name for name in given if name.startswith(("TROLL", "DATABASE", "REDIS"))]
    assert url not in given.values()
