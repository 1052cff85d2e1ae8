"""Workers and the queue over HTTP: of all for those who operate the installation, and of nobody else for others."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.accounts import repository as accounts
from service.core.db import transaction
from service.jobs import repository as jobs
from service.jobs.repository import Place
from service.scheduling import repository as scheduling
from tests import factories
from tests.conftest import Key

Submit = Callable[[str], str]


@pytest.fixture
def submit(models_dir: Path, client_for: Callable[[Key | None], TestClient], new_key: Callable[..., Key]) -> Submit:
    """``submit("acme")`` queues a job of that organisation."""
    model = factories.offer_model(models_dir)
    clients: dict[str, TestClient] = {}

    def make(organization: str) -> str:
        if organization not in clients:
            clients[organization] = client_for(new_key(organization=organization))
        return str(factories.create_job(clients[organization], model)["id"])

    return make


@pytest.fixture
def administrator(
    client_for: Callable[[Key | None], TestClient], new_key: Callable[..., Key]
) -> Callable[..., TestClient]:
    """``administrator("acme", operates=True)`` is a client with an admin key of that organisation."""

    def make(organization: str, *, operates: bool = False) -> TestClient:
        key = new_key(organization=organization, admin=True)
        with transaction("troll_operator") as session:
            accounts.set_operating(session, key.organization_id, operates=operates)
        return client_for(key)

    return make


@pytest.fixture
def worker(database: object) -> str:
    with transaction("troll_worker") as session:
        scheduling.register(session, "training@one", gpus=2, engines=["transformers"], gpu_bytes=5)
    return "training@one"


def queue(client: TestClient, **query: Any) -> Any:
    answer = client.get("/v1/organization/queue", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def place(**positions: int) -> None:
    with transaction("troll_control") as session:
        jobs.tell_places(session, {id: Place(position, None, None) for id, position in positions.items()})


def claim(worker: str) -> None:
    with transaction("troll_worker") as session:
        assert jobs.claim(session, worker=worker, lease=timedelta(minutes=1), max_running=9, gpus=2) is not None


def test_an_operator_sees_every_worker_and_whose_job_it_runs(
    submit: Submit, administrator: Callable[..., TestClient], worker: str
) -> None:
    job = submit("globex")
    claim(worker)
    [shown] = administrator("acme", operates=True).get("/v1/organization/workers").json()["data"]
    assert (shown["id"], shown["state"], shown["gpus"], shown["gpu_bytes"]) == (worker, "ready", 2, 5)
    assert (shown["job"]["id"], shown["job"]["organization"]["name"]) == (job, "globex")


def test_who_does_not_operate_sees_no_worker_and_drains_none(
    submit: Submit, administrator: Callable[..., TestClient], worker: str
) -> None:
    client = administrator("acme")
    assert client.get("/v1/organization/workers").json()["data"] == []
    answer = client.post(f"/v1/organization/workers/{worker}/drain")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "worker_not_found")
    with transaction("troll_operator") as session:
        assert not scheduling.is_draining(session, worker)


def test_a_worker_is_drained_and_resumed_and_it_is_written_down(
    administrator: Callable[..., TestClient], worker: str
) -> None:
    client = administrator("acme", operates=True)
    states = [
        client.post(f"/v1/organization/workers/{worker}/{verb}").json()["state"]
        for verb in ("drain", "drain", "resume")
    ]
    assert states == ["draining", "draining", "ready"]
    entries = client.get("/v1/organization/audit_logs").json()["data"]
    assert [each["type"] for each in entries if each["type"].startswith("worker.")] == [
        "worker.resumed",
        "worker.drained",
        "worker.drained",
    ]
    assert entries[0]["worker.resumed"]["id"] == worker
    answer = client.post("/v1/organization/workers/nobody/drain")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "worker_not_found")


def test_an_operator_sees_the_whole_queue_in_its_order_and_others_their_own(
    submit: Submit, administrator: Callable[..., TestClient]
) -> None:
    mine, theirs, last = submit("acme"), submit("globex"), submit("globex")
    place(**{theirs: 1, mine: 2})
    operator, other = administrator("acme", operates=True), administrator("globex")
    whole = queue(operator)["data"]
    assert [(each["id"], each["queue_position"], each["organization"]["name"]) for each in whole] == [
        (theirs, 1, "globex"),
        (mine, 2, "acme"),
        (last, None, "globex"),
    ]
    assert [each["id"] for each in queue(other)["data"]] == [theirs, last]
    assert [each["id"] for each in queue(administrator("initech"))["data"]] == []


def test_the_queue_comes_in_pages(submit: Submit, administrator: Callable[..., TestClient]) -> None:
    ids = [submit("globex") for _ in range(5)]
    place(**{ids[3]: 1, ids[0]: 2, ids[1]: 3})
    client, seen, after = administrator("acme", operates=True), [], None
    while True:
        page = queue(client, limit=2, **({"after": after} if after else {}))
        seen += [each["id"] for each in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == [ids[n] for n in (3, 0, 1, 2, 4)]


def test_a_page_of_the_queue_goes_on_behind_no_strangers_job(
    submit: Submit, administrator: Callable[..., TestClient]
) -> None:
    job = submit("globex")
    answer = administrator("acme").get("/v1/organization/queue", params={"after": job})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")


def test_jobs_that_do_not_wait_are_not_in_the_queue(
    submit: Submit, administrator: Callable[..., TestClient], worker: str
) -> None:
    submit("acme")
    claim(worker)
    waiting = submit("acme")
    assert [each["id"] for each in queue(administrator("acme"))["data"]] == [waiting]


def test_what_an_operator_reads_of_others_is_no_request_or_setting(
    submit: Submit, administrator: Callable[..., TestClient]
) -> None:
    submit("globex")
    [shown] = queue(administrator("acme", operates=True))["data"]
    assert set(shown) == {
        *("id", "object", "organization", "project_id", "model", "priority", "created_at"),
        *("queue_position", "estimated_start", "waits_for"),
    }


def test_the_operators_own_administrator_sees_no_job_of_others_elsewhere(
    submit: Submit, administrator: Callable[..., TestClient], client_for: Any, new_key: Any
) -> None:
    job = submit("globex")
    administrator("acme", operates=True)
    mine = client_for(new_key(organization="acme"))
    assert mine.get(f"/v1/fine_tuning/jobs/{job}").status_code == 404
    assert mine.get("/v1/fine_tuning/jobs").json()["data"] == []
