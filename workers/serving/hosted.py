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

from service.inference.wire import Failed, Question
from workers.processes import scrubbed_environment
from workers.serving import lines, memory
from workers.serving.identity import Identity, ModelUnavailableError
from workers.serving.lines import Options, QuestionEvents, Ready, Unloadable

LONGEST_LINE = 64 * 1024**2
WORKING_BYTES = 8 << 30
"""Memory that a host may take beyond what it has when its model is loaded: keys and values of what it generates, what
is computed on the way, and adapters."""

log = logging.getLogger(__name__)


class Host:
    """One process. ``users`` are the ids of the questions that need it, in hand or still to be asked."""

    def __init__(self, identity: Identity, options: Options) -> None:
        self.identity, self.options = identity, options
        self.users: set[str] = set()
        self.used_at = time.monotonic()
        self.ready: Ready | None = None
        self.lost: Failed | None = None
        """Why it takes nothing more, once it has ended."""
        self._most_bytes = 0
        self._grown = False
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> Ready:
        """Start the process and wait for its model. Raises ``ModelUnavailableError``."""
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
            raise ModelUnavailableError(await self._obituary())
        line = lines.from_host.validate_json(first)
        if isinstance(line, Unloadable):
            raise ModelUnavailableError(line.failed)
        assert isinstance(line, Ready)
        assert self.pid is not None
        self._most_bytes = memory.resident(self.pid) + WORKING_BYTES
        self.ready = line
        return line

    def ask(self, question: Question, text: str | None) -> None:
        """``text`` is what the model is shown of a chat, so that it needs no messages."""
        if question.chat is not None:
            question = question.model_copy(update={"chat": question.chat.model_copy(update={"messages": []})})
        self._send(lines.Ask(ask=question, text=text))

    def forget(self, id: str) -> None:
        self._send(lines.Forget(forget=id))

    async def events(self) -> AsyncIterator[list[QuestionEvents]]:
        """What the host says, as much at a time as there is. Raises ``ModelUnavailableError`` when it has ended."""
        rest = b""
        while received := await self._reader.read(1 << 18):
            *whole, rest = (rest + received).split(b"\n")
            messages = [lines.from_host.validate_json(line) for line in whole]
            yield [message for message in messages if isinstance(message, QuestionEvents)]
        self.lost = await self._obituary()
        raise ModelUnavailableError(self.lost)

    def end_if_grown(self) -> None:
        """End the process if it takes more memory than it may; ``events`` tells."""
        if self.ready is None or self.pid is None or self._grown or memory.resident(self.pid) <= self._most_bytes:
            return
        log.error("the process of %s takes more than %d MB", self.options.model_path, self._most_bytes >> 20)
        self._grown = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

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
        # Of a host that is gone, ``events`` tells.
        if self.ready is not None and not self._writer.is_closing():
            self._writer.write(lines.encode(line))

    async def _obituary(self) -> Failed:
        assert self._process is not None
        code = await self._process.wait()
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
        log.error("the process of %s ended (%s); what it wrote is above", self.options.model_path, cause)
        message = f"The model's process ended ({cause}), perhaps for lack of memory. Its log says more."
        if self._grown:
            message = f"The model's process was ended because it took more than {self._most_bytes >> 20} MB."
        return Failed(status=503, code="model_process_ended", message=message)
