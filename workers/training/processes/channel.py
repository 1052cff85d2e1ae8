"""The child's end of the wire: lines go out, ``Start`` and ``Stop`` come in.

The end of the stream means that the supervisor is gone. Nobody would keep the results then, and another attempt may
already run, so the process ends at once, in the middle of whatever it does.
"""

import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from workers import wire


class Channel:
    """Sends lines through ``write`` and remembers whether the run was asked to stop.

    A job's ranks would all say the same. Those that do not lead say nothing but why they failed.
    """

    def __init__(self, write: Callable[[bytes], None], *, leads: bool = True) -> None:
        self._write, self._leads = write, leads
        self._one_at_a_time = threading.Lock()
        self._stopping = threading.Event()
        self.starts: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        """Where the ``RunSpec`` to run is stored; None to run nothing and leave."""
        self.on_stop: Callable[[], None] = lambda: None
        """Passes on to others that the run was asked to stop."""

    def send(self, line: wire.Line) -> None:
        if self._leads or isinstance(line, wire.Failure):
            with self._one_at_a_time:
                self._write(line.model_dump_json().encode() + b"\n")

    def say(
        self,
        message: str,
        *,
        level: Literal["info", "warn", "error"] = "info",
        data: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> None:
        """Send an event of type ``message``."""
        self.send(wire.Event(message=message, level=level, data=data, key=key))

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """Finish the step at hand, save a checkpoint and leave."""
        self._stopping.set()
        self.starts.put(None)
        self.on_stop()


def connect(path: Path) -> Channel:
    """A channel on the supervisor's Unix socket, with a thread that takes its commands."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return over(connection)


def over(connection: socket.socket, *, leads: bool = True) -> Channel:
    """A channel on a socket, with a thread that takes the commands that come in."""
    channel = Channel(lambda line: _send(connection, line), leads=leads)
    threading.Thread(target=_listen, args=(connection, channel), daemon=True).start()
    return channel


def _send(connection: socket.socket, line: bytes) -> None:
    try:
        connection.sendall(line)
    except (BrokenPipeError, ConnectionResetError):
        _die()


def _listen(connection: socket.socket, channel: Channel) -> None:
    try:
        with connection.makefile("rb") as commands:
            for raw in commands:
                try:
                    command = wire.parse_command(raw)
                except ValidationError:
                    # As the supervisor's side does. What it is asked for must not end a run that it is not about.
                    print(f"a command that is not known here is left alone: {raw[:200]!r}", file=sys.stderr)
                    continue
                if isinstance(command, wire.Start):
                    channel.starts.put(command.run)
                else:
                    channel.stop()
    except OSError:
        pass  # A reset is an end of the stream as well.
    finally:
        _die()


def _die() -> None:
    os._exit(wire.ExitCode.UNAVAILABLE)
