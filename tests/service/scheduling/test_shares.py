"""Whose turn it is: the organisation with the least recent GPU time per weight, and in it the highest priority."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update

from service.accounts import repository as accounts
from service.core.db import transaction
from service.embedded.servers import Servers
from service.jobs import repository
from service.jobs.models import Job
from service.jobs.states import Status, move
from service.jobs.turns import Capacity
from service.scheduling import repository as scheduling
from service.scheduling.models import GPUUsage, ProjectGPUUsage
from service.usage import repository as usage
from tests import factories
from tests.conftest import Key

LEASE = timedelta(seconds=60)
Submit = Callable[..., str]
Use = Callable[..., None]


@pytest.fixture
def submit(models_dir: Path, client_for: Callable[[Key | None], TestClient], new_key: Callable[..., Key]) -> Submit:
    """``submit("acme", priority=1)`` queues a job of that organisation."""
    model = factories.offer_model(models_dir)
    clients: dict[str, TestClient] = {}

    def make(organization: str, hyperparameters: dict[str, Any] | None = None, **asked: Any) -> str:
        if organization not in clients:
            clients[organization] = client_for(new_key(organization=organization))
        client = clients[organization]
        body = factories.job_body(client, model) | asked
        body["method"]["reinforcement"]["hyperparameters"] |= hyperparameters or {}
        answer = client.post("/v1/fine_tuning/jobs", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    return make


@pytest.fixture
def use(database: Servers) -> Use:
    """``use("acme", 30.0, hours_ago=2)`` gives an organisation a past."""

    def count(organization: str, gpu_seconds: float, hours_ago: float = 0) -> None:
        with psycopg.connect(database.database_owner_url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO gpu_usage SELECT id, date_trunc('hour', now() - %s * interval '1 hour'), %s "
                "FROM organizations WHERE name = %s",
                (hours_ago, gpu_seconds, organization),
            )

    return count


def claim(engines: tuple[str, ...] = ("transformers",), gpus: int = 1) -> str | None:
    with transaction("troll_worker") as session:
        job = repository.claim(session, worker="w", lease=LEASE, max_running=100, gpus=gpus, capacity=Capacity(engines))
        return job.id if job else None


def test_a_turn_goes_to_whoever_had_the_least_gpu_time(submit: Submit, use: Use) -> None:
    acme = [submit("acme") for _ in range(3)]
    globex = [submit("globex") for _ in range(2)]
    use("acme", 5_000)
    use("globex", 100)
    assert [claim(), claim(), claim()] == [*globex, acme[0]]


def test_a_weight_makes_more_time_due(submit: Submit, use: Use) -> None:
    acme, globex = submit("acme"), submit("globex")
    use("acme", 3_000)
    use("globex", 2_000)
    with transaction("troll_operator") as session:
        assert scheduling.set_weight(session, "acme", 2)
    assert [claim(), claim()] == [acme, globex]


def test_time_of_long_ago_does_not_count(submit: Submit, use: Use) -> None:
    acme, globex = submit("acme"), submit("globex")
    use("acme", 900_000, hours_ago=26)
    use("globex", 10, hours_ago=3)
    assert [claim(), claim()] == [acme, globex]


def test_a_hundred_waiting_jobs_are_no_claim_to_more(submit: Submit) -> None:
    acme = [submit("acme") for _ in range(5)]
    globex = submit("globex")
    assert [claim(), claim(), claim()] == [acme[0], globex, acme[1]]


def test_within_an_organisation_priority_decides_and_then_age(submit: Submit) -> None:
    low, usual, high, later = (submit("acme", priority=each) for each in (-5, 0, 7, 7))
    assert [claim() for _ in range(4)] == [high, later, usual, low]


def test_a_high_priority_takes_nothing_from_others(submit: Submit, use: Use) -> None:
    urgent, globex = submit("acme", priority=100), submit("globex")
    use("acme", 60)
    assert [claim(), claim()] == [globex, urgent]


@pytest.mark.parametrize("priority", [-101, 101, 1.5, "high", None])
def test_another_priority_is_refused_by_name(
    submit: Submit, client: TestClient, priority: Any, models_dir: Path
) -> None:
    body = factories.job_body(client, factories.offer_model(models_dir)) | {"priority": priority}
    answer = client.post("/v1/fine_tuning/jobs", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "priority")


def test_a_job_for_another_engine_blocks_nobody(submit: Submit) -> None:
    other = submit("acme", {"rollout_engine": "vllm"}, priority=9)
    plain = submit("acme")
    assert [claim(), claim()] == [plain, None]
    with transaction("troll_worker") as session:
        assert repository.waits_elsewhere(session, Capacity(["transformers"])) == other
        assert repository.waits_elsewhere(session, Capacity(["transformers", "vllm"])) is None
    assert claim(("transformers", "vllm")) == other


def counted(job_id: str) -> tuple[float, float]:
    """GPU-seconds of the job, and of its organisation, which are those of its project."""
    with transaction("troll_worker") as session:
        job = repository.get(session, job_id)
        assert job is not None
        total = session.scalar(select(func.sum(GPUUsage.gpu_seconds)))
        of_project = select(func.sum(ProjectGPUUsage.gpu_seconds)).where(ProjectGPUUsage.project_id == job.project_id)
        assert session.scalar(of_project) == total
        return job.gpu_seconds, total or 0.0


def test_each_second_of_an_attempt_is_counted_once(submit: Submit) -> None:
    id = submit("acme")
    began = time.monotonic()
    claim(gpus=4)
    for seconds in (10, 5):
        with transaction("troll_worker") as session:
            earlier = func.clock_timestamp() - timedelta(seconds=seconds)
            session.execute(update(Job).where(Job.id == id).values(counted_at=earlier))
        with transaction("troll_worker") as session:
            assert repository.heartbeat(session, id, 1, LEASE)
    used, total = counted(id)
    assert 4 * 15 <= used <= 4 * (15 + time.monotonic() - began)
    assert total == pytest.approx(used)


def test_a_new_attempt_goes_on_counting_and_waiting_costs_nothing(submit: Submit) -> None:
    id = submit("acme")
    began = time.monotonic()
    claim(gpus=2)
    with transaction("troll_worker") as session:
        earlier = func.clock_timestamp() - timedelta(seconds=10)
        session.execute(update(Job).where(Job.id == id).values(counted_at=earlier))
    with transaction("troll_worker") as session:
        job = repository.fenced(session, id, 1)
        assert job is not None
        repository.count_time(session, job)
        move(job, Status.QUEUED)
        job.counted_at = job.counted_at - timedelta(hours=1) if job.counted_at else None
    claim(gpus=1)
    with transaction("troll_worker") as session:
        assert repository.heartbeat(session, id, 2, LEASE)
    assert 2 * 10 <= counted(id)[0] <= 2 * (10 + time.monotonic() - began)


def test_a_client_sees_priority_and_cost(submit: Submit, client_for: Any, new_key: Any) -> None:
    id = submit("acme", priority=3)
    progress = client_for(new_key(organization="acme")).get(f"/v1/fine_tuning/jobs/{id}").json()["progress"]
    assert (progress["priority"], progress["gpu_seconds"], progress["queue_position"]) == (3, 0, None)


def set_budget(organization: str, gpu_hours: float | None) -> None:
    with transaction("troll_operator") as session:
        assert scheduling.set_budget(session, organization, gpu_hours)


def test_a_budget_that_is_used_up_makes_jobs_wait_and_more_lets_them_go_on(submit: Submit, use: Use) -> None:
    acme, globex = submit("acme"), submit("globex")
    use("acme", 3_600)
    set_budget("acme", 1)
    assert [claim(), claim()] == [globex, None]
    set_budget("acme", 1.5)
    assert claim() == acme


def stopped_for(job_id: str, preempt_after: float = 0) -> str | None:
    with transaction("troll_worker") as session:
        job = repository.get(session, job_id)
        assert job is not None
        after = timedelta(seconds=preempt_after)
        return repository.reason_to_stop(session, job, Capacity(["transformers"]), after, max_running=8)


def test_a_running_job_stops_when_the_budget_is_used_up(submit: Submit, use: Use) -> None:
    id = submit("acme")
    claim()
    set_budget("acme", 2)
    assert stopped_for(id) is None
    use("acme", 7_200)
    assert "used up" in (stopped_for(id) or "")


def waits_since(database: Servers, job_id: str, seconds: float, column: str = "eligible_at") -> None:
    with psycopg.connect(database.database_owner_url, autocommit=True) as connection:
        query = f"UPDATE fine_tuning_jobs SET {column} = now() - %s * interval '1 second' WHERE id = %s"
        connection.execute(query, (seconds, job_id))


def test_a_job_makes_room_for_an_organisation_that_had_less(submit: Submit, use: Use, database: Servers) -> None:
    running, waiting = submit("acme"), submit("globex")
    assert claim() == running
    use("acme", 500)
    assert stopped_for(running, preempt_after=600) is None
    waits_since(database, running, 700, "claimed_at")
    waits_since(database, waiting, 0)
    assert stopped_for(running, preempt_after=600) is None, "the other job came just now"
    waits_since(database, waiting, 60)
    assert "Another organization" in (stopped_for(running, preempt_after=600) or "")
    assert stopped_for(running) is None, "nobody asked for that"


@pytest.mark.parametrize("most", [0, 1])
def test_a_job_makes_no_room_for_an_organisation_that_may_not_run_more(
    submit: Submit, use: Use, database: Servers, most: int
) -> None:
    running = submit("acme")
    assert claim() == running
    if most:
        own = submit("globex")
        assert claim() == own
    waiting = submit("globex")
    use("acme", 500)
    waits_since(database, running, 700, "claimed_at")
    waits_since(database, waiting, 60)
    assert stopped_for(running, preempt_after=600) is not None
    with transaction("troll_operator") as session:
        globex = accounts.organization_named(session, "globex")
        assert globex is not None
        usage.set_limits(session, globex.id, {"running_jobs": most})
    assert stopped_for(running, preempt_after=600) is None


@pytest.mark.parametrize("other", ["had more", "needs another engine", "is the same organisation"])
def test_a_job_keeps_its_worker_where_another(submit: Submit, use: Use, database: Servers, other: str) -> None:
    running = submit("acme")
    engine = {"rollout_engine": "vllm"} if other == "needs another engine" else {}
    waiting = submit("acme" if other == "is the same organisation" else "globex", engine)
    assert claim() == running
    use("acme", 500)
    if other == "had more":
        use("globex", 900)
    waits_since(database, running, 700, "claimed_at")
    waits_since(database, waiting, 60)
    assert stopped_for(running, preempt_after=600) is None
