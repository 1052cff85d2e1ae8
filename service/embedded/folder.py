"""The data folder of an embedded stack: what lies where, its secrets, and the lock that keeps a second stack out."""

import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from service.core import storage
from service.embedded.processes import StartError, write_json

LOCK_SECONDS = 1.0
"""Patience with those who only look whether the folder is locked, and for a moment lock it by that."""
LONGEST_SOCKET_PATH = 100
"""Unix allows 103 bytes (macOS) or 107 (Linux) for the path of a socket."""
_PLAIN = re.compile(r"[A-Za-z0-9/._-]+")
"""Paths that are the same in a URL, in PostgreSQL's lists of folders and for every client that reads either."""


@dataclass
class Folder:
    """Paths beneath the data folder ``root``. Uploaded files and jobs are beside them, put there by the service."""

    root: Path
    _lock: TextIO | None = field(default=None, repr=False)
    _sockets_elsewhere: Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.root = self.root.expanduser().absolute()

    @property
    def cluster(self) -> Path:
        return self.root / "postgres"

    @property
    def redis(self) -> Path:
        return self.root / "redis"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def records(self) -> Path:
        """The processes that run, kept so that they can be ended when who started them is gone."""
        return self.root / "processes.json"

    @property
    def state(self) -> Path:
        """What runs here, for whoever wants to talk to it or end it."""
        return self.root / "stack.json"

    @property
    def first_key(self) -> Path:
        return self.root / "first_key"

    def prepare(self) -> None:
        """Make the folders, private to their owner, and make what is there private too.

        The root itself keeps its mode when somebody else made it: others may have to pass through it. So does what is
        in ``models``, which is closed: weights there may be hard links to those of others.
        """
        folders = [self.logs, *(self.root / name for name in storage.FOLDERS)]
        for path in (self.root, self.models, *folders):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.models.is_symlink():
            self.models.chmod(0o700)
        files = [self.root / "lock", self.root / "secrets.json", self.records, self.state, self.first_key]
        storage.take_rights([*folders, self.redis, *files])

    def lock(self) -> None:
        """Claim the folder until this process ends. Raises ``StartError`` when another process holds it."""
        file = (self.root / "lock").open("a+")
        deadline = time.monotonic() + LOCK_SECONDS
        while not _locked(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                file.close()
                raise StartError(
                    f"{self.root} is in use by process {self.holder()}. Stop it with "
                    f"'troll down --data-dir {self.root}', or choose another folder with --data-dir."
                )
            time.sleep(0.02)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._lock = file

    def holder(self) -> int | None:
        """The process that has locked the folder."""
        if not (self.root / "lock").exists():
            return None
        with (self.root / "lock").open() as file:
            return None if _locked(file, fcntl.LOCK_SH) else int(file.read() or 0) or None

    def unlock(self) -> None:
        if self._sockets_elsewhere is not None:
            shutil.rmtree(self._sockets_elsewhere, ignore_errors=True)
            self._sockets_elsewhere = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def sockets(self) -> Path:
        """A private folder whose path is short and plain enough for Unix sockets; elsewhere, it lasts until ``unlock``.

        Raises ``StartError`` where there is none.
        """
        folder = self.root / "run"
        if _suits_sockets(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            return folder
        for base in (tempfile.gettempdir(), "/tmp"):
            if _suits_sockets(Path(base, "troll-12345678")):
                self._sockets_elsewhere = Path(tempfile.mkdtemp(prefix="troll-", dir=base))
                return self._sockets_elsewhere
        raise StartError(f"The paths of {folder} and TMPDIR are too long for Unix sockets, or hold unusual characters.")

    def pepper(self) -> str:
        """The secret under which API keys are hashed: the operator's, else one made on first use and kept."""
        return os.environ.get("TROLL_KEY_PEPPER") or self._secret("key_pepper")

    def password(self, login: str) -> str:
        """The password of a login of PostgreSQL, made on first use and kept. It needs no quoting anywhere."""
        return self._secret(f"password_of_{login}")

    def _secret(self, name: str) -> str:
        path = self.root / "secrets.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        if name not in kept:
            kept[name] = secrets.token_urlsafe(48)
            write_json(path, kept)
        return str(kept[name])

    def read_state(self) -> dict[str, Any] | None:
        """What ``stack.json`` says, or None when no stack is up here."""
        if self.holder() is None or not self.state.exists():
            return None
        return dict(json.loads(self.state.read_text()))


def _suits_sockets(folder: Path) -> bool:
    length = len(os.fsencode(folder)) + len("/postgres/.s.PGSQL.5432")
    return length <= LONGEST_SOCKET_PATH and _PLAIN.fullmatch(str(folder)) is not None


def _locked(file: TextIO, kind: int) -> bool:
    """Whether the lock could be taken; it is kept until ``file`` is closed."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
