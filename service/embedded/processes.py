"""Child processes: started with a log file of their own, written down, watched, and ended in bounded time.

Each child leads its own session, so that a Ctrl-C in the terminal reaches only the process that starts them. What runs
is written to a file as (pid, start time), so that whatever outlives a killed parent can be found and ended later,
without ever hitting a stranger that was given the same pid.
"""

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

POLL_SECONDS = 0.05
LEAST_PRIORITY = 19
FIRST_BACKOFF_SECONDS = 1.0
LAST_BACKOFF_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
RECORD_SECONDS = 1.0
START_TIME_TOLERANCE = 2.0
"""Seconds by which the start time of one process may seem to move, when the clock is set right meanwhile."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """What to run, and how to end it: ``stop_signal`` first, SIGKILL to the whole session after ``grace`` seconds.

    Programs of a higher ``tier`` need those of a lower one; they are ended first.
    """

    name: str
    command: Sequence[str | Path]
    tier: int
    stop_signal: int = signal.SIGTERM
    grace: float = 10.0
    nice: int = 0
    """By how much its priority, and that of what it starts, is below this process's."""


@dataclass
class Child:
    """A program that runs, or ran until it crashed."""

    program: Program
    environment: Mapping[str, str]
    process: psutil.Process
    started: float
    crashes: int = 0
    restart_at: float | None = None


class Flag:
    """Something that a signal handler may set while the main thread waits for it.

    ``threading.Event`` would deadlock: its lock may be held by the very thread that the handler interrupts.
    """

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, seconds: float) -> bool:
        """Sleep, at most ``seconds``, until it is set. A signal's handler runs at once, and the sleep goes on."""
        deadline = time.monotonic() + seconds
        while not self._set and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, POLL_SECONDS))
        return self._set


class StartError(Exception):
    """A process did not come up. The message says which and shows the end of its log."""


class StoppedError(Exception):
    """We were asked to stop while waiting for a child."""


class Children:
    """The children of this process.

    ``records`` is the file they are written to, ``logs`` the folder of their log files. Setting ``stopping`` ends every
    wait with ``StoppedError``; setting ``hurry`` ends what grace a stopping child still has.
    """

    def __init__(self, records: Path, logs: Path) -> None:
        self.records, self.logs = records, logs
        self.running: list[Child] = []
        self.stopping, self.hurry = Flag(), Flag()
        self._record_at: float | None = None
        """When what runs is to be written down, if that is still to be done."""

    def start(self, program: Program, environment: Mapping[str, str]) -> Child:
        """Start ``program`` with exactly ``environment``; its output is appended to ``<name>.log``."""
        process = self._spawn(program, environment)
        child = Child(program, environment, process, process.create_time())
        self.running.append(child)
        self._record()
        return child

    def wait(self, child: Child, ready: Callable[[], bool], seconds: float) -> None:
        """Return when ``ready()``. Raises ``StartError`` when the child exits first or ``seconds`` pass."""
        deadline = time.monotonic() + seconds
        while not ready():
            if exited(child.process):
                raise StartError(f"{child.program.name} stopped while starting. {self.log_tail(child)}")
            self._wait_a_little(child, deadline, seconds)

    def finish(self, child: Child, seconds: float) -> None:
        """Return when a child that does one thing and exits has done it. Raises ``StartError`` when it failed."""
        if (code := self.result(child, seconds)) != 0:
            raise StartError(f"{child.program.name} failed ({describe_exit(code)}). {self.log_tail(child)}")

    def result(self, child: Child, seconds: float) -> int:
        """The exit code of a child that does one thing and exits, negative for a signal."""
        deadline = time.monotonic() + seconds
        while not exited(child.process):
            self._wait_a_little(child, deadline, seconds)
        self.running.remove(child)
        self._record()
        return int(child.process.wait() or 0)

    def _wait_a_little(self, child: Child, deadline: float, seconds: float) -> None:
        if time.monotonic() > deadline:
            raise StartError(f"{child.program.name} took longer than {seconds:g} s. {self.log_tail(child)}")
        if self.stopping.wait(POLL_SECONDS):
            raise StoppedError

    def log_path(self, child: Child) -> Path:
        return self.logs / f"{child.program.name}.log"

    def log_tail(self, child: Child, lines: int = 15) -> str:
        return f"The end of its log {self.log_path(child)}:\n" + "\n".join(self._log(child)[-lines:])

    def last_words(self, child: Child) -> str:
        """The last line of its log."""
        return next((line for line in reversed(self._log(child)) if line.strip()), "it said nothing")

    def _log(self, child: Child) -> list[str]:
        return self.log_path(child).read_text(errors="replace").splitlines()

    def restart_crashed(self) -> None:
        """Start crashed children again, each after a pause that doubles with every crash. Call this often.

        Where that fails, or what runs cannot be written down because the disk is full, it is tried again later.
        """
        now = time.monotonic()
        if self._record_at is not None and now >= self._record_at:
            self._record_or_later()
        for child in self.running:
            if child.restart_at is not None:
                if now >= child.restart_at:
                    self._restart(child)
            elif exited(child.process):
                self._crashed(child, now)

    def stop(self) -> None:
        """End all children, highest tier first."""
        end([record(child) for child in self.running], self.hurry)
        for child in self.running:
            child.process.wait()
        self.running.clear()
        self.records.unlink(missing_ok=True)

    def _spawn(self, program: Program, environment: Mapping[str, str]) -> psutil.Process:
        path = self.logs / f"{program.name}.log"
        with path.open("ab") as output:
            process = psutil.Popen(
                [str(part) for part in program.command],
                env=dict(environment),
                cwd=self.logs.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if program.nice:
            # Upwards from what it has, which anybody may do; back is only for root.
            process.nice(min(process.nice() + program.nice, LEAST_PRIORITY))
        return process

    def _crashed(self, child: Child, now: float) -> None:
        lived = time.time() - child.started
        child.crashes = 1 if lived > HEALTHY_SECONDS else child.crashes + 1
        pause = min(FIRST_BACKOFF_SECONDS * 2 ** (child.crashes - 1), LAST_BACKOFF_SECONDS)
        child.restart_at = now + pause
        log.error(
            "%s exited (%s) after %.0f s; starting it again in %.0f s, see %s",
            child.program.name, describe_exit(child.process.wait()), lived, pause, self.log_path(child),
        )  # fmt: skip

    def _restart(self, child: Child) -> None:
        try:
            process = self._spawn(child.program, child.environment)
        except OSError as error:
            log.error("%s cannot be started, and is tried again: %s", child.program.name, error)
            child.restart_at = time.monotonic() + LAST_BACKOFF_SECONDS
            return
        child.process, child.started, child.restart_at = process, process.create_time(), None
        self._record_or_later()
        log.info("%s runs again as process %d", child.program.name, child.process.pid)

    def _record_or_later(self) -> None:
        try:
            self._record()
            self._record_at = None
        except OSError as error:
            if self._record_at is None:
                log.error("what runs cannot be written down, and is when there is room: %s", error)
            self._record_at = time.monotonic() + RECORD_SECONDS

    def _record(self) -> None:
        write_json(self.records, [record(child) for child in self.running])


def record(child: Child) -> dict[str, Any]:
    return {
        "name": child.program.name,
        "pid": child.process.pid,
        "started": child.started,
        "tier": child.program.tier,
        "stop_signal": int(child.program.stop_signal),
        "grace": child.program.grace,
    }


def leftovers(records: Path) -> list[dict[str, Any]]:
    """Those of the recorded processes that still run."""
    if not records.exists():
        return []
    return [entry for entry in json.loads(records.read_text()) if find(entry["pid"], entry["started"]) is not None]


def end(entries: Sequence[Mapping[str, Any]], hurry: Flag | None = None) -> None:
    """End recorded processes tier by tier, the highest first, all of one tier at once."""
    for tier in sorted({entry["tier"] for entry in entries}, reverse=True):
        found = [(entry, find(entry["pid"], entry["started"])) for entry in entries if entry["tier"] == tier]
        living = [(entry, process) for entry, process in found if process is not None]
        for entry, process in living:
            _signal(process, entry["stop_signal"])
        asked = time.monotonic()
        for entry, process in living:
            _await_end(process, entry, asked + entry["grace"], hurry)


def _await_end(process: psutil.Process, entry: Mapping[str, Any], deadline: float, hurry: Flag | None) -> None:
    while not exited(process):
        if time.monotonic() > deadline or (hurry is not None and hurry.is_set()):
            log.warning("%s (process %d) did not stop in time and is killed", entry["name"], process.pid)
            _kill_session(process)
            deadline = float("inf")
            hurry = None
        time.sleep(POLL_SECONDS)


def end_inside(folder: Path, name: str, stop_signal: int, grace: float = 10.0) -> None:
    """End every process called ``name`` that works in ``folder``: servers that nobody wrote down."""
    living = [process for process in psutil.process_iter() if _works_in(process, name, folder)]
    for process in living:
        _signal(process, stop_signal)
    _, stubborn = psutil.wait_procs(living, timeout=grace)
    for process in stubborn:
        process.kill()
    psutil.wait_procs(stubborn, timeout=grace)


def _works_in(process: psutil.Process, name: str, folder: Path) -> bool:
    try:
        return process.name() == name and process.cwd() == str(folder.resolve()) and not exited(process)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def find(pid: int, started: float) -> psutil.Process | None:
    """The process with this pid, if it is the one that started then. A pid given to another process is not it."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < START_TIME_TOLERANCE
        return process if same and not exited(process) else None
    except psutil.NoSuchProcess:
        return None


def exited(process: psutil.Process) -> bool:
    """Whether ``process`` has ended, be it that nobody has collected its exit code yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def describe_exit(code: int | None) -> str:
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"code {code}"


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _kill_session(process: psutil.Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` so that ``path`` holds either the old or the new text, readable by its owner alone."""
    partial = path.with_suffix(".partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
