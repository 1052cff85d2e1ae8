"""The claim as many workers meet it: a busy installation on a simulated clock, and how much it reads."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import text

from benchmarks.scheduling import SimulatedJob, Simulation, busy, insert_jobs, organizations
from service.core.db import transaction
from service.embedded.servers import Servers
from service.jobs import repository
from service.jobs.turns import Capacity

LEASE = timedelta(seconds=60)
PLAIN, EVERY = Capacity(["transformers"]), Capacity(["transformers", "vllm"])


def queue(database: Servers, *described: tuple[int, str]) -> list[SimulatedJob]:
    """Jobs of these organisations that need these engines, in this order."""
    organizations(database, 1 + max(organization for organization, _ in described))
    jobs = [SimulatedJob(n, organization, 0.0, 1.0, engine) for n, (organization, engine) in enumerate(described)]
    insert_jobs(database, jobs)
    return jobs


def claim(capacity: Capacity = EVERY, max_running: int = 100) -> str | None:
    with transaction("troll_worker") as session:
        job = repository.claim(session, worker="w", lease=LEASE, max_running=max_running, capacity=capacity)
        return job.id if job else None


def test_nobody_waits_twice_as_long_as_with_workers_of_its_own(database: Servers) -> None:
    workload = busy(organizations=6, jobs=180, hours=3)
    outcome = Simulation(database, workload, workers=12).run()
    mean = sum(job.seconds for job in workload.jobs) / len(workload.jobs)
    assert outcome.worst(least=mean) <= 2, list(zip(outcome.waits, outcome.own_waits, strict=True))
    assert outcome.utilisation >= 0.98


@pytest.mark.parametrize("capacity", [PLAIN, EVERY])
def test_a_claim_reads_few_of_the_jobs_that_wait(database: Servers, capacity: Capacity) -> None:
    """Half of them, the older ones too, are for workers with another engine."""
    engines = ["vllm"] * 1000 + ["transformers", "vllm"] * 1000
    jobs = queue(database, *zip(itertools.cycle(range(10)), engines, strict=False))
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        owner.execute("ANALYZE")
    query = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'fine_tuning_jobs'"
    with transaction("troll_worker") as session:
        before = session.scalars(text(query)).one()
        assert repository.claim(session, worker="w", lease=LEASE, max_running=100, capacity=capacity) is not None
        read = session.scalars(text(query)).one() - before
    assert read < len(jobs) / 20


def test_many_workers_at_once_keep_within_what_may_run(database: Servers) -> None:
    queue(database, *[(n % 2, "transformers") for n in range(20)])
    with ThreadPoolExecutor(10) as pool:
        claimed = [id for id in pool.map(lambda _: claim(max_running=3), range(10)) if id]
    with transaction("troll_worker") as session:
        owners = [repository.get(session, id).organization_id for id in claimed]  # type: ignore[union-attr]
    assert sorted(owners) == ["org-0000"] * 3 + ["org-0001"] * 3


def test_many_workers_at_once_leave_nothing_that_one_of_them_may_run(database: Servers) -> None:
    jobs = queue(database, *[(n % 3, "transformers" if n % 4 else "vllm") for n in range(16)])
    with ThreadPoolExecutor(8) as pool:
        claimed = [id for id in pool.map(lambda n: claim(EVERY if n % 2 else PLAIN), range(32)) if id]
    assert sorted(claimed) == [job.id for job in jobs]


def test_a_job_that_somebody_has_locked_is_left_to_them(database: Servers) -> None:
    first, second, third = queue(database, (0, "transformers"), (0, "transformers"), (0, "transformers"))
    with psycopg.connect(database.database_owner_url) as owner:
        owner.execute("SELECT id FROM fine_tuning_jobs WHERE id = %s FOR UPDATE", [first.id])
        assert claim() == second.id
    assert [claim(), claim()] == [first.id, third.id]
