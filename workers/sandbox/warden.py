"""Process 1 of a jail: runs one program at a time, each in namespaces of its own, and tells the outside how it ended.

The outside sends one JSON line per program and gets one JSON line back. Programs never hold the descriptor of those
answers: each writes to a pipe of its own, and what it writes there is passed on as text, unread. So a program can
forge its own report and nobody else's.
"""

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

from workers.sandbox import kernel, programs, seccomp

SCRATCH = "/scratch"
"""The one folder that a program can write: empty at its start, gone at its end. ``/tmp`` leads there."""
READ = 1 << 16
_REPORT = 3


def serve(limits: Mapping[str, Any], preload: list[str], user: int | None) -> None:
    """Answer the lines on standard input until it ends. ``preload`` names libraries to import for all programs."""
    if os.getpid() != 1:
        raise RuntimeError("the warden must be process 1 of the jail")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a handler process 1 cannot be interrupted from within
    answers = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    warnings.simplefilter("ignore")
    for name in preload:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    own_namespace = os.pidfd_open(1)
    os.write(answers, b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        answer = _run(json.loads(line), limits, user, own_namespace)
        _write_all(answers, json.dumps(answer).encode() + b"\n")


def _run(program: dict[str, Any], limits: Mapping[str, Any], user: int | None, own_namespace: int) -> dict[str, Any]:
    pipes = {name: os.pipe() for name in ("setup", "report", "stdout")}
    # A process that has asked for a namespace for its children must come home before it can ask for the next.
    kernel.join(own_namespace, kernel.NEW_PIDS)
    kernel.unshare(kernel.NEW_PIDS)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(program, limits, user, {name: ends[1] for name, ends in pipes.items()})
    for _, writing in pipes.values():
        os.close(writing)
    reading = {name: ends[0] for name, ends in pipes.items()}
    read = {name: bytearray() for name in reading}
    why = _watch(child, reading, read, limits["output_bytes"], started + program["seconds"])
    _, status, usage = os.wait4(child, 0)
    for name, descriptor in reading.items():
        _drain(descriptor, read[name], limits["output_bytes"])
        os.close(descriptor)
    return {
        "stopped": why,
        "exit": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        **{name: bytes(each).decode(errors="replace") for name, each in read.items()},
    }


def _watch(child: int, reading: dict[str, int], read: dict[str, bytearray], most: int, deadline: float) -> str | None:
    """Read until ``child`` ends. One that is out of time, or writes too much, is killed with all that it started."""
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(0, 0)  # reports when the outside is gone, and nothing else
    names = {descriptor: name for name, descriptor in reading.items()}
    for descriptor in names:
        poll.register(descriptor, select.POLLIN)
    why: str | None = None
    try:
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
            if 0 in ready:
                os._exit(0)
            if ended in ready:
                return why
            for descriptor in ready:
                chunk = os.read(descriptor, READ)
                read[names[descriptor]] += chunk
                if not chunk:
                    poll.unregister(descriptor)
            over = any(len(each) > most for each in read.values())
            if over or time.monotonic() >= deadline:
                why = "output" if over else "time"
                os.kill(child, signal.SIGKILL)
                return why
    finally:
        os.close(ended)


def _drain(descriptor: int, into: bytearray, most: int) -> None:
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while len(into) <= most and (chunk := os.read(descriptor, READ)):
            into += chunk
    del into[most:]


def _become(program: dict[str, Any], limits: Mapping[str, Any], user: int | None, pipes: dict[str, int]) -> None:
    """Turn this process, process 1 of its own namespace, into the one that runs ``program``. Does not return."""
    try:
        try:
            _confine(program, limits, user, pipes)
            seccomp.install()
        except BaseException as error:
            os.write(pipes["setup"], f"{type(error).__name__}: {error}".encode()[:1000])
            os._exit(1)
        os.write(pipes["setup"], b"done")
        os.close(pipes["setup"])
        programs.run(program, _REPORT)
    finally:
        os._exit(1)


def _confine(program: dict[str, Any], limits: Mapping[str, Any], user: int | None, pipes: dict[str, int]) -> None:
    os.setsid()
    kernel.unshare(kernel.NEW_MOUNTS | kernel.NEW_IPC)
    files = max(1000, limits["disk_bytes"] // 16384)
    options = f"size={limits['disk_bytes']},nr_inodes={files},mode=1777"
    kernel.mount("tmpfs", SCRATCH, "tmpfs", kernel.NO_SETUID | kernel.NO_DEVICES, options)
    os.chdir(SCRATCH)
    _arrange_descriptors(program, pipes)
    _limit(program["seconds"], limits)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    kernel.drop_capabilities()
    kernel.forbid_new_privileges()


def _arrange_descriptors(program: dict[str, Any], pipes: dict[str, int]) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    given = null
    if program.get("stdin"):
        given = os.memfd_create("stdin")
        _write_all(given, program["stdin"].encode(errors="replace"))
        os.lseek(given, 0, os.SEEK_SET)
    out = pipes["stdout"] if program["kind"] == "script" else null
    # Copies above all others first, so that no assignment to a low number overwrites what a later one needs.
    wanted = (given, out, null, pipes["report"], pipes["setup"])
    high = [os.dup2(each, 100 + index) for index, each in enumerate(wanted)]
    for number, descriptor in enumerate(high):
        os.dup2(descriptor, number)
    os.closerange(5, 1 << 16)
    pipes["setup"] = 4


def _limit(seconds: float, limits: Mapping[str, Any]) -> None:
    for which, most in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_FSIZE, limits["disk_bytes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 256),
    ):
        _, hard = resource.getrlimit(which)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (allowed, allowed))


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
