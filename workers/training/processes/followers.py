"""How the first rank of a job starts and follows the others.

The first rank is the training child itself; the others are its children, in its process group, started as warm as it
is. They hear from it over a socket each: the run to start with, and by its end that they have to end as well. They say
nothing but why they failed. One that ends otherwise ends the job, with its own error and its own exit code. torchrun's
agent would put every rank into a session of its own, beyond the reach of whoever kills the process group, and would
make one exit code of all of them; ranks that torchrun started by hand are told by its variables who they are.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from pydantic import ValidationError

from workers import wire
from workers.modeling import ranks
from workers.training.processes.channel import Channel

COMMAND = [sys.executable, "-m", "workers.training"]


class Followers:
    """The ranks from the second on, for a job of ``number`` ranks that meet in the folder ``scratch``."""

    def __init__(self, number: int, scratch: Path) -> None:
        os.environ |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(number),
            ranks.RENDEZVOUS: (scratch / "rendezvous").as_uri(),
        }
        # They share the machine, and nobody else's network is any business of theirs.
        for name, value in {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // number)),
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
        }.items():
            os.environ.setdefault(name, value)
        self._ranks = [_start(rank) for rank in range(1, number)]

    def start(self, run: Path) -> None:
        """Have them run the ``RunSpec`` stored at ``run``."""
        line = wire.Start(run=run).model_dump_json().encode() + b"\n"
        for _, connection in self._ranks:
            connection.sendall(line)

    def watch(self, channel: Channel) -> None:
        """From now on, end this process when one of them fails, and say why on ``channel``; stop them when it stops."""
        channel.on_stop = self._stop
        for process, connection in self._ranks:
            threading.Thread(target=_watch, args=(process, connection, channel), daemon=True).start()

    def _stop(self) -> None:
        """One that waits for something for long has to hear it too."""
        for _, connection in self._ranks:
            with contextlib.suppress(OSError):
                connection.sendall(wire.Stop().model_dump_json().encode() + b"\n")


def _start(rank: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [*COMMAND, "--follow", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            pass_fds=[theirs.fileno()],
        )
    return process, ours


def _watch(process: subprocess.Popen[bytes], connection: socket.socket, channel: Channel) -> None:
    with connection.makefile("rb") as lines:
        for line in lines:
            try:
                channel.send(wire.parse(line))
            except ValidationError:
                break  # It died in the middle of a line.
    code = process.wait()
    if code in (wire.ExitCode.DONE, wire.ExitCode.STOPPED):
        return
    if code < 0:
        # Whoever follows this process learns of a signal as of its own.
        signal.pthread_kill(threading.get_ident(), -code)  # This thread goes no further than here if it is deadly.
        code = wire.ExitCode.UNAVAILABLE if code == -signal.SIGTERM else wire.ExitCode.BUG
    os._exit(code)
