"""How much memory there is and what a model takes, told without torch."""

import os
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def machine() -> int:
    """Bytes that this machine, or the container we are in, has."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return min(physical, int(limit)) if limit.isdigit() else physical


def weights(folder: Path) -> int:
    """Bytes of a model folder's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())


def resident(pid: int) -> int:
    """Bytes that a process has in memory; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
