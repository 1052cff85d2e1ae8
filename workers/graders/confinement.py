"""The proof, once per process, that a jail holds: code that tries to get out of it, and fails.

A jail that cannot be proven is not used. Every probe is a grader that returns 1.0 when it got what it wanted; one
more, which wants nothing, must return its number, so that a jail in which nothing runs at all does not pass.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from service.graders.settings import GraderSettings
from workers.graders.jail import ENVIRONMENT, ROOT, Jail, JailError, Outcome, Program

_MEGABYTE = 1024**2
_SECONDS = 10.0
_HARMLESS = "def grade(sample, item):\n    return 0.25\n"
_OUTLIVES = """
import os, signal, time
def grade(sample, item):
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    os.fork()
    os.setsid() if os.getpid() != 1 else None
    time.sleep(600)
"""
_PROBES = {
    "open a socket": """
import socket
def attempt():
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
        try:
            socket.socket(family, socket.SOCK_STREAM if family != socket.AF_NETLINK else socket.SOCK_RAW)
            return True
        except OSError:
            pass
    return False
""",
    "read a file of this machine": """
def attempt():
    for path in ITEM["files"]:
        try:
            open(path, "rb").read(1)
            return True
        except OSError:
            pass
    return False
""",
    "read the environment of the worker": """
import os
def attempt():
    found = any(name not in ITEM["environment"] for name in os.environ)
    for process in ("self", "1", str(os.getppid()), str(ITEM["worker"])):
        try:
            found = found or bool(open(f"/proc/{process}/environ", "rb").read(1))
        except OSError:
            pass
    return found
""",
    "see another process": """
import os
def attempt():
    if os.getpid() != 1 or os.getppid() != 0:
        return True
    for process in [*range(2, 5000), ITEM["worker"]]:
        try:
            os.kill(process, 0)
            return True
        except ProcessLookupError:
            pass
        except OSError:
            return True
    return False
""",
    "write outside its own folder": """
import os
def attempt():
    for folder in ("/", "/dev", "/etc", "/usr", "/usr/lib", "/lib", "/scratch/..", *ITEM["folders"]):
        if os.path.realpath(folder) == "/scratch":
            continue
        try:
            open(os.path.join(folder, "escaped"), "w").close()
            return True
        except OSError:
            pass
    return False
""",
    "start more processes than it may": """
import os, time
def attempt():
    for count in range(ITEM["processes"] + 8):
        try:
            if os.fork() == 0:
                time.sleep(600)
        except OSError:
            return False
    return True
""",
    "use more memory than it may": """
def attempt():
    try:
        return len(bytearray(ITEM["memory_bytes"])) > 0
    except MemoryError:
        return False
""",
    "fill more of the disk than it may": """
def attempt():
    try:
        with open("/scratch/full", "wb") as first, open("/scratch/fuller", "wb") as second:
            for file in (first, second):
                for _ in range(ITEM["disk_bytes"] // 1000000):
                    file.write(bytes(1000000))
        return True
    except OSError:
        return False
""",
    "gain rights": """
import ctypes, os
def attempt():
    libc = ctypes.CDLL(None)
    calls = (libc.unshare(0x10000000), libc.unshare(0x20000), libc.mount(b"none", b"/scratch", b"tmpfs", 0, None))
    return 0 in calls or libc.ptrace(16, 1, None, None) == 0 or libc.chroot(b"/scratch") == 0
""",
}


@cache
def ensure_confined(settings: GraderSettings) -> None:
    """Raise ``JailError`` unless code in a jail of ``settings`` fails to do what it must not. The answer is kept."""
    limits = replace(settings.jail_limits, memory_bytes=512 * _MEGABYTE, disk_bytes=4 * _MEGABYTE, processes=8)
    breaches = list(_breaches(replace(settings, jail_limits=limits)))
    if breaches:
        raise JailError(f"the '{settings.jail}' jail does not hold on this machine: code in it {'; '.join(breaches)}")


def _breaches(settings: GraderSettings) -> Iterator[str]:
    with Jail(settings) as jail:
        if _reward(jail.run(_program(_HARMLESS))) != 0.25:
            raise JailError(f"the '{settings.jail}' jail does not run a harmless grader")
        for what, source in _PROBES.items():
            if _reward(jail.run(_program(_AS_GRADER + source, _item(settings)))) != 0.0:
                yield f"can {what}"
        if jail.run(_program(_OUTLIVES, seconds=0.5)).stopped != "time":
            yield "can outlive its time"


_AS_GRADER = """
def grade(sample, item):
    global ITEM
    ITEM = item
    return float(attempt())
"""


def _program(source: str, item: object = None, seconds: float = _SECONDS) -> Program:
    return {"kind": "grade", "source": source, "sample": {}, "item": item, "seconds": seconds}


def _item(settings: GraderSettings) -> dict[str, object]:
    limits = settings.jail_limits
    here = [str(path) for path in (Path.home(), ROOT, Path.cwd())]
    return {
        "files": ["/etc/shadow", "/etc/passwd", "/proc/1/cmdline", "/sys/kernel/notes", str(ROOT / "pyproject.toml")],
        "folders": here,
        "environment": sorted(ENVIRONMENT),
        "worker": os.getpid(),
        "processes": limits.processes,
        "memory_bytes": limits.memory_bytes,
        "disk_bytes": limits.disk_bytes,
    }


def _reward(outcome: Outcome) -> float | None:
    line = next(outcome.lines(), {})
    reward = line.get("reward")
    return reward if isinstance(reward, float) else None
