"""A serving worker as an operator starts it, for all tests of a file that talk to models."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.core import live
from service.inference import exchange
from service.settings import settings
from tests.workers.serving import tiny

MODEL = "tiny/talker"
START_SECONDS = 30.0


class ServingWorker:
    """The process; ``restart`` gives a new one with other settings."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, **variables: str) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.serving"],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **variables},
                stdout=log,
                stderr=log,
            )

    def hosts(self) -> list[psutil.Process]:
        """The processes that have a model loaded, or are about to."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture(scope="module")
def serving_worker(servers: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingWorker]:
    tiny.save(settings().models_dir / MODEL)
    # That of another file may have ended a moment ago.
    live.client().delete(exchange.ANY_WORKER)
    worker = ServingWorker(tmp_path_factory.mktemp("serving") / "worker.log")
    until = time.monotonic() + START_SECONDS
    while not live.client().exists(exchange.ANY_WORKER):
        assert time.monotonic() < until, worker.log()
        time.sleep(0.05)
    yield worker
    assert worker.stop() in (0, -signal.SIGTERM), worker.log()
