"""A control group around one jail, where the operator gives a place: the sum of its memory, the number of processes.

Without one, limits hold for each process and a jail may use as many times the memory as it may have processes.
"""

import contextlib
import os
import time
import uuid
from pathlib import Path

from service.graders.settings import JailLimits


def make(parent: Path | None, limits: JailLimits) -> Path | None:
    """A new group beneath ``parent``, with its limits set. Raises ``OSError`` when ``parent`` does not allow it."""
    if parent is None:
        return None
    group = parent / f"jail-{uuid.uuid4().hex}"
    group.mkdir()
    (group / "memory.max").write_text(str(limits.memory_bytes + limits.disk_bytes))
    (group / "memory.swap.max").write_text("0")
    # The warden and its parents are processes as well.
    (group / "pids.max").write_text(str(limits.processes + 8))
    return group


def remove(group: Path) -> None:
    """Remove the group of a jail that was killed."""
    for _ in range(50):
        with contextlib.suppress(OSError):
            os.rmdir(group)  # noqa: PTH106
        if not group.exists():
            return
        time.sleep(0.02)
