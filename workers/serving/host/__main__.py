"""``python -m workers.serving.host SOCKET_FD OPTIONS``: load a model, then answer what comes through the socket.

It ends when the socket closes. Lines are JSON, see ``workers.serving.lines``.
"""

import contextlib
import json
import logging
import os
import queue
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from workers import processes
from workers.serving import lines
from workers.serving.lines import Options

SWITCH_SECONDS = 0.0005

log = logging.getLogger(__name__)


def main(descriptor: int, options: Options) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    connection = socket.socket(fileno=descriptor)
    processes.keep_priority()
    # Should memory run out on the whole machine, a model goes before PostgreSQL does.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    # Idle OpenMP threads that spin instead of sleeping take the processors from the API, Redis and the other models.
    # OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from workers.serving.host import loading

    try:
        engine, ready = loading.load(options)
    except loading.ModelLoadError as error:
        connection.sendall(lines.encode(lines.Unloadable(failed=error.failure)))
        return 1
    connection.sendall(lines.encode(ready))
    from workers.serving.host.conversation import Conversations

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        # Threads that read questions share the interpreter with the steps, and should not wait long for it.
        sys.setswitchinterval(SWITCH_SECONDS)
        _serve(Conversations(engine, inbox.put), inbox, connection)
    return 0


def _receive(connection: socket.socket, inbox: "queue.SimpleQueue[Any]") -> None:
    with connection.makefile("rb") as received:
        for line in received:
            inbox.put(line)
    inbox.put(None)


def _serve(conversations: Any, inbox: "queue.SimpleQueue[Any]", connection: socket.socket) -> None:
    """Take what comes between any two tokens, lines and questions that were read; wait when there is nothing to do."""
    while True:
        messages: list[lines.QuestionEvents] = []
        while not (conversations.busy and inbox.empty()):
            came = inbox.get()
            if came is None:
                return
            if isinstance(came, bytes):
                conversations.take(lines.to_host.validate_json(came))
            else:
                messages += conversations.admit(came)
            if inbox.empty():
                break
        if conversations.busy:
            messages += conversations.step()
        if messages:
            connection.sendall(b"".join(map(lines.encode, messages)))


if __name__ == "__main__":
    code = main(int(sys.argv[1]), Options(**json.loads(sys.argv[2])))
    # Nothing is left to save, and engines with threads of their own take seconds to end.
    sys.stdout.flush()
    os._exit(code)
