"""Stored specifications: rows of every version are read, and one that cannot be read harms nobody."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.core.db import transaction
from service.embedded.servers import Servers
from service.jobs import repository, stored
from service.jobs.methods.reinforcement import Reinforcement
from service.jobs.models import Checkpoint, Job
from service.jobs.repository import EventDraft
from service.jobs.service import tell
from service.jobs.stored import UnreadableError, read_question, read_specification, write
from tests import factories
from tests.factories import UNREADABLE

ROWS = Path(__file__).parent / "rows"
"""What each version has written, one folder for each; ``early`` holds what releases before that did, read the same."""
LEASE = timedelta(seconds=60)


def content(path: Path) -> Any:
    return json.loads(path.read_text())


def paths(pattern: str) -> pytest.MarkDecorator:
    found = sorted(ROWS.glob(pattern))
    assert found, pattern
    return pytest.mark.parametrize("path", found, ids=[str(path.relative_to(ROWS).with_suffix("")) for path in found])


REINFORCEMENT = content(ROWS / str(stored.VERSION) / "specifications" / "reinforcement.json")


# Reading


@paths("*/[es]*/*.json")
def test_specifications_of_every_version_are_read(path: Path) -> None:
    method = content(path)["method"] if path.parents[1].name == "1" else None
    spec = read_specification(content(path))
    if method is not None:
        assert spec.method.type == method["type"]
        assert method["hyperparameters"].items() <= spec.method.hyperparameters.model_dump(mode="json").items()


@paths("*/questions/*.json")
def test_questions_of_every_version_are_read(path: Path) -> None:
    assert read_question(content(path)).counts == content(path)["counts"]


@paths(f"{stored.VERSION}/specifications/*.json")
def test_what_is_written_is_what_this_version_is_known_to_write(path: Path) -> None:
    assert write(read_specification(content(path))) == content(path), (
        "the stored shape has changed: raise stored.VERSION, see 'Stored specifications' in docs/operations.md"
    )


@paths(f"{stored.VERSION}/questions/*.json")
def test_questions_are_written_as_this_version_is_known_to(path: Path) -> None:
    assert write(read_question(content(path))) == content(path)


def test_there_are_rows_of_every_version() -> None:
    versions = range(1, stored.VERSION + 1)
    assert {folder.name for folder in ROWS.iterdir()} == {str(version) for version in versions}


@pytest.mark.parametrize("how", UNREADABLE)
def test_what_cannot_be_read_is_told_in_a_sentence_without_its_content(how: str) -> None:
    spoiled = factories.spoiled(REINFORCEMENT, how)
    with pytest.raises(UnreadableError) as error:
        read_specification(spoiled)
    assert str(error.value).endswith(".")
    assert "{{sample.output_text}}" not in str(error.value)


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(UnreadableError, match=r"hyperparameters\.foresight: this setting is not known"):
        read_specification(factories.spoiled(REINFORCEMENT, "unknown setting"))


def test_a_response_format_that_is_not_known_is_not_read() -> None:
    spoiled = json.loads(json.dumps(REINFORCEMENT))
    spoiled["method"]["response_format"] = {"type": "grammar"}
    with pytest.raises(UnreadableError, match="response format"):
        read_specification(spoiled)


# Upgrades


@paths("1/specifications/reinforcement*.json")
def test_jobs_of_the_first_version_get_the_settings_of_dppo(path: Path) -> None:
    method = read_specification(content(path)).method
    assert isinstance(method, Reinforcement)
    assert (method.hyperparameters.dppo_divergence, method.hyperparameters.dppo_threshold) == ("tv", 0.2)


def _renamed(content: dict[str, Any]) -> dict[str, Any]:
    """To version 2: ``seed`` was called ``entropy``."""
    content["seed"] = content.pop("entropy")
    return content


def _filled(content: dict[str, Any]) -> dict[str, Any]:
    """To version 4, which lays down what version 3 left open."""
    content["method"]["hyperparameters"].setdefault("temperature", 0.25)
    return content


@pytest.fixture
def fourth(monkeypatch: pytest.MonkeyPatch) -> None:
    """This version is the fourth; from the second to the third nothing changed."""
    monkeypatch.setattr(stored, "VERSION", 4)
    monkeypatch.setattr(stored, "SPECIFICATIONS", {1: _renamed, 3: _filled})


def as_of(version: int | None) -> dict[str, Any]:
    older = json.loads(json.dumps(REINFORCEMENT))
    del older["method"]["hyperparameters"]["temperature"], older["version"]
    if version in (None, 1):
        older["entropy"] = older.pop("seed")
    return older if version is None else older | {"version": version}


@pytest.mark.parametrize("version", [None, 1, 2, 3])
def test_older_rows_are_brought_to_this_version_one_upgrade_after_the_other(fourth: None, version: int | None) -> None:
    older = as_of(version)
    before = json.dumps(older)
    spec = read_specification(older)
    assert isinstance(spec.method, Reinforcement)
    assert (spec.seed, spec.method.hyperparameters.temperature) == (7, 0.25)
    assert json.dumps(older) == before, "the session's row has been changed"


def test_what_is_written_has_the_number_of_its_version(fourth: None) -> None:
    written = write(read_specification(as_of(None)))
    assert written["version"] == 4
    assert read_specification(written) == read_specification(as_of(3))


@pytest.mark.parametrize("content", [{}, {"entropy": 1}, {"entropy": 1, "method": []}, {"version": 3, "method": None}])
def test_an_older_row_that_is_damaged_cannot_be_read(fourth: None, content: dict[str, Any]) -> None:
    with pytest.raises(UnreadableError, match="could not be brought from version"):
        read_specification(content)


# The API


@pytest.fixture
def model(models_dir: Path) -> str:
    return factories.offer_model(models_dir)


@pytest.fixture
def spoiled(client: TestClient, model: str, database: Servers) -> Callable[[str], str]:
    """``spoiled("newer")`` is the id of a queued job whose specification cannot be read."""

    def make(how: str) -> str:
        id = factories.create_job(client, model)["id"]
        factories.spoil(database, id, how)
        return id

    return make


def url(id: str, rest: str = "") -> str:
    return f"/v1/fine_tuning/jobs/{id}{rest}"


def test_a_page_shows_jobs_that_cannot_be_read_among_the_others(
    client: TestClient, model: str, spoiled: Callable[[str], str]
) -> None:
    ids = [factories.create_job(client, model)["id"], *map(spoiled, UNREADABLE)]
    answer = client.get("/v1/fine_tuning/jobs", params={"limit": 100})
    assert answer.status_code == 200
    shown = {job["id"]: job for job in answer.json()["data"]}
    assert list(shown) == ids[::-1]
    assert (shown[ids[0]]["error"], shown[ids[0]]["method"]["type"]) == (None, "reinforcement")
    assert {(shown[id]["error"]["code"], shown[id]["method"]) for id in ids[1:]} == {("unreadable_specification", None)}


def test_what_the_columns_say_of_such_a_job_is_shown(client: TestClient, spoiled: Callable[[str], str]) -> None:
    id = spoiled("newer")
    job = client.get(url(id)).json()
    assert (job["status"], job["model"], job["progress"]["attempt"]) == ("queued", "tiny/base", 0)
    assert f"version 1000, and this server reads versions up to {stored.VERSION}" in job["error"]["message"]
    assert job["hyperparameters"] == {"batch_size": None, "learning_rate_multiplier": None, "n_epochs": None}


@pytest.mark.parametrize("how", UNREADABLE)
def test_such_a_job_can_be_paused_resumed_and_cancelled_and_its_events_listed(
    client: TestClient, spoiled: Callable[[str], str], how: str
) -> None:
    id = spoiled(how)
    for verb, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        answer = client.post(url(id, f"/{verb}"))
        assert (answer.status_code, answer.json()["status"]) == (200, status)
    messages = [event["message"] for event in client.get(url(id, "/events")).json()["data"]]
    assert messages[:3] == ["Job cancelled", "Job resumed; waiting for a worker", "Job paused"]
    assert client.get(url(id, "/checkpoints")).json()["data"] == []


def test_a_failed_job_that_cannot_be_read_shows_why_it_failed(
    client: TestClient, spoiled: Callable[[str], str], database: Servers
) -> None:
    id = spoiled("unknown setting")
    factories.rewrite(database, id, column="error", content={"code": "disk_full", "message": "The disk is full."})
    assert client.get(url(id)).json()["error"]["code"] == "disk_full"


def test_codes_of_earlier_versions_are_shown_under_their_present_name(
    client: TestClient, model: str, database: Servers
) -> None:
    id = factories.create_job(client, model)["id"]
    with transaction("troll_worker") as session:
        job = session.get_one(Job, id)
        tell(session, job, [EventDraft("The job failed: x", "error", data={"code": "weights_parted", "n": 1})])
    factories.rewrite(database, id, column="error", content={"code": "weights_parted", "message": "x", "param": "y"})
    expected = {"code": "weights_out_of_sync", "message": "x", "param": "y"}
    assert client.get(url(id)).json()["error"] == expected
    newest = client.get(url(id, "/events")).json()["data"][0]
    assert newest["data"] == {"code": "weights_out_of_sync", "n": 1}


@pytest.mark.parametrize(
    ("column", "content"),
    [("error", ["?"]), ("error", {}), ("error", "?"), ("result_files", {"a": 1}), ("metadata", [1]), ("metadata", "x")],
)
def test_other_columns_that_are_damaged_do_not_take_the_page_along(
    client: TestClient, model: str, database: Servers, column: str, content: Any
) -> None:
    id = factories.create_job(client, model)["id"]
    factories.rewrite(database, id, column=column, content=content)
    (job,) = client.get("/v1/fine_tuning/jobs").json()["data"]
    assert (job["id"], job["method"]["type"]) == (id, "reinforcement")
    assert (job["error"] or {}).get("code") == ("unreadable_error" if column == "error" else None)


# Claims


def claim() -> str | None:
    with transaction("troll_worker") as session:
        job = repository.claim(session, worker="w", lease=LEASE, max_running=8)
        return job.id if job else None


def row(id: str) -> dict[str, Any]:
    """Every column of a job."""
    with transaction("troll_worker") as session:
        job = repository.get(session, id)
        return {column.key: getattr(job, column.key) for column in Job.__mapper__.column_attrs}


@pytest.mark.parametrize("how", UNREADABLE)
def test_a_job_that_cannot_be_read_is_not_claimed_and_holds_nobody_up(
    client: TestClient, model: str, spoiled: Callable[[str], str], how: str
) -> None:
    id = spoiled(how)
    before = row(id)
    other = factories.create_job(client, model)["id"]
    assert [claim(), claim()] == [other, None]
    assert row(id) == before


def test_a_row_of_this_version_that_cannot_be_read_is_told_of_once(
    spoiled: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    # Celery workers of other tests take the logging that pytest listens to.
    monkeypatch.setattr(stored.log, "error", lambda text, *values: told.append(text % values))
    ids = [spoiled("unknown setting"), spoiled("missing method"), spoiled("newer")]
    assert [claim() for _ in range(3)] == [None] * 3
    assert [next(id for id in ids if id in message) for message in told] == ids[:2]
    assert "foresight: this setting is not known" in told[0]


def test_a_worker_that_can_read_it_takes_what_was_left_to_it(
    spoiled: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    id = spoiled("newer")
    assert claim() is None
    monkeypatch.setattr(stored, "VERSION", 1000)
    assert claim() == id


def test_a_job_that_runs_and_cannot_be_read_here_keeps_its_worker(
    client: TestClient, model: str, database: Servers
) -> None:
    id = factories.create_job(client, model)["id"]
    assert claim() == id
    factories.spoil(database, id, "newer")
    assert client.get(url(id)).json()["status"] == "running"
    assert client.post(url(id, "/cancel")).json()["status"] == "cancelled"
    with transaction("troll_worker") as session:
        assert repository.desired(session, id, 1) == "cancel"
        assert repository.fenced(session, id, 1) is not None


def expire(database: Servers, id: str) -> None:
    with transaction("troll_worker") as session:
        job = repository.locked(session, id)
        assert job is not None
        job.lease_expires_at = job.created_at - timedelta(seconds=1)


@pytest.mark.parametrize("how", [None, "newer", "unknown setting"])
@pytest.mark.parametrize(("verb", "status"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_job_whose_worker_was_lost_is_ended_or_paused_at_once(
    client: TestClient, model: str, database: Servers, how: str | None, verb: str, status: str
) -> None:
    id = factories.create_job(client, model)["id"]
    claim()
    if how is not None:
        factories.spoil(database, id, how)
    expire(database, id)
    assert client.post(url(id, f"/{verb}")).json()["status"] == status
    assert client.get(url(id)).json()["status"] == status


def test_a_job_whose_worker_was_lost_takes_no_place_from_others(
    client: TestClient, model: str, database: Servers
) -> None:
    lost, other = (factories.create_job(client, model)["id"] for _ in range(2))
    with transaction("troll_worker") as session:
        repository.claim(session, worker="w", lease=LEASE, max_running=1)
    factories.spoil(database, lost, "newer")
    expire(database, lost)
    with transaction("troll_worker") as session:
        job = repository.claim(session, worker="w", lease=LEASE, max_running=1)
    assert job is not None
    assert job.id == other


# Events and checkpoints


@pytest.mark.parametrize("data", [{"step": 1, "new": {"deep": [1]}}, [1, 2], "text", 5])
def test_events_of_whatever_data_are_listed(client: TestClient, model: str, database: Servers, data: Any) -> None:
    id = factories.create_job(client, model)["id"]
    with transaction("troll_worker") as session:
        job = repository.locked(session, id)
        assert job is not None
        repository.append_events(session, job, [repository.EventDraft("news", type="metrics", data=data)])
    answer = client.get(url(id, "/events"))
    assert answer.status_code == 200
    assert answer.json()["data"][0]["data"] == (data if isinstance(data, dict) else {"value": data})


@pytest.mark.parametrize("loss", [0.5, None, "low", {"mean": 1.0}, [1.0]])
def test_checkpoints_of_whatever_metrics_are_listed(
    client: TestClient, model: str, database: Servers, loss: Any
) -> None:
    id = factories.create_job(client, model)["id"]
    owner = client.get(url(id)).json()["organization_id"]
    with transaction("troll_worker") as session:
        metrics = {"train_loss": loss, "step": "one", "new": {"deep": loss}}
        made = {"organization_id": owner, "step": 3, "attempt": 1, "path": "p", "model": f"ft:{id}", "metrics": metrics}
        repository.record_checkpoint(session, Checkpoint(id="ftckpt_1", job_id=id, **made))
    (shown,) = client.get(url(id, "/checkpoints")).json()["data"]
    assert shown["metrics"]["step"] == 3
    assert shown["metrics"]["train_loss"] == (loss if isinstance(loss, float) else None)
    assert shown["metrics"]["new"] == {"deep": loss}
