"""Becoming another user for good, and keeping one right of root's at most."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.embedded import as_user

NOBODY = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


def run(capability: str, *command: str) -> "subprocess.CompletedProcess[str]":
    program = [sys.executable, "-I", "-S", str(Path(as_user.__file__)), str(NOBODY), str(NOBODY), capability]
    return subprocess.run([*program, *command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("capability", "kept"), [("-", 0), ("1", 1 << 1), ("2", 1 << 2), ("40", 1 << 40)])
def test_the_command_has_this_right_of_roots_and_no_other(capability: str, kept: int) -> None:
    done = run(capability, "/bin/cat", "/proc/self/status")
    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines())
    assert {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == dict.fromkeys(
        ("CapInh", "CapPrm", "CapEff", "CapAmb"), kept
    ), done.stderr


def test_the_command_is_that_user_in_that_group_and_no_other() -> None:
    status = dict(line.split(":\t", 1) for line in run("-", "/bin/cat", "/proc/self/status").stdout.splitlines())
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(NOBODY)}
    assert status["Groups"].split() == []


def test_what_cannot_be_run_is_named() -> None:
    done = run("-", "/nowhere/postgres")
    assert done.returncode == 1
    assert "cannot run /nowhere/postgres: [Errno 2]" in done.stderr
