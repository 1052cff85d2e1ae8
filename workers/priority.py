"""The priority of a process that leads a session of its own."""

import contextlib
import os
from pathlib import Path


def keep() -> None:
    """Keep the priority of whoever started this process.

    Linux may share processors between sessions first, and a new session begins with the priority of any other.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(os.getpriority(os.PRIO_PROCESS, 0)))
