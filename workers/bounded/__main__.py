"""``python -m workers.bounded SOCKET_FD``: fork a process for each request that comes through the socket.

A message of one name and a connection begins a request, whose process says on the connection that it is there, reads
its tasks and writes the answers; the name alone kills it. A chat template that comes through a connection named
``LEARN`` is at hand in later processes, which otherwise take most of their time to read it. It ends with the socket.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

from workers.bounded import grammars, templates
from workers.bounded.tasks import CPU_SECONDS, HERE, LEARN, MEMORY_BYTES, Task, TaskResult

MAX_NAME = 128
LEARN_SECONDS, LEARN_BYTES = 1.0, 128 << 20
LOOK_SECONDS = 0.1
PATIENT_SECONDS = 0.25
LEAST_PRIORITY = 19
"""What takes longer than ``PATIENT_SECONDS`` goes on with what others leave of the processors."""


class Children:
    """Processes at work, by name."""

    def __init__(self) -> None:
        self._began: dict[bytes, tuple[int, float]] = {}
        self._slow: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._began)

    def add(self, name: bytes, pid: int) -> None:
        self._began[name] = pid, time.monotonic()

    def kill(self, name: bytes) -> None:
        # It is not waited for yet, so that its number is still its own.
        if name in self._began:
            os.kill(self._began[name][0], signal.SIGKILL)

    def look(self) -> None:
        """Let go of those that have ended, and lower the priority of those that take long."""
        for name, (pid, began) in list(self._began.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._began[name]
                self._slow.discard(name)
            elif name not in self._slow and time.monotonic() - began > PATIENT_SECONDS:
                self._slow.add(name)
                os.setpriority(os.PRIO_PROCESS, pid, LEAST_PRIORITY)

    def end(self) -> None:
        for name in list(self._began):
            self.kill(name)


def serve(control: socket.socket) -> None:
    children = Children()
    # Unlike ``select``, this takes descriptors beyond 1,023, which whoever has many of them open hands down.
    arrivals = select.poll()
    arrivals.register(control, select.POLLIN)
    while True:
        arrived = arrivals.poll(LOOK_SECONDS * 1000 if len(children) else None)
        children.look()
        if not arrived:
            continue
        name, descriptors, _, _ = socket.recv_fds(control, MAX_NAME, 1)
        if not name:
            children.end()
            return
        if not descriptors:
            children.kill(name)
            continue
        if name == LEARN:
            learn(socket.socket(fileno=descriptors[0]))
            continue
        pid = os.fork()
        if pid == 0:
            control.close()
            # Whatever happens, no process but the first may return to the loop.
            try:
                work(socket.socket(fileno=descriptors[0]))
            finally:
                os._exit(1)
        os.close(descriptors[0])
        children.add(name, pid)


def learn(connection: socket.socket) -> None:
    """Take in a template, unless that takes long or much."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    signal.signal(signal.SIGPROF, give_up)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_at_most(_size() + LEARN_BYTES, limits[1]), limits[1]))
    signal.setitimer(signal.ITIMER_PROF, LEARN_SECONDS)
    try:
        with connection, connection.makefile("rb") as received:
            templates.learn(received.read().decode())
    except Exception:
        # Whoever uses it is told what is wrong with it.
        return
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def work(connection: socket.socket) -> None:
    """Do the tasks that come through ``connection``, and end the process."""
    connection.sendall(HERE)
    _confine()
    with connection.makefile("rb") as received:
        tasks: list[Task] = json.load(received)
    for task in tasks:
        _allow(CPU_SECONDS)
        connection.sendall(json.dumps(do(task)).encode() + b"\n")
    os._exit(0)


def do(task: Task) -> TaskResult:
    match task["kind"]:
        case "render":
            return templates.render(task)
        case "names":
            return templates.names(task)
        case "compile":
            return grammars.attempt(task)


def _confine() -> None:
    size = _at_most(_size() + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1])
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What a library writes as it aborts is told to whoever asked, in words of ours.
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    # Should memory run out on the whole machine, this goes first.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _at_most(size: int, limit: int) -> int:
    return size if limit == resource.RLIM_INFINITY else min(size, limit)


def _size() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _allow(seconds: int) -> None:
    """So many more seconds of a processor."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    # An interrupt is for whoever started this, whose end is the end of the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
    sys.exit(0)
