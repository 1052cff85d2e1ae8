"""MLflow: runs of jobs on a server on loopback, in every way that it can fail."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from tests import factories
from tests.workers.conftest import events, row
from tests.workers.jobs.test_supervisor import wait_for
from tests.workers.mlflow_server import TOKEN, KeptRun, MlflowServer
from workers.jobs import supervisor
from workers.tracking import mlflow, reporter
from workers.tracking.mlflow import MlflowError, MlflowRun
from workers.tracking.run import End, Header, Row, Run

pytestmark = pytest.mark.usefixtures("stub")
Submit = Callable[..., str]


@pytest.fixture
def server() -> Iterator[MlflowServer]:
    running = MlflowServer()
    yield running
    running.stop()


@pytest.fixture
def submit(client: TestClient, models_dir: Path, server: MlflowServer, faster: Callable[..., None]) -> Submit:
    """``submit("crash-once", {"experiment": …})`` queues a job with a run for each further argument, or one."""
    faster(mlflow_uri=server.url, mlflow_token=TOKEN)
    model = factories.offer_model(models_dir)

    def make(plan: str = "succeed", *runs: dict[str, Any]) -> str:
        integrations = [{"type": "mlflow", "mlflow": {"experiment": "additions"} | run} for run in runs or ({},)]
        body = factories.job_body(client, model) | {"suffix": plan, "integrations": integrations}
        answer = client.post("/v1/fine_tuning/jobs", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    return make


def only(server: MlflowServer) -> KeptRun:
    (run,) = server.runs.values()
    return run


STEPS = [(n, n / 6) for n in range(1, 7)]


def test_each_run_holds_every_step_and_says_whose_it_is(submit: Submit, server: MlflowServer) -> None:
    id = submit("succeed", {}, {"experiment": "nightly", "name": "first", "tags": {"kind": "night", "troll.run": "x"}})
    supervisor.run("worker-1")
    first, second = server.runs.values()
    assert [server.experiments[run.experiment] for run in (first, second)] == ["additions", "nightly"]
    assert [(run.name, run.tags["troll.run"]) for run in (first, second)] == [(id, id), ("first", f"{id}-2")]
    assert second.tags == {"kind": "night", "troll.model": "tiny/base", "troll.run": f"{id}-2"}
    for run in (first, second):
        assert run.values("train_mean_reward") == STEPS
        assert run.params["method.hyperparameters.batch_size"] == "8"
        assert run.statuses == ["FINISHED"]


def test_followers_are_told_where_the_run_is(submit: Submit, server: MlflowServer, client: TestClient) -> None:
    id = submit("wait")
    thread = threading.Thread(target=supervisor.run, args=["worker-1"])
    thread.start()
    wait_for(lambda: any(f"MLflow run: {server.url}/#/experiments/" in event.message for event in events(id)))
    client.post(f"/v1/fine_tuning/jobs/{id}/cancel")
    thread.join(20)
    assert row(id).status == "cancelled"


def test_a_job_that_is_tried_again_goes_on_with_its_run(submit: Submit, server: MlflowServer) -> None:
    submit("crash-once")
    supervisor.run("worker-1")
    assert only(server).statuses == ["SCHEDULED"]
    supervisor.run("worker-2")
    assert only(server).values("train_mean_reward") == STEPS
    assert only(server).statuses == ["SCHEDULED", "RUNNING", "FINISHED"]


def test_a_refusal_is_a_warning_and_no_harm(submit: Submit, server: MlflowServer, client: TestClient) -> None:
    server.refusing = True
    id = submit("wait")
    thread = threading.Thread(target=supervisor.run, args=["worker-1"])
    thread.start()
    wait_for(lambda: any("who are you?" in event.message for event in events(id)))
    client.post(f"/v1/fine_tuning/jobs/{id}/cancel")
    thread.join(20)
    (warning,) = [event for event in events(id) if "MLflow" in event.message]
    assert (row(id).status, warning.level) == ("cancelled", "warn")
    assert TOKEN not in warning.message


def test_a_server_that_never_answers_holds_nothing_up(
    submit: Submit, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "FINISH_SECONDS", 0.3)
    server.silent = True
    id = submit()
    supervisor.run("worker-1")
    assert row(id).status == "succeeded"


@pytest.fixture
def begin(server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., MlflowRun]:
    """``begin(tags, **config)``: a run of a job that was asked to do ``config``."""
    for name, value in {"MLFLOW_TRACKING_URI": server.url, "MLFLOW_TRACKING_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, value)

    def make(tags: dict[str, str] | None = None, **config: Any) -> MlflowRun:
        settings = {"type": "mlflow", "mlflow": {"experiment": "e", "tags": tags}}
        asked = Run(index=0, id="ftjob-1", name="n", settings=settings)
        return MlflowRun(asked, Header(runs=[], job_id="ftjob-1", model="m", config=config, folder=tmp_path))

    return make


def test_long_histories_are_sent_in_parts_that_the_server_takes(
    server: MlflowServer, begin: Callable[..., MlflowRun]
) -> None:
    run = begin(**{f"p{n}": n for n in range(250)})
    for step in range(30):
        run.log(Row(step=step, time=1.5, numbers={f"m{n}": n for n in range(90)}))
    run.finish(End(end="succeeded"))
    assert (len(only(server).params), len(only(server).metrics)) == (250, 2700)
    assert begin().step == 30


def test_what_a_server_would_not_take_has_another_name(server: MlflowServer, begin: Callable[..., MlflowRun]) -> None:
    schema = {"$defs": {"wie viel?": 1}, "_defs": {"wie viel_": 2}, "../x": 3, "": 4, "n" * 300: 5}
    run = begin({"..": "dots", "troll.run": "another's"}, schema=schema)
    run.log(Row(step=0, time=1.5, numbers={"usage/org//judge@v1:8b/tokens": 7, "plain/name_1.2": 8}))
    run.finish(End(end="succeeded"))
    kept = only(server)
    assert sorted(kept.params.values()) == ["1", "2", "3", "4", "5"]
    assert {each["key"] for each in kept.metrics} == {"usage/org/_/judge_v1_8b/tokens", "plain/name_1.2"}
    assert kept.tags == {"troll.run": "ftjob-1", "troll.model": "m", "_": "dots"}
    assert begin().step == 1


AWAY: list[str | int] = [503, "hangs up", 429, "hangs up"]


def test_a_server_that_is_away_for_a_while_misses_nothing(
    server: MlflowServer, begin: Callable[..., MlflowRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow, "FIRST_WAIT_SECONDS", 0.0)
    server.away = [*AWAY]
    run = begin(batch_size=8)
    server.away = [*AWAY]
    run.log(Row(step=0, time=1.5, numbers={"reward": 0.5}))
    run.finish(End(end="succeeded"))
    assert (only(server).values("reward"), only(server).params) == ([(0, 0.5)], {"batch_size": "8"})
    assert server.away == []


def test_a_server_that_stays_away_is_given_up(
    server: MlflowServer, begin: Callable[..., MlflowRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow, "PATIENCE_SECONDS", 0.0)
    server.away = [503]
    with pytest.raises(MlflowError, match="503"):
        begin()
    server.away = ["hangs up"]
    with pytest.raises(httpx2.RemoteProtocolError):
        begin()


def test_a_run_of_which_nobody_knows_whether_it_was_made_is_not_made_twice(
    server: MlflowServer, begin: Callable[..., MlflowRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow, "FIRST_WAIT_SECONDS", 0.0)
    begin()
    server.runs.clear()

    # No run is found, and the answer to the one that is asked for gets lost.
    def search(**given: Any) -> tuple[int, dict[str, Any]]:
        server.away = ["hangs up"]
        return 200, {}

    monkeypatch.setattr(server, "_runs_search", search)
    with pytest.raises(httpx2.RemoteProtocolError):
        begin()
    assert server.away == []
