"""What every process begins with that a worker starts in a session of its own."""

import contextlib
import os
from pathlib import Path

ENVIRONMENT = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CC")
ENVIRONMENT_PREFIXES = (
    "LC_",
    "OMP_",
    "MKL_",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "TORCH_",
    "TORCHINDUCTOR_",
    "PYTORCH_",
    "TRITON_",
    "VLLM_",
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def scrubbed_environment() -> dict[str, str]:
    """The parent's environment without anything secret: the child gets no database, no Redis and no keys."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIXES)
    }
    return kept | OFFLINE


def keep_priority() -> None:
    """Keep the priority of whoever started this process.

    Linux may share processors between sessions first, and a new session begins with the priority of any other.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(os.getpriority(os.PRIO_PROCESS, 0)))
