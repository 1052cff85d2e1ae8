"""What tests of the jail share: which tiers this machine has, and settings with limits that tests reach quickly."""

import shutil
import subprocess
from dataclasses import replace

import pytest

from service.graders.settings import GraderSettings, JailLimits, JailTier

MEGABYTE = 1024**2
LIMITS = JailLimits(
    seconds=30.0,
    memory_bytes=384 * MEGABYTE,
    disk_bytes=4 * MEGABYTE,
    processes=8,
    open_files=64,
    output_bytes=65_536,
)


def _kernel_allows_namespaces() -> bool:
    """Asked of util-linux and not of our own code, so that a broken jail fails its tests instead of skipping them."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--net", "--fork", "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


NAMESPACES = _kernel_allows_namespaces()
TIERS: list[JailTier] = ["unshare", *(["bubblewrap"] if shutil.which("bwrap") else [])]  # type: ignore[list-item]


def settings(tier: JailTier, *, seconds: float = LIMITS.seconds, **fields: object) -> GraderSettings:
    limits = replace(LIMITS, seconds=seconds)
    return GraderSettings(jail=tier, jail_limits=limits, **fields)  # type: ignore[arg-type]


def first_tier() -> JailTier:
    """The tier that needs nothing but the kernel."""
    if not NAMESPACES:
        pytest.skip("this kernel allows no user namespaces, so no jail can be made here")
    return TIERS[0]
