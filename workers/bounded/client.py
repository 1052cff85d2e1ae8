"""Asking for bounded work: the process that forks, and requests to it from a thread that waits.

Serving workers, which wait for many at a time, have ``workers.serving.preparation``.
"""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache

from workers.bounded.tasks import HERE, LEARN, Task, TaskResult, exceeded
from workers.processes import scrubbed_environment

TRIES = 3
ANSWER_SECONDS = 60.0
"""The kernel counts the seconds of a processor; this is for a machine that hardly gives it any."""


class ProcessGoneError(Exception):
    """There is nobody to ask."""


class Server:
    """``python -m workers.bounded``, started when it is first asked and again when it has died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Have it running. It ends by itself when this process does."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()

    def begin(self) -> tuple[bytes, socket.socket]:
        """A new process that waits for its tasks: its name, and the connection to it."""
        name = str(next(self._numbers)).encode()
        return name, self._connect(name)

    def learn(self, template: str) -> None:
        """Have a chat template at hand for those who use it."""
        with self._connect(LEARN) as connection:
            connection.sendall(template.encode())

    def _connect(self, name: bytes) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self.start()
            try:
                socket.send_fds(self._control, [name], [theirs.fileno()])
            except OSError:
                # It died a moment ago.
                with self._lock:
                    self._start()
                socket.send_fds(self._control, [name], [theirs.fileno()])
        return ours

    def kill(self, name: bytes) -> None:
        """End the process ``name``, whatever it is at; none, if it has ended."""
        with contextlib.suppress(OSError):
            self._control.send(name)

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._control.close()
                self._process.wait()
                self._process = None

    def _start(self) -> None:
        if self._process is not None:
            self._control.close()
            self._process.kill()
            self._process.wait()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.bounded", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=scrubbed_environment(),
                pass_fds=(theirs.fileno(),),
            )


@cache
def _shared(process: int) -> Server:
    return Server()


def start() -> None:
    """Have the server running before it is needed, so that nobody waits for it."""
    _shared(os.getpid()).start()


def run(tasks: Sequence[Task]) -> list[TaskResult]:
    """An answer to each task. One that exceeds its bounds costs the others nothing."""
    answers: list[TaskResult] = []
    while len(answers) < len(tasks):
        left = tasks[len(answers) :]
        answers += _attempt(left) or [exceeded(left[0])]
    return answers


def _attempt(tasks: Sequence[Task]) -> list[TaskResult]:
    """The answers up to the task that the process does not survive. Raises ``ProcessGoneError`` without a process."""
    server = _shared(os.getpid())
    for _ in range(TRIES):
        name, connection = server.begin()
        received = b""
        with connection:
            connection.settimeout(ANSWER_SECONDS)
            try:
                connection.sendall(json.dumps(tasks).encode())
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(1 << 18):
                    received += part
            except OSError:
                # It ended as it read or wrote, or is starved of processors.
                server.kill(name)
        if received.startswith(HERE):
            return read(received)
    raise ProcessGoneError("The process that works on templates and schemas does not start. Its log says more.")


def read(received: bytes) -> list[TaskResult]:
    """The answers in what a process has said."""
    *lines, _ = received.removeprefix(HERE).split(b"\n")
    return [json.loads(line) for line in lines]
