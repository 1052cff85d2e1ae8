"""A jail for code of strangers, seen from outside: start it, give it programs one by one, believe nothing it says.

A ``Jail`` is one chain of processes: ``workers.sandbox.launcher``, then, as process 1 of its own namespaces, the
warden, then one process per program in namespaces of *its* own. Killing any link ends all that follow. ``lanes``
spreads programs over several jails; ``confinement`` proves once per process that a jail of this kind holds.
"""

import json
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from service.contracts import strict_json
from service.graders.settings import GraderSettings
from workers.graders import cgroup
from workers.sandbox.launcher import BOOT
from workers.sandbox.warden import SCRATCH

Program = dict[str, Any]
"""``kind``, ``source``, ``seconds`` and what the kind needs; see ``workers.sandbox.programs``."""

ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 30.0
KILL_SECONDS = 10.0
"""How much longer than its time a program may take to be gone before the whole jail is killed."""
CLOSE_SECONDS = 5.0
MAX_LINE = 64 * 1024**2
LIBRARIES = (
    *("numpy", "scipy", "sympy", "pandas", "rapidfuzz", "sklearn", "nltk", "regex"),
    *("rouge_score", "deepdiff", "sqlparse", "jsonschema"),
)
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": SCRATCH,
    "TMPDIR": SCRATCH,
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NLTK_DATA": f"{sys.prefix}/lib/nltk_data",
}


class JailError(Exception):
    """The jail itself failed: it does not start, it died, or its time for the batch is spent."""


@dataclass(frozen=True)
class Outcome:
    """How one program ended. ``report`` and ``stdout`` are claims of code that is not trusted.

    ``stopped`` says that it was killed, for its time or its output; else ``exit`` is its exit code, negative for a
    signal.
    """

    stopped: Literal["time", "output"] | None
    exit: int
    report: str
    stdout: str
    seconds: float
    cpu_seconds: float

    def lines(self) -> Iterator[dict[str, Any]]:
        """The report's lines as far as they are JSON objects."""
        for line in self.report.split("\n"):
            try:
                value = strict_json.loads(line)
            except strict_json.InvalidJSONError:
                return
            if not isinstance(value, dict):
                return
            yield value

    def why(self, seconds: float) -> str:
        """In words, for an outcome without a report."""
        if self.stopped == "time":
            return f"it was stopped after {seconds:g} seconds"
        if self.stopped == "output":
            return "it wrote too much"
        if self.exit < 0:
            names = {each.value: each.name for each in signal.Signals}
            return f"it was ended by {names.get(-self.exit, f'signal {-self.exit}')}"
        return f"it ended with exit code {self.exit} and no result"


class Jail:
    """One jail. It belongs to the thread that starts it, and ends with that thread at the latest."""

    def __init__(self, settings: GraderSettings, preload: Sequence[str] = ()) -> None:
        """Raises ``JailError`` when it does not start."""
        try:
            self._cgroup = cgroup.make(settings.jail_cgroup, settings.jail_limits)
        except OSError as error:
            raise JailError(f"the control group cannot be made: {error}") from None
        config = _config(settings, preload, self._cgroup)
        code = BOOT.format(entry="main")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, str(ROOT), strict_json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        try:
            if self._exchange(b"", START_SECONDS) != {"ready": True}:
                raise JailError("the jail answered out of turn")
        except JailError:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The launcher's process id."""
        return self._process.pid

    def run(self, program: Program) -> Outcome:
        """Run one program. Raises ``JailError`` when the jail fails; it is of no use afterwards."""
        line = _encode(program)
        answer = self._exchange(line, program["seconds"] + KILL_SECONDS)
        if answer.pop("setup", None) != "done":
            raise JailError(f"the jail did not close: {str(answer.get('setup'))[:300]}")
        try:
            return Outcome(**answer)
        except TypeError:
            raise JailError("the jail sent an answer that cannot be read") from None

    def close(self) -> None:
        """End everything in the jail; when this returns, nothing of it is left."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            # The end of its input ends the warden, and the kernel all that is in the jail before the launcher returns.
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        if self._cgroup is not None:
            cgroup.remove(self._cgroup)

    def __enter__(self) -> "Jail":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(self, line: bytes, seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(seconds, self._kill)
        timer.start()
        try:
            if line:
                self._process.stdin.write(line)
                self._process.stdin.flush()
            answer = self._process.stdout.readline(MAX_LINE)
        except BrokenPipeError:
            answer = b""
        finally:
            timer.cancel()
        try:
            value = strict_json.loads(answer.decode())
        except (strict_json.InvalidJSONError, UnicodeDecodeError):
            raise JailError(self._epitaph()) from None
        if not isinstance(value, dict):
            raise JailError("the jail sent an answer that cannot be read")
        return value

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _epitaph(self) -> str:
        assert self._process.stderr is not None
        self._kill()
        code = self._process.wait()
        said = self._process.stderr.read(1 << 16).decode(errors="replace").strip().split("\n")[-1]
        return f"the jail ended with exit code {code}: {said[:300] or 'it said nothing'}"


def libraries_of(source: str) -> list[str]:
    """Which of ``LIBRARIES`` the source imports: loaded once per jail, they cost nothing in each program."""
    imported = set(re.findall(r"^[ \t]*(?:import|from)[ \t]+(\w+)", source, re.MULTILINE))
    return [name for name in LIBRARIES if name in imported]


def _encode(program: Program) -> bytes:
    # ASCII with escapes: a lone surrogate in an answer is then no trouble, and a line ends where it ends.
    return json.dumps(program).encode() + b"\n"


def _config(settings: GraderSettings, preload: Sequence[str], group: Path | None) -> dict[str, Any]:
    files, links = _python_files()
    return {
        "tier": settings.jail,
        "bwrap": _bubblewrap() if settings.jail == "bubblewrap" else None,
        "files": files,
        "links": links,
        "code": [str(ROOT / "workers/__init__.py"), str(ROOT / "workers/sandbox")],
        "packages": packages(),
        "environment": sorted(ENVIRONMENT),
        "preload": list(preload),
        "limits": asdict(settings.jail_limits),
        "cgroup": None if group is None else str(group),
        "sample_user": None,
    }


def _bubblewrap() -> str:
    path = shutil.which("bwrap")
    if path is None:
        raise JailError("bubblewrap is not installed: there is no 'bwrap' on the PATH")
    return path


def packages() -> list[str]:
    """The folders of installed libraries, for a Python that is started without looking for them."""
    return list(dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]))


def _python_files() -> tuple[list[str], list[tuple[str, str]]]:
    """What a jail shows of this machine, read-only: Python, its libraries, the C libraries; and links to make."""
    interpreter = Path(sys.executable).resolve()
    folders = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/usr/share/zoneinfo"]
    folders += [
        f"{prefix}/{name}" for prefix in (sys.base_prefix, sys.prefix) for name in ("lib", "lib64", "pyvenv.cfg")
    ]
    paths = [Path(folder) for folder in [*folders, "/etc/ld.so.cache", str(interpreter)]]
    files = [str(path) for path in paths if path.exists() and not path.is_symlink()]
    links = [(str(path), str(path.readlink())) for path in paths if path.is_symlink()]
    if Path(sys.executable) != interpreter:
        links.append((sys.executable, str(interpreter)))
    if not any(path.startswith("/tmp/") for path in [*files, *(link for link, _ in links), str(ROOT)]):
        links.append(("/tmp", SCRATCH))
    return list(dict.fromkeys(files)), list(dict.fromkeys(links))
