"""A host as its serving worker sees it: a process with one model, and the questions it is at work on."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from service.inference.wire import Failed, Question
from workers.child import scrubbed_environment
from workers.serving import lines
from workers.serving.lines import Options, Ready, Said, Unloadable

LONGEST_LINE = 64 * 1024**2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """What makes a loaded model the right one: its folder, as it was then, and the adapters it takes."""

    model_path: str
    changed_ns: int
    lora_rank: int = 0


class Lost(Exception):
    """The host does not come up, or has ended; ``failed`` is what its questions are told."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class Host:
    """One process. ``users`` are the ids of the questions that need it, in hand or still to be asked."""

    def __init__(self, identity: Identity, options: Options) -> None:
        self.identity, self.options = identity, options
        self.users: set[str] = set()
        self.used_at = time.monotonic()
        self.ready: Ready | None = None
        self.lost: Failed | None = None
        """Why it takes nothing more, once it has ended."""
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> Ready:
        """Start the process and wait for its model. Raises ``Lost``."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "workers.serving.host",
                str(theirs.fileno()),
                self.options.model_dump_json(),
                stdin=asyncio.subprocess.DEVNULL,
                env=scrubbed_environment(),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=LONGEST_LINE)
        first = await self._reader.readline()
        if not first:
            raise Lost(await self._obituary())
        line = lines.from_host.validate_json(first)
        if isinstance(line, Unloadable):
            raise Lost(line.failed)
        assert isinstance(line, Ready)
        self.ready = line
        return line

    def ask(self, question: Question) -> None:
        self._send(lines.Ask(ask=question))

    def forget(self, id: str) -> None:
        self._send(lines.Forget(forget=id))

    async def said(self) -> AsyncIterator[list[Said]]:
        """What the host says, as much at a time as there is. Raises ``Lost`` when it has ended."""
        rest = b""
        while received := await self._reader.read(1 << 18):
            *whole, rest = (rest + received).split(b"\n")
            messages = [lines.from_host.validate_json(line) for line in whole]
            yield [message for message in messages if isinstance(message, Said)]
        self.lost = await self._obituary()
        raise Lost(self.lost)

    async def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        if self.ready is not None:
            self._writer.close()

    def _send(self, line: lines.Line) -> None:
        # Of a host that is gone, ``said`` tells.
        if self.ready is not None and not self._writer.is_closing():
            self._writer.write(lines.encode(line))

    async def _obituary(self) -> Failed:
        assert self._process is not None
        code = await self._process.wait()
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
        log.error("the process of %s ended (%s); what it wrote is above", self.options.model_path, cause)
        message = f"The model's process ended ({cause}), perhaps for lack of memory. Its log says more."
        return Failed(status=503, code="model_process_ended", message=message)
