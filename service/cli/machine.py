"""What ``troll doctor`` sees of this machine: Python, memory, disk, files, and the folders of data and models."""

import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from service.cli.output import shown_bytes
from service.contracts.finding import Finding
from service.core.connections import most_connections
from service.models.base import survey

MEMORY = Path("/dev/shm")
OLDEST_PYTHON = (3, 11)
FEW_FILES = 4096
SMALL_MEMORY, FULL_DISK, LITTLE_DISK = 10**9, 10**9, 2 * 10**10
"""Bytes: of shared memory, and free ones of the data folder."""


def python() -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.release()}, {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON or sys.platform != "linux":
        remedy = "Use Linux and Python 3.11 or newer."
        yield Finding(what="Python", state="fails", found=found, remedy=remedy)
    else:
        yield Finding(what="Python", state="holds", found=found)


def open_files() -> Iterator[Finding]:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{most:,} a process; the API takes {most_connections():,} connections"
    few = most < FEW_FILES
    remedy = f"Raise it, as by 'ulimit -n {16 * FEW_FILES}' or LimitNOFILE of systemd." if few else ""
    yield Finding(what="open files", state="warning" if few else "holds", found=found, remedy=remedy)


def shared_memory() -> Iterator[Finding]:
    if not MEMORY.is_dir():
        remedy = "Mount a tmpfs there: processes that share a model need it."
        yield Finding(what="shared memory", state="fails", found=f"no {MEMORY}", remedy=remedy)
        return
    usage = shutil.disk_usage(MEMORY)
    small = usage.free < SMALL_MEMORY
    remedy = (
        "Give containers more, as with shm_size: 2gb. vLLM and several processes of a job need it." if small else ""
    )
    found = f"{shown_bytes(usage.free)} free of {shown_bytes(usage.total)}"
    yield Finding(what="shared memory", state="warning" if small else "holds", found=found, remedy=remedy)


def data_folder(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        remedy = "Make it, owned by the user that the service runs as, or name another with TROLL_DATA_DIR."
        why = "cannot be written" if folder.is_dir() else "is not there"
        yield Finding(what="data folder", state="fails", found=f"{folder} {why}", remedy=remedy)
        return
    free = shutil.disk_usage(folder).free
    state: Literal["holds", "warning", "fails"] = "holds"
    if free < LITTLE_DISK:
        state = "fails" if free < FULL_DISK else "warning"
    remedy = "Checkpoints and results need room: free some, or keep fewer (TROLL_CHECKPOINTS_KEPT)."
    found = f"{folder}, {shown_bytes(free)} free"
    yield Finding(what="data folder", state=state, found=found, remedy="" if state == "holds" else remedy)


def models_folder(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        remedy = "Put base models there, or name another folder with TROLL_MODELS_DIR."
        yield Finding(what="models", state="fails", found=f"{folder} is not there", remedy=remedy)
        return
    offered, broken = survey(folder)
    for each in broken:
        remedy = "Mend it or move it away: it is not offered."
        yield Finding(what=f"model {each.id}", state="fails", found=each.reason, remedy=remedy)
    if not offered:
        remedy = "Put a Hugging Face model folder with safetensors weights at NAME or OWNER/NAME beneath it."
        yield Finding(what="models", state="warning", found=f"none in {folder}", remedy=remedy)
    for model in offered:
        unread = [path.name for path in model.path.iterdir() if path.is_file() and not os.access(path, os.R_OK)]
        if unread:
            found, remedy = f"cannot be read: {', '.join(sorted(unread))}", "Let the service's user read it."
            yield Finding(what=f"model {model.id}", state="fails", found=found, remedy=remedy)
        else:
            yield Finding(what=f"model {model.id}", state="holds", found="can be read")
