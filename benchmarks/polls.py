"""Polls beside much that is stored: what one process of the API takes, how long an answer takes, and many streams.

    python -m benchmarks.polls [--jobs 100000] [--events-each 10] [--seconds 60] [--rate 200] [--streams 500]

The stack runs as a user starts it, without a limit on requests a minute. The client is one process on the same cores; it
keeps its connections and reads no more of an answer than it must, for a client library costs more than the server.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from benchmarks import report
from benchmarks.api import Tenant, prepared
from benchmarks.stack import running_stack
from service.embedded import postgres, redis
from service.embedded.folder import Folder

FEW_JOBS = 100
ONE_AFTER_THE_OTHER = 400
CONNECTIONS = 16
SATURATION_SECONDS = 10.0
STREAM_EVENTS = 10


@dataclass
class Connection:
    """One connection that is kept, and used for one request at a time."""

    tenant: Tenant
    reader: asyncio.StreamReader = field(init=False)
    writer: asyncio.StreamWriter | None = field(init=False, default=None)

    async def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        # The server closes what rested for some seconds.
        if self.writer is None or self.reader.at_eof():
            self.reader, self.writer = await asyncio.open_connection(self.tenant.host, self.tenant.port)
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {self.tenant.host}\r\nAuthorization: Bearer {self.tenant.key}\r\n{more}\r\n".encode()
        )
        top = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = top.decode().strip().split("\r\n")
        answered = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self.reader.readexactly(int(answered.get("content-length", 0)))
        return int(status.split()[1]), answered, body

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def fill(owner_url: str, jobs: int, events_each: int) -> None:
    """Copies of the one job that is there, ended, with events each."""
    with psycopg.connect(owner_url, autocommit=True) as connection:
        columns = connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'fine_tuning_jobs' AND is_identity = 'NO'"
            " AND is_generated = 'NEVER'"
            " AND column_name NOT IN ('id', 'status', 'event_count', 'finished_at')"
        ).fetchall()
        same = ", ".join(f'"{name}"' for (name,) in columns)
        connection.execute(
            f"INSERT INTO fine_tuning_jobs (id, status, event_count, finished_at, {same}) "
            f"SELECT 'ftjob-' || md5(n::text || random()::text), 'cancelled', %s, now(), {same} "
            "FROM (SELECT * FROM fine_tuning_jobs LIMIT 1) AS one, generate_series(1, %s) AS n",
            [events_each, jobs],
        )
        connection.execute(
            "INSERT INTO fine_tuning_events (job_id, seq, organization_id, level, type, message, data) "
            "SELECT id, n, organization_id, 'info', 'metrics', 'Step ' || n, '{\"step\": 1, \"train_mean_reward\": 0.5}' "
            "FROM fine_tuning_jobs, generate_series(1, %s) AS n WHERE status = 'cancelled' ON CONFLICT DO NOTHING",
            [events_each],
        )
        connection.execute("ANALYZE")


async def one_after_the_other(tenant: Tenant, path: str, times: int) -> list[float]:
    connection, seconds = Connection(tenant), []
    for _ in range(times):
        began = time.perf_counter()
        status, _, _ = await connection.get(path)
        assert status == 200
        seconds.append(time.perf_counter() - began)
    connection.close()
    return seconds


async def saturated(ask: Callable[[Connection], Awaitable[int]], tenant: Tenant) -> float:
    """Answers a second to ``CONNECTIONS`` clients that ask again at once."""
    deadline, answered = time.perf_counter() + SATURATION_SECONDS, 0

    async def client() -> None:
        nonlocal answered
        connection = Connection(tenant)
        while time.perf_counter() < deadline:
            assert await ask(connection) in (200, 304)
            answered += 1
        connection.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return answered / SATURATION_SECONDS


async def at_a_rate(tenant: Tenant, path: str, rate: int, seconds: float) -> tuple[list[float], int]:
    """Seconds from when each poll was due to its answer, however late it was begun, and how many failed."""
    idle: list[Connection] = []
    took: list[float] = []
    failed = 0

    async def poll(due: float) -> None:
        nonlocal failed
        connection = idle.pop() if idle else Connection(tenant)
        status, _, _ = await connection.get(path)
        failed += status != 200
        took.append(time.perf_counter() - due)
        idle.append(connection)

    began, polls = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        polls.append(asyncio.create_task(poll(due)))
    await asyncio.gather(*polls)
    for connection in idle:
        connection.close()
    return sorted(took), failed


async def streamed(tenant: Tenant, job: str, streams: int) -> list[float]:
    """Seconds from when an event was there to when each of many streams has it: of the last of them, for each event."""
    seen: dict[int, list[float]] = {}
    open_ones, opening = 0, asyncio.Semaphore(CONNECTIONS)

    async def follow() -> None:
        nonlocal open_ones
        connection = Connection(tenant)
        # More at once than may wait for a thread would be refused, and asked to come back.
        async with opening:
            connection.reader, connection.writer = await asyncio.open_connection(tenant.host, tenant.port)
            connection.writer.write(
                f"GET /v1/fine_tuning/jobs/{job}/events?stream=true HTTP/1.1\r\nHost: x\r\n"
                f"Authorization: Bearer {tenant.key}\r\n\r\n".encode()
            )
            assert b" 200 " in (await connection.reader.readuntil(b"\r\n\r\n")).splitlines()[0]
        open_ones += 1
        while line := await connection.reader.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if event["type"] == "metrics":
                    seen.setdefault(event["data"]["step"], []).append(time.perf_counter())

    follows = [asyncio.create_task(follow()) for _ in range(streams)]
    while open_ones < streams:
        for each in follows:
            if each.done():
                each.result()
        await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    delays = []
    for step in range(1, STREAM_EVENTS + 1):
        there = await asyncio.to_thread(tell, job, step)
        async with asyncio.timeout(60):
            while len(seen.get(step, ())) < streams:
                await asyncio.sleep(0.01)
        delays.append(max(seen[step]) - there)
    for each in follows:
        each.cancel()
        with suppress(asyncio.CancelledError):
            await each
    return delays


def tell(job_id: str, step: int, **metrics: float) -> float:
    """Give a job an event as its worker does. Returns when it was committed."""
    from service.core.db import transaction
    from service.jobs import repository, service
    from service.jobs.repository import EventDraft

    with transaction("troll_worker") as session:
        job = repository.locked(session, job_id)
        assert job is not None
        service.tell(session, job, [EventDraft(f"Step {step}", type="metrics", data={"step": step, **metrics})])
    return time.perf_counter()


async def measured(tenant: Tenant, owner_url: str, given: argparse.Namespace) -> str:
    job = json.loads((await tenant.create()).body)["id"]
    path, listing = f"/v1/fine_tuning/jobs/{job}", "/v1/fine_tuning/jobs?limit=20"
    await tenant.send("POST", f"{path}/pause")
    while json.loads((await tenant.get(path)).body)["status"] != "paused":
        await asyncio.sleep(0.2)
    tag = ""

    async def poll(connection: Connection) -> int:
        return (await connection.get(path))[0]

    async def conditional(connection: Connection) -> int:
        return (await connection.get(path, if_none_match=tag))[0]

    async def list_jobs(connection: Connection) -> int:
        return (await connection.get(listing))[0]

    fill(owner_url, FEW_JOBS, given.events_each)
    few = {each: await one_after_the_other(tenant, each, ONE_AFTER_THE_OTHER) for each in (path, listing)}
    fill(owner_url, given.jobs - FEW_JOBS, given.events_each)
    many = {each: await one_after_the_other(tenant, each, ONE_AFTER_THE_OTHER) for each in (path, listing)}
    tag = (await Connection(tenant).get(path))[1]["etag"]
    rates = {
        "polls of a job": await saturated(poll, tenant),
        "the same with `If-None-Match`": await saturated(conditional, tenant),
        "lists of 20 jobs": await saturated(list_jobs, tenant),
    }
    print(rates, flush=True)
    took, failed = await at_a_rate(tenant, path, given.rate, given.seconds)
    delays = await streamed(tenant, job, given.streams)
    p50 = {each: statistics.median(many[each]) / statistics.median(few[each]) for each in many}
    lines = [[f"{name} a second, at most", f"{rate:.0f}"] for name, rate in rates.items()]
    lines += [
        [f"{given.rate} polls a second for {given.seconds:.0f} s: median", f"{1000 * took[len(took) // 2]:.1f} ms"],
        ["99 % are faster than", f"{1000 * took[int(0.99 * len(took))]:.1f} ms"],
        ["failed", str(failed)],
        ["median of a poll, to that beside 100 jobs", f"{p50[path]:.2f}"],
        ["median of a list, to that beside 100 jobs", f"{p50[listing]:.2f}"],
        [f"an event on all of {given.streams} streams, slowest of {STREAM_EVENTS}", f"{max(delays):.2f} s"],
    ]
    return report.table(["", ""], lines)


def point_at(folder: Path) -> str:
    """Let this process write as a worker of the stack. Returns the URL of the database's owner."""
    of_stack = Folder(folder)
    sockets = of_stack.sockets()
    owner = make_url(postgres.owner_url(sockets / "postgres", of_stack.password(postgres.OWNER)))
    worker = owner.set(username="troll_worker", password=of_stack.password("troll_worker"))
    os.environ["DATABASE_URL"] = worker.render_as_string(hide_password=False)
    os.environ["REDIS_URL"] = redis.url(sockets / "redis" / "redis.sock")
    os.environ["TROLL_DATA_DIR"], os.environ["TROLL_MODELS_DIR"] = str(folder), str(of_stack.models)
    return owner.set(drivername="postgresql").render_as_string(hide_password=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--events-each", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=int, default=200, help="polls a second")
    parser.add_argument("--streams", type=int, default=500)
    given = parser.parse_args()
    os.environ |= {"TROLL_REQUESTS_PER_MINUTE": "0", "TROLL_MAX_STREAMS_PER_KEY": "1000"}
    with running_stack() as (folder, stack):
        tenant = Tenant.of(stack)
        owner_url = point_at(folder)
        asyncio.run(prepared(tenant, stack["model"]))
        body = asyncio.run(measured(tenant, owner_url, given))
    about = (
        f"`python -m benchmarks.polls`, beside {given.jobs:,} jobs and {given.jobs * given.events_each:,} events of the same "
        f"organisation. {report.machine(('fastapi', 'uvicorn', 'sqlalchemy'))}."
    )
    report.write_section("polls", "Polls beside much that is stored", f"{about}\n\n{body}")


if __name__ == "__main__":
    main()
