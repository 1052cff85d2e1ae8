"""A training child: a process group of its own, a scrubbed environment, and the socket it speaks on."""

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from workers import wire
from workers.processes import scrubbed_environment

COMMAND = [sys.executable, "-m", "workers.training"]
MAX_LINE = 8 * 1024**2
LOG_TAIL = 4096


class Child:
    """One training process, or several of one job in one process group: the first of them starts and ends the others.

    It is spawned warm, with everything imported, and waits until ``start``.
    """

    def __init__(self, processes: int = 1) -> None:
        """Raises ``OSError`` when it cannot be started."""
        self.scratch = Path(tempfile.mkdtemp(prefix="troll-"))
        self.log_path = self.scratch / "training.log"
        self._listener = socket.socket(socket.AF_UNIX)
        self._connection: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._buffer = b""
        self._pending_command = b""
        several = ["--processes", str(processes)] if processes > 1 else []
        try:
            self._listener.bind(str(self.scratch / "wire.sock"))
            self._listener.listen(1)
            self._selector.register(self._listener, selectors.EVENT_READ)
            self.process = self._spawn(several)
        except OSError:
            self._clean()
            raise

    def _spawn(self, options: list[str]) -> subprocess.Popen[bytes]:
        with self.log_path.open("wb") as log:
            return subprocess.Popen(
                [*COMMAND, "--socket", str(self.scratch / "wire.sock"), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=scrubbed_environment(),
                start_new_session=True,
            )

    def start(self, run: Path) -> None:
        """Run the ``RunSpec`` stored at ``run``."""
        self._send(wire.Start(run=run))

    def stop(self) -> None:
        """Ask for a checkpoint and an orderly end."""
        self._send(wire.Stop())

    def read(self, timeout: float) -> tuple[list[bytes], bool]:
        """Whole lines that came within ``timeout`` seconds, and whether no more will come."""
        ready = self._selector.select(timeout)
        if not ready:
            return [], self._connection is None and not self.alive()
        if self._connection is None:
            self._accept()
            return [], False
        try:
            received = self._connection.recv(1 << 18)
        except ConnectionResetError:
            received = b""
        *lines, self._buffer = (self._buffer + received).split(b"\n")
        if len(self._buffer) > MAX_LINE:
            self.kill()
            raise RuntimeError(f"the training process sent a line of more than {MAX_LINE} bytes")
        return lines, not received

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait(self, timeout: float) -> int:
        """The exit code, negative for a signal. A process that outlives ``timeout`` is killed."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        return self.process.wait() if code is None else code

    def kill(self) -> None:
        """End the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process and remove its scratch folder."""
        self.kill()
        self.process.wait()
        self._clean()

    def _clean(self) -> None:
        self._selector.close()
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def log_tail(self) -> str:
        """The last lines that the process wrote to standard output and error."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - LOG_TAIL))
            return log.read().decode(errors="replace").replace("\0", "")

    def _accept(self) -> None:
        self._selector.unregister(self._listener)
        self._connection, _ = self._listener.accept()
        self._selector.register(self._connection, selectors.EVENT_READ)
        # A child that has ended meanwhile is noticed by whoever reads.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.sendall(self._pending_command)

    def _send(self, command: wire.Start | wire.Stop) -> None:
        line = command.model_dump_json().encode() + b"\n"
        if self._connection is None:
            self._pending_command += line
            return
        # When the process is gone, whoever reads will see that.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.sendall(line)
