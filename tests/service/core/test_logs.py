"""What the server's process logs, and how it ends: both seen from outside."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from service.embedded.servers import Servers
from tests import factories
from tests.conftest import Key

ROOT = Path(__file__).parents[3]


@dataclass
class Process:
    """``uvicorn`` as it is started in production, and the lines it writes."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.rstrip())

    def wait_for(self, text: str) -> str:
        until = time.monotonic() + 20
        while True:
            found = next((line for line in self.lines if text in line), None)
            if found is not None:
                return found
            assert self.popen.poll() is None, "\n".join(self.lines)
            assert time.monotonic() < until, "\n".join(self.lines)
            time.sleep(0.02)

    @property
    def url(self) -> str:
        return self.wait_for("running on").split("running on ")[1].split()[0]


@pytest.fixture
def process(database: Servers) -> Iterator[Process]:
    command = [
        "-m",
        "uvicorn",
        "--factory",
        "service.app:create_app",
        "--port",
        "0",
        "--timeout-graceful-shutdown",
        "20",
    ]
    popen = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "DATABASE_URL": database.database_url("troll_api")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    running = Process(popen)
    reader = threading.Thread(target=running.read)
    reader.start()
    yield running
    popen.kill()
    popen.wait()
    reader.join()


def job_arguments(client: openai.OpenAI, models_dir: Path) -> dict[str, Any]:
    files = [
        client.files.create(file=factories.jsonl(factories.rows(4, start)), purpose="fine-tune").id
        for start in (10, 50)
    ]
    return {
        "model": factories.offer_model(models_dir),
        "training_file": files[0],
        "validation_file": files[1],
        "method": factories.method(),
    }


def test_the_access_log_names_the_request(process: Process) -> None:
    with urllib.request.urlopen(f"{process.url}/healthz") as answer:
        id = answer.headers["x-request-id"]
    assert f"[{id}]" in process.wait_for("GET /healthz")


def test_our_own_lines_name_the_request(process: Process, api_key: Key, models_dir: Path) -> None:
    client = openai.OpenAI(api_key=api_key.plain, base_url=f"{process.url}/v1", max_retries=0)
    raw = client.fine_tuning.jobs.with_raw_response.create(**job_arguments(client, models_dir))
    assert f"[{raw.headers['x-request-id']}]" in process.wait_for("queued ftjob-")


def test_followers_are_let_go_when_the_server_stops(process: Process, api_key: Key, models_dir: Path) -> None:
    client = openai.OpenAI(api_key=api_key.plain, base_url=f"{process.url}/v1", max_retries=0)
    job = client.fine_tuning.jobs.create(**job_arguments(client, models_dir))
    with client.get(
        f"/fine_tuning/jobs/{job.id}/events",
        cast_to=dict[str, object],
        options={"params": {"stream": "true"}},
        stream=True,
        stream_cls=openai.Stream[dict[str, object]],
    ) as stream:
        seen = [next(stream)["seq"], next(stream)["seq"]]
        process.popen.send_signal(signal.SIGTERM)
        seen += [event["seq"] for event in stream]
    assert seen == [1, 2]
    assert process.popen.wait(10) == -signal.SIGTERM
    assert not any("exceeded" in line for line in process.lines), "the follower was cut off instead of let go"
