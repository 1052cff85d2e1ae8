"""Whose job is taken next, and how long that takes to decide: a simulation of a busy installation, and claims at once.

    python -m benchmarks.scheduling [--parts simulation|claims]

Both ask the service's own claim, in a PostgreSQL of their own. In the simulation its clock is the simulation's: two
functions that are found before PostgreSQL's own `now` and `clock_timestamp`. It has the same result in every run.
"""

import argparse
import heapq
import itertools
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks import report
from service.core import db
from service.embedded import servers as embedded
from service.embedded.folder import Folder
from service.embedded.processes import Children
from service.embedded.servers import Servers
from service.jobs import repository, stored
from service.jobs.hyperparameters.option import Installation, resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.jobs.methods.reinforcement import Reinforcement
from service.jobs.spec import JobSpec
from service.jobs.states import Status, move
from service.jobs.turns import Capacity
from service.settings import settings

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(hours=100)
HANDOVER_SECONDS = 2.0
"""From a job's end until its worker asks for the next."""
BEAT_SECONDS = 1800.0
"""How often running jobs' time is counted. Workers do it every 15 seconds; rarely, the claim knows less."""
PLAIN, EVERY = ("transformers",), ("transformers", "vllm")
"""Engines of the workers: every other one has both."""
GRADER = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}


@dataclass(frozen=True)
class SimulatedJob:
    number: int
    organization: int
    arrives: float
    """Seconds after the beginning."""
    seconds: float
    """How long it keeps a worker."""
    engine: str

    @property
    def id(self) -> str:
        return f"ftjob-{self.number:06d}"


@dataclass(frozen=True)
class Workload:
    organizations: int
    jobs: Sequence[SimulatedJob]


def busy(organizations: int, jobs: int, hours: float, seed: int = 1) -> Workload:
    """Organisations of very different size, which submit in bursts; few jobs are as long as a hundred others.

    The largest one submits all it has at the beginning.
    """
    chance = random.Random(seed)
    weights = [(n + 1) ** -0.8 for n in range(organizations)]
    counts = [max(1, round(jobs * weight / sum(weights))) for weight in weights]
    counts[0] += jobs - sum(counts)
    made = []
    for organization, count in enumerate(counts):
        left = count
        while left:
            burst = left if organization == 0 else min(left, int(chance.paretovariate(0.9)))
            arrives = 0.0 if organization == 0 else chance.uniform(0, hours * 3600)
            for _ in range(burst):
                seconds = min(300 * chance.paretovariate(1.2), 24 * 3600.0)
                made.append((arrives, organization, seconds, "vllm" if chance.random() < 0.1 else "transformers"))
            left -= burst
    made.sort()
    return Workload(
        organizations,
        [
            SimulatedJob(number, organization, arrives, seconds, engine)
            for number, (arrives, organization, seconds, engine) in enumerate(made)
        ],
    )


@dataclass
class Outcome:
    """What became of a workload. Waits are in seconds, by organisation."""

    waits: list[float]
    """Of an average job, from its arrival to its start."""
    own_waits: list[float]
    """The same, had the organisation its part of the workers to itself."""
    utilisation: float
    """Share of the workers' time in which they were at work, of that in which they were or a job waited for them."""
    hours: float
    """From the first arrival to the last end."""
    claim_seconds: list[float] = field(repr=False)

    def worst(self, least: float) -> float:
        """How many times what it would with its own part an organisation waits at most; ``least`` is the least of it."""
        return max(wait / max(own, least) for wait, own in zip(self.waits, self.own_waits, strict=True))


@dataclass
class _Worker:
    number: int
    engines: tuple[str, ...]
    job: SimulatedJob | None = None

    @property
    def name(self) -> str:
        return f"training@{self.number}"


class Simulation:
    """Workers that ask the claim for jobs, on a clock of their own."""

    def __init__(self, servers: Servers, workload: Workload, workers: int) -> None:
        self._servers, self._workload = servers, workload
        self._workers = [_Worker(number, EVERY if number % 2 else PLAIN) for number in range(workers)]
        self._waiting: dict[str, SimulatedJob] = {}
        self._idle: dict[int, _Worker] = {}
        self._events: list[tuple[float, int, str, Any]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._busy_seconds = self._lost_seconds = 0.0
        self._started: dict[str, float] = {}
        self._claims: list[float] = []

    def run(self) -> Outcome:
        with simulated_clock(self._servers):
            organizations(self._servers, self._workload.organizations)
            for arrives, jobs in itertools.groupby(self._workload.jobs, key=lambda job: job.arrives):
                self._at(arrives, "arrive", list(jobs))
            self._at(BEAT_SECONDS, "beat", None)
            self._idle = {worker.number: worker for worker in self._workers}
            while len(self._started) < len(self._workload.jobs) or any(worker.job for worker in self._workers):
                at, _, kind, subject = heapq.heappop(self._events)
                self._pass_time(at)
                getattr(self, f"_{kind}")(subject)
        waits: dict[int, list[float]] = {number: [] for number in range(self._workload.organizations)}
        for job in self._workload.jobs:
            waits[job.organization].append(self._started[job.id] - job.arrives)
        share = len(self._workers) // self._workload.organizations
        return Outcome(
            waits=[statistics.fmean(each) for each in waits.values()],
            own_waits=[statistics.fmean(own_waits(self._workload, number, share)) for number in waits],
            utilisation=self._busy_seconds / (self._busy_seconds + self._lost_seconds),
            hours=self._now / 3600,
            claim_seconds=self._claims,
        )

    def _at(self, time: float, kind: str, subject: Any) -> None:
        heapq.heappush(self._events, (time, next(self._order), kind, subject))

    def _pass_time(self, until: float) -> None:
        """Count what the workers did since the last event."""
        seconds, self._now = until - self._now, until
        if not self._waiting:
            return
        wanted = {job.engine for job in self._waiting.values()}
        free = [worker for worker in self._workers if worker.job is None]
        could = sum(not wanted.isdisjoint(worker.engines) for worker in free)
        self._busy_seconds += seconds * (len(self._workers) - len(free))
        self._lost_seconds += seconds * min(could, len(self._waiting))

    def _arrive(self, jobs: list[SimulatedJob]) -> None:
        insert_jobs(self._servers, jobs)
        self._waiting |= {job.id: job for job in jobs}
        refused: set[tuple[str, ...]] = set()
        for worker in list(self._idle.values()):
            if worker.engines not in refused and not self._take(worker):
                refused.add(worker.engines)

    def _take(self, worker: _Worker) -> bool:
        began = time.perf_counter()
        with self._transaction() as session:
            job = repository.claim(
                session,
                worker=worker.name,
                lease=LEASE,
                max_running=len(self._workers),
                capacity=Capacity(worker.engines),
            )
        self._claims.append(time.perf_counter() - began)
        if job is None:
            self._idle[worker.number] = worker
            return False
        self._idle.pop(worker.number, None)
        worker.job = self._waiting.pop(job.id)
        self._started[job.id] = self._now
        self._at(self._now + worker.job.seconds, "end", worker)
        return True

    def _end(self, worker: _Worker) -> None:
        assert worker.job is not None
        with self._transaction() as session:
            job = repository.fenced(session, worker.job.id, 1)
            assert job is not None
            repository.count_time(session, job)
            move(job, Status.SUCCEEDED)
        worker.job = None
        self._at(self._now + HANDOVER_SECONDS, "take", worker)

    def _beat(self, _: None) -> None:
        for worker in self._workers:
            if worker.job is not None:
                with self._transaction() as session:
                    assert repository.heartbeat(session, worker.job.id, 1, LEASE)
        self._at(self._now + BEAT_SECONDS, "beat", None)

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with db.transaction("troll_worker") as session:
            set_clock = "SELECT set_config('search_path', 'simulated, pg_catalog, public', true), "
            now = (BEGIN + timedelta(seconds=self._now)).isoformat()
            session.execute(text(f"{set_clock} set_config('simulated.now', :now, true)"), {"now": now})
            yield session


def own_waits(workload: Workload, organization: int, workers: int) -> list[float]:
    """How long each job of an organisation would wait for one of ``workers`` that nobody else uses."""
    free = [0.0] * workers
    waits = []
    for job in workload.jobs:
        if job.organization == organization:
            start = max(job.arrives, heapq.heappop(free))
            waits.append(start - job.arrives)
            heapq.heappush(free, start + job.seconds + HANDOVER_SECONDS)
    return waits


# The database


@contextmanager
def simulated_clock(servers: Servers) -> Iterator[None]:
    """While it lasts, sessions that look in the schema ``simulated`` first are told the time ``simulated.now``."""
    with psycopg.connect(servers.database_owner_url, autocommit=True) as owner:
        owner.execute("CREATE SCHEMA simulated")
        try:
            for name in ("now", "clock_timestamp"):
                owner.execute(
                    f"CREATE FUNCTION simulated.{name}() RETURNS timestamptz LANGUAGE sql STABLE "
                    "AS $$ SELECT current_setting('simulated.now')::timestamptz $$"
                )
            owner.execute("GRANT USAGE ON SCHEMA simulated TO PUBLIC")
            yield
        finally:
            owner.execute("DROP SCHEMA simulated CASCADE")


def organizations(servers: Servers, count: int) -> None:
    with psycopg.connect(servers.database_owner_url, autocommit=True) as owner:
        owner.cursor().executemany(
            "INSERT INTO organizations (id, name) VALUES (%s, %s)",
            [(organization_id(number), f"organization {number}") for number in range(count)],
        )


def organization_id(number: int) -> str:
    return f"org-{number:04d}"


def insert_jobs(servers: Servers, jobs: Sequence[SimulatedJob]) -> None:
    """Queue jobs in this order. When they arrive is theirs to say: each could be claimed at once."""
    specs = {engine: json.dumps(stored.write(specification(engine))) for engine in EVERY}
    with psycopg.connect(servers.database_owner_url, autocommit=True) as owner:
        columns = "id, organization_id, created_at, eligible_at, status, spec, model, training_file, total_steps"
        with owner.cursor().copy(f"COPY fine_tuning_jobs ({columns}) FROM STDIN") as copy:
            for job in jobs:
                arrived = BEGIN + timedelta(seconds=job.arrives)
                owned = (job.id, organization_id(job.organization), arrived, arrived, "queued")
                copy.write_row((*owned, specs[job.engine], "tiny/base", "file-training", 4))


def specification(engine: Any) -> JobSpec:
    hyperparameters = resolve(Hyperparameters(), training_rows=100, installation=Installation(rollout_engine=engine))
    return JobSpec(
        model="tiny/base",
        training_file="file-training",
        validation_file="file-validation",
        method=Reinforcement.model_validate({"grader": GRADER, "hyperparameters": hyperparameters}),
        seed=7,
    )


@contextmanager
def own_servers(durable: bool) -> Iterator[Servers]:
    """A migrated database in a folder that is removed at the end. Nothing listens on a port."""
    from migrations.upgrade import upgrade

    with tempfile.TemporaryDirectory() as place:
        folder = Folder(Path(place))
        folder.prepare()
        folder.lock()
        children = Children(folder.records, folder.logs)
        try:
            servers = embedded.start(folder, children, durable=durable)
            os.environ |= {
                "DATABASE_OWNER_URL": servers.database_owner_url,
                "DATABASE_URL": servers.database_url("troll_worker"),
                "TROLL_DATA_DIR": place,
                "TROLL_MODELS_DIR": str(folder.models),
            }
            upgrade()
            servers.let_in()
            yield servers
            db.engine("troll_worker").dispose()
        finally:
            for name in ("DATABASE_OWNER_URL", "DATABASE_URL"):
                os.environ.pop(name, None)
            db.engine.cache_clear()
            settings.cache_clear()
            children.stop()
            folder.unlock()


# Claims at once


@dataclass(frozen=True)
class Claims:
    """Seconds of claims."""

    alone: list[float]
    together: list[float]
    computed: float
    """Of a processor, for each claim, of its client and PostgreSQL together."""


def computed_seconds() -> float:
    """Of a processor, of this process and its PostgreSQL."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))


def claims_at_once(servers: Servers, waiting: int, workers: int, rounds: int) -> Claims:
    """Claims of one worker alone, and of ``workers`` that ask at the same moment, in ``rounds``."""
    chance = random.Random(1)
    organizations(servers, 50)
    jobs = [
        SimulatedJob(number, min(49, int(chance.paretovariate(0.5)) - 1), 0.0, 1.0, chance.choice(EVERY))
        for number in range(waiting)
    ]
    insert_jobs(servers, jobs)
    with psycopg.connect(servers.database_owner_url, autocommit=True) as owner:
        # A month of hours of all, and a budget that none exceeds.
        owner.execute(
            "INSERT INTO gpu_usage SELECT o.id, date_trunc('hour', now()) - n * interval '1 hour', 3600 * random() "
            "FROM organizations o, generate_series(0, 743) n"
        )
        owner.execute("UPDATE organizations SET gpu_hours_a_month = 100000")
        owner.execute("VACUUM ANALYZE")

    def claim(name: str) -> float:
        began = time.perf_counter()
        with db.transaction("troll_worker") as session:
            job = repository.claim(session, worker=name, lease=LEASE, max_running=10**9)
        assert job is not None
        return time.perf_counter() - began

    for _ in range(5):
        claim("warm")
    began = computed_seconds()
    alone = [claim("alone") for _ in range(rounds)]
    computed = (computed_seconds() - began) / rounds
    together: list[float] = []
    barrier = threading.Barrier(workers)

    def work(number: int) -> None:
        for _ in range(rounds):
            barrier.wait()
            together.append(claim(f"w{number}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Claims(alone, together[workers:], computed)


# The report


def report_simulation(organization_count: int, jobs: int, workers: int, hours: float) -> None:
    workload = busy(organization_count, jobs, hours)
    seconds = sorted(job.seconds for job in workload.jobs)
    with own_servers(durable=False) as servers:
        outcome = Simulation(servers, workload, workers).run()
    mean = statistics.fmean(seconds)
    ratios = sorted(wait / max(own, mean) for wait, own in zip(outcome.waits, outcome.own_waits, strict=True))
    counts = Counter(job.organization for job in workload.jobs)
    rows = [
        ["longest wait, as a multiple of that with one's own part of the workers", f"{ratios[-1]:.2f}"],
        ["median of the organisations", f"{statistics.median(ratios):.2f}"],
        ["workers at work while something waits for them", f"{100 * outcome.utilisation:.2f} %"],
        ["from the first job to the last end", f"{outcome.hours:.1f} h"],
    ]
    begin = (
        f"`python -m benchmarks.scheduling --parts simulation`: {organization_count} organisations with "
        f"{min(counts.values())} to {max(counts.values()):,} jobs, {jobs:,} in all, which come in bursts over "
        f"{hours:g} hours, those of the largest organisation all at the beginning; {workers} workers, half of them with "
        f"both engines. Jobs take {seconds[len(seconds) // 2] / 60:.0f} minutes at the median, {mean / 60:.0f} on "
        f"average and {seconds[-1] / 3600:.0f} hours at most. Every claim is the service's own, on a simulated clock. "
        f"An organisation's own part are {workers // organization_count} workers that nobody else uses; where it would "
        "wait less there than an average job takes, that counts in its place."
    )
    table = report.table(["", "result"], rows)
    report.write_section("scheduling", "Fair shares of the workers", f"{begin}\n\n{table}")


def report_claims(waiting: int, workers: int, rounds: int) -> None:
    with own_servers(durable=True) as servers:
        claims = claims_at_once(servers, waiting, workers, rounds)
    rows = [
        [name, *(f"{1000 * sorted(values)[int(share * (len(values) - 1))]:.0f} ms" for share in (0.5, 0.95))]
        for name, values in (
            ("one worker asks", claims.alone),
            (f"{workers} workers ask at the same moment", claims.together),
        )
    ]
    begin = (
        f"`python -m benchmarks.scheduling --parts claims`: {waiting:,} jobs of 50 organisations wait, all with a budget "
        "and a month of hours behind them; the database writes to its disk, and its clients are threads of one process "
        f"on the same cores. A claim takes {1000 * claims.computed:.1f} ms of a processor, PostgreSQL's part and its "
        f"client's, so that {workers} at once are {1000 * workers * claims.computed:.0f} ms of work for the machine's "
        f"processors. {report.machine(['sqlalchemy', 'psycopg'])}."
    )
    table = report.table(["", "median", "95 of 100"], rows)
    report.write_section("claims", "Claiming a job", f"{begin}\n\n{table}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("simulation", "claims"), default=("claims", "simulation"))
    parser.add_argument("--organizations", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--asking", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if "claims" in options.parts:
        report_claims(options.waiting, options.asking, options.rounds)
    if "simulation" in options.parts:
        report_simulation(options.organizations, options.jobs, options.workers, options.hours)


if __name__ == "__main__":
    main()
