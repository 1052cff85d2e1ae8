"""The memory of this machine's GPUs, asked of torch in a process of its own: the supervisor does not import it."""

import logging
import subprocess
import sys
from functools import cache
from pathlib import Path

from workers.processes import scrubbed_environment

DEVICES = ("/dev/nvidiactl", "/dev/kfd")
"""One of them is there where a GPU is that torch could use."""
ASK = (
    "import torch\n"
    "for n in range(torch.cuda.device_count()): print('GPU', torch.cuda.get_device_properties(n).total_memory)"
)
ANSWER_SECONDS = 120.0

log = logging.getLogger(__name__)


@cache
def memory(processes: int) -> int:
    """Bytes of the GPUs that ``processes`` have, one each: as many times those of the smallest. 0 without GPUs."""
    if not any(Path(device).exists() for device in DEVICES):
        return 0
    command = [sys.executable, "-c", ASK]
    try:
        done = subprocess.run(
            command, env=scrubbed_environment(), capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the memory of the GPUs is not known, and jobs are taken whatever they need: %s", error)
        return 0
    return of_some(done.stdout, processes)


def of_some(told: str, processes: int) -> int:
    """The same from what the process told."""
    sizes = [int(line.removeprefix("GPU ")) for line in told.splitlines() if line.startswith("GPU ")]
    return processes * min(sizes[:processes]) if sizes else 0
