"""What one tenant feels of another: bursts of each kind of request, and a tenant that does everything at once.

    python -m benchmarks.api [--parts bursts|neighbour]

The stack runs as a user starts it, without a limit on requests a minute. The client is one process on the same cores.
Every loop is bounded in count, and only the loopback is spoken to.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from benchmarks import report
from benchmarks.stack import running_stack

BURSTS = (150, 500)
POLL_SECONDS = 0.1
PATIENCE = 120.0
BOUNDARY = "benchmark"
MESSAGES = [{"role": "user", "content": "12+34="}]
GRADER = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
SLOW = {
    "type": "python",
    "name": "slow",
    "source": "import time\ndef grade(sample, item):\n    time.sleep(18)\n    return 1.0",
}
QUICK = {"type": "python", "name": "quick", "source": "def grade(sample, item):\n    return 1.0"}
BOMB = {"name": "bomb", "schema": {"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000_000}}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


@dataclass
class Tenant:
    """A key, and what its requests need."""

    host: str
    port: int
    key: str
    model: str = ""
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, stack: dict[str, Any]) -> Self:
        """With the key that a stack says of itself."""
        where = urlsplit(stack["base_url"])
        return cls(str(where.hostname), int(where.port or 80), stack["api_key"])

    async def send(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", key: str | None = None
    ) -> Answer:
        """One request on a connection of its own; a client library would cost more than the server."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {key or self.key}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        began = time.perf_counter()
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(self.host, self.port)
            try:
                writer.write(head.encode() + content)
                received = await reader.read(-1)
            finally:
                writer.close()
        top, _, rest = received.partition(b"\r\n\r\n")
        status, *lines = top.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(status.split()[1]), headers, rest, time.perf_counter() - began)

    async def get(self, path: str) -> Answer:
        return await self.send("GET", path)

    async def upload(self, rows: bytes) -> Answer:
        parts = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--{BOUNDARY}\r\n'
            f'Content-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
        )
        body = parts.encode() + rows + f"\r\n--{BOUNDARY}--\r\n".encode()
        return await self.send("POST", "/v1/files", body, f"multipart/form-data; boundary={BOUNDARY}")

    async def create(self, grader: dict[str, Any] = GRADER) -> Answer:
        settings = {"n_steps": 1, "max_completion_tokens": 8}
        method = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": settings}}
        return await self.send("POST", "/v1/fine_tuning/jobs", {"model": self.model, "method": method, **self.files})

    async def run_grader(self, grader: dict[str, Any] = GRADER) -> Answer:
        body = {"grader": grader, "model_sample": "46", "item": {"answer": "46"}}
        return await self.send("POST", "/v1/fine_tuning/alpha/graders/run", body)

    async def chat(self, **more: Any) -> Answer:
        body = {"model": self.model, "messages": MESSAGES, "max_completion_tokens": 16, "temperature": 0, **more}
        return await self.send("POST", "/v1/chat/completions", body)


def rows(number: int) -> bytes:
    lines = [
        {
            "messages": [{"role": "user", "content": f"{10 + n % 90}+{10 + n % 83}="}],
            "answer": str(20 + n % 90 + n % 83),
        }
        for n in range(number)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


async def prepared(tenant: Tenant, model: str) -> Tenant:
    tenant.model = model
    for param, number in (("training_file", 64), ("validation_file", 16)):
        answer = await tenant.upload(rows(number))
        assert answer.status == 200, answer
        tenant.files[param] = json.loads(answer.body)["id"]
    return tenant


class Bystanders:
    """A process of its own that asks for the server's health and for a neighbour's jobs, again and again."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, neighbour: Tenant) -> "Bystanders":
        command = ["-m", "benchmarks.api", "--watch", neighbour.host, str(neighbour.port), neighbour.key]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=pipe, stdout=pipe, cwd=report.DOCUMENT.parents[1]
        )
        bystanders = cls(process)
        await bystanders.slowest()
        return bystanders

    async def slowest(self) -> dict[str, float]:
        """Seconds of the slowest answer to each since the last time, and how many were refused."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        return dict(json.loads(await self._process.stdout.readline()))

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


async def watch(neighbour: Tenant) -> None:
    """What the process of ``Bystanders`` does: a line comes in, a line with what was seen goes out."""
    seen = {"health": 0.0, "neighbour": 0.0, "refused": 0}

    async def again(name: str, path: str) -> None:
        while True:
            answer = await neighbour.get(path)
            seen[name] = max(seen[name], answer.seconds)
            seen["refused"] += answer.status != 200
            await asyncio.sleep(POLL_SECONDS)

    tasks = [
        asyncio.create_task(again("health", "/healthz")),
        asyncio.create_task(again("neighbour", "/v1/fine_tuning/jobs?limit=1")),
    ]
    while await asyncio.to_thread(sys.stdin.readline):
        await asyncio.sleep(2 * POLL_SECONDS)
        print(json.dumps(seen), flush=True)
        seen |= {"health": 0.0, "neighbour": 0.0, "refused": 0}
    for task in tasks:
        task.cancel()


async def bursts(tenant: Tenant, neighbour: Tenant) -> str:
    job = json.loads((await tenant.create()).body)["id"]
    jobs = f"/v1/fine_tuning/jobs/{job}"
    kinds: dict[str, Callable[[], Awaitable[Answer]]] = {
        "list jobs": lambda: tenant.get("/v1/fine_tuning/jobs"),
        "retrieve a job": lambda: tenant.get(jobs),
        "events": lambda: tenant.get(f"{jobs}/events"),
        "checkpoints": lambda: tenant.get(f"{jobs}/checkpoints"),
        "models": lambda: tenant.get("/v1/models"),
        "files": lambda: tenant.get("/v1/files"),
        "upload a file": lambda: tenant.upload(rows(64)),
        "create a job": tenant.create,
        "validate a grader": lambda: tenant.send("POST", "/v1/fine_tuning/alpha/graders/validate", {"grader": GRADER}),
        "run a grader": tenant.run_grader,
        "a wrong key": lambda: tenant.send("GET", "/v1/models", key="sk-troll-wrong"),
        "not JSON": lambda: tenant.send("POST", "/v1/fine_tuning/jobs", b"{"),
        "a webhook": lambda: tenant.send(
            "POST", "/v1/webhook_endpoints", {"name": "w", "url": "https://example.com/w", "event_types": []}
        ),
        "chat": tenant.chat,
    }
    lines = []
    bystanders = await Bystanders.start(neighbour)
    for (name, ask), number in itertools.product(kinds.items(), BURSTS):
        await bystanders.slowest()
        began = time.perf_counter()
        answers = await asyncio.gather(*(ask() for _ in range(number)))
        seconds = time.perf_counter() - began
        watched = await bystanders.slowest()
        statuses = Counter(answer.status for answer in answers)
        bad = sum(answer.status >= 500 and not _says_when(answer) for answer in answers)
        lines.append(
            [
                name,
                str(number),
                ", ".join(f"{many} x {status}" for status, many in sorted(statuses.items())),
                str(bad),
                f"{seconds:.1f} s",
                f"{watched['health']:.2f} s",
                f"{watched['neighbour']:.2f} s" + (f", {watched['refused']} refused" if watched["refused"] else ""),
            ]
        )
        print(" | ".join(lines[-1]), flush=True)
    await bystanders.stop()
    header = [
        "simultaneous requests of one key",
        "",
        "answers",
        "other 5xx",
        "all after",
        "`/healthz`",
        "another's poll",
    ]
    return report.table(header, lines)


def _says_when(answer: Answer) -> bool:
    return answer.status == 503 and "retry-after" in answer.headers


async def medians(tenant: Tenant, times: int) -> dict[str, float]:
    """Median seconds of what a careful tenant does, one after the other."""
    kinds: dict[str, Callable[[], Awaitable[Answer]]] = {
        "poll": lambda: tenant.get("/v1/fine_tuning/jobs?limit=1"),
        "create": tenant.create,
        "chat": tenant.chat,
        "grader run": lambda: tenant.run_grader(QUICK),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(times):
        for name, ask in kinds.items():
            answer = await ask()
            assert answer.status == 200, (name, answer)
            seconds[name].append(answer.seconds)
    return {name: statistics.median(each) for name, each in seconds.items()}


async def neighbour(loud: Tenant, quiet: Tenant, times: int) -> str:
    await quiet.chat()  # Loads the model.
    await medians(quiet, 1)
    idle = await medians(quiet, times)
    beside = asyncio.create_task(_keep_chatting(loud))
    await asyncio.sleep(0.5)
    alone_with_one = await medians(quiet, times)
    beside.cancel()
    created = await asyncio.gather(*(loud.create() for _ in range(110)))
    noise = [
        *(asyncio.create_task(loud.run_grader(SLOW)) for _ in range(45)),
        *(asyncio.create_task(loud.chat(max_completion_tokens=64)) for _ in range(300)),
        asyncio.create_task(loud.chat(response_format={"type": "json_schema", "json_schema": BOMB})),
    ]
    await asyncio.sleep(0.5)
    busy = await medians(quiet, times)
    left = sum(not each.done() for each in noise)
    answers = await asyncio.gather(*noise)
    told = Counter(answer.status for answer in answers)
    lines = []
    for name, before in {**idle, "chat": alone_with_one["chat"]}.items():
        lines.append([name, f"{1000 * before:.0f} ms", f"{1000 * busy[name]:.0f} ms", f"{busy[name] / before:.2f}"])
    statuses = ", ".join(f"{many} x {status}" for status, many in sorted(told.items()))
    jobs = Counter(answer.status for answer in created)
    return (
        report.table(["another tenant's", "idle (chat: beside one)", "beside the loud tenant", "ratio"], lines)
        + f"\n\nThe loud tenant got {dict(jobs)} for its 110 jobs and {statuses} for the rest; {left} of its "
        f"{len(noise)} requests were still open when the last measurement ended."
    )


async def _keep_chatting(tenant: Tenant) -> None:
    while True:
        await tenant.chat(max_completion_tokens=64)


def new_key(folder: Path, organization: str) -> str:
    command = [sys.executable, "-m", "service.cli", "keys", "create", "--organization", organization, "--name", "b"]
    done = subprocess.run(
        [*command, "--data-dir", str(folder)],
        check=True,
        capture_output=True,
        text=True,
        cwd=report.DOCUMENT.parents[1],
    )
    return next(word for word in (done.stdout + done.stderr).split() if word.startswith("sk-troll-"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", choices=("bursts", "neighbour"), nargs="+", default=("bursts", "neighbour"))
    parser.add_argument("--times", type=int, default=7, help="how often each thing is measured beside the loud tenant")
    parser.add_argument("--watch", nargs=3, metavar=("HOST", "PORT", "KEY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.watch:
        host, port, key = given.watch
        asyncio.run(watch(Tenant(host, int(port), key)))
        return
    os.environ |= {
        "TROLL_REQUESTS_PER_MINUTE": "0",
        "TROLL_MAX_QUEUED_JOBS": "100000",
        "TROLL_MAX_STREAMS_PER_KEY": "1000",
        "TROLL_GRADERS": json.dumps({"jail": "unshare"}),
    }
    for part in given.parts:
        with running_stack() as (folder, stack):
            where = urlsplit(stack["base_url"])
            keys = [stack["api_key"], new_key(folder, "quiet")]
            body = asyncio.run(measured(part, str(where.hostname), int(where.port or 80), keys, stack["model"], given))
        about = f"`python -m benchmarks.api --parts {part}`. {report.machine(('fastapi', 'uvicorn', 'sqlalchemy'))}."
        title = {"bursts": "Bursts of one key", "neighbour": "Beside a loud tenant"}[part]
        report.write_section(f"api-{part}", title, f"{about}\n\n{body}")


async def measured(part: str, host: str, port: int, keys: list[str], model: str, given: argparse.Namespace) -> str:
    loud, quiet = [await prepared(Tenant(host, port, key), model) for key in keys]
    return await (bursts(loud, quiet) if part == "bursts" else neighbour(loud, quiet, given.times))


if __name__ == "__main__":
    main()
