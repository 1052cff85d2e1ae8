"""The jail from outside: it proves itself before it is used, and what breaks is told and replaced."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.graders.settings import GraderSettings, JailLimits, JailTier
from tests.workers.graders import jails
from workers.graders import cgroup, confinement, jail
from workers.graders.jail import Jail, JailError, Outcome
from workers.graders.lanes import run_all

ONE = {"kind": "grade", "source": "def grade(s, i):\n    return 1\n", "sample": {}, "item": {}, "seconds": 20.0}


def reward(outcome: Outcome | JailError) -> Any:
    assert isinstance(outcome, Outcome), outcome
    return next(outcome.lines()).get("reward")


def test_a_jail_that_holds_passes(tier: JailTier) -> None:
    confinement.ensure_confined(jails.settings(tier))


def test_it_holds_where_the_environment_lies_behind_a_link(tier: JailTier, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(sys.prefix)
    code = (
        "from tests.workers.graders import jails; from workers.graders import confinement; "
        f"confinement.ensure_confined(jails.settings({tier!r}))"
    )
    python = tmp_path / "linked" / "bin" / "python"
    done = subprocess.run([python, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_holds_where_the_worker_makes_files_for_nobody_else(tier: JailTier) -> None:
    code = (
        "from tests.workers.graders import jails; from workers.graders import confinement; "
        f"confinement.ensure_confined(jails.settings({tier!r}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], umask=0o077, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def loosened(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Jails made from now on differ in ``changes`` from what they should be."""
    real = jail._config

    def config(*arguments: Any) -> dict[str, Any]:
        made = real(*arguments)
        return made | {key: change(made[key]) for key, change in changes.items()}

    monkeypatch.setattr(jail, "_config", config)
    confinement.ensure_confined.cache_clear()


@pytest.mark.parametrize(
    ("changes", "breach"),
    [
        ({"files": lambda files: [*files, "/etc/passwd"]}, "can read a file of this machine"),
        ({"limits": lambda limits: limits | {"processes": 64}}, "can start more processes than it may"),
        ({"limits": lambda limits: limits | {"memory_bytes": 2**31}}, "can use more memory than it may"),
        ({"limits": lambda limits: limits | {"disk_bytes": 2**24}}, "can fill more of the disk than it may"),
    ],
)
def test_a_jail_with_a_hole_is_refused(
    tier: JailTier, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], breach: str
) -> None:
    loosened(monkeypatch, **changes)
    with pytest.raises(JailError, match=breach):
        confinement.ensure_confined(jails.settings(tier))


def test_a_jail_that_runs_nothing_is_refused(tier: JailTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "_HARMLESS", "def grade(s, i):\n    return 1 / 0\n")
    confinement.ensure_confined.cache_clear()
    with pytest.raises(JailError, match="does not run a harmless grader"):
        confinement.ensure_confined(jails.settings(tier))


def test_a_jail_that_does_not_start_says_why(tier: JailTier, monkeypatch: pytest.MonkeyPatch) -> None:
    loosened(monkeypatch, files=lambda files: [*files, "/no/such/folder"])
    with pytest.raises(JailError, match="no/such/folder"):
        Jail(jails.settings(tier))


def test_without_bwrap_the_tier_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(JailError, match="bubblewrap is not installed"):
        Jail(GraderSettings(jail="bubblewrap"))


def test_a_jail_that_is_killed_is_replaced(tier: JailTier, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    real = Jail.run

    def run(self: Jail, program: jail.Program) -> Outcome:
        if program["item"] == "kill" and not killed:
            killed.append(self.pid)
            os.killpg(self.pid, signal.SIGKILL)
        return real(self, program)

    monkeypatch.setattr(Jail, "run", run)
    programs = [ONE, ONE | {"item": "kill"}, ONE]
    outcomes = run_all(programs, jails.settings(tier, jail_lanes=1))
    assert [isinstance(each, JailError) for each in outcomes] == [False, True, False]
    assert reward(outcomes[2]) == 1.0


def test_jails_that_never_start_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def refuse(*_: Any) -> None:
        started.append(1)
        raise JailError("no")

    monkeypatch.setattr(Jail, "__init__", refuse)
    outcomes = run_all([ONE] * 10, GraderSettings(jail="unshare", jail_lanes=1))
    assert all(isinstance(each, JailError) for each in outcomes)
    assert len(started) == 3


def test_programs_are_spread_over_the_lanes_in_order(tier: JailTier) -> None:
    source = "def grade(s, i):\n    return i\n"
    outcomes = run_all([ONE | {"source": source, "item": n} for n in range(9)], jails.settings(tier, jail_lanes=3))
    assert [reward(each) for each in outcomes] == list(range(9))


def test_no_programs_need_no_jail() -> None:
    assert run_all([], GraderSettings(jail="bubblewrap")) == []


def test_a_jail_closes_while_a_program_runs(tier: JailTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jail, "KILL_SECONDS", -19.5)
    with Jail(jails.settings(tier)) as started, pytest.raises(JailError, match="exit code"):
        started.run(ONE | {"source": "import time\ndef grade(s, i):\n    time.sleep(600)\n"})


def test_a_control_group_is_given_the_limits_and_removed(tmp_path: Path) -> None:
    group = cgroup.make(tmp_path, JailLimits(memory_bytes=2**30, disk_bytes=2**20, processes=5))
    assert group is not None
    assert (group / "memory.max").read_text() == str(2**30 + 2**20)
    assert (group / "pids.max").read_text() == "13"
    for file in group.iterdir():
        file.unlink()  # the kernel's own vanish with the folder
    cgroup.remove(group)
    assert not group.exists()


def test_a_control_group_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JailError, match="control group"):
        Jail(GraderSettings(jail="unshare", jail_cgroup=tmp_path / "missing"))
