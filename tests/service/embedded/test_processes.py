"""Child processes: started, recorded, restarted, ended. On real processes."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from service.embedded import processes
from service.embedded.processes import Children, Program, StartError, StoppedError, end, exited, find, leftovers
from tests.disks import empty, fill, small_disk

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)


def python(name: str, code: str, tier: int = 0, grace: float = 5.0) -> Program:
    return Program(name, [sys.executable, "-c", code], tier=tier, grace=grace)


def is_up(log: Path) -> bool:
    return "up" in log.read_text()


def sleeper(name: str, tier: int = 0) -> Program:
    return python(name, "import time; time.sleep(60)", tier)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    (tmp_path / "logs").mkdir()
    children = Children(tmp_path / "processes.json", tmp_path / "logs")
    yield children
    children.hurry.set()
    children.stop()


def test_a_child_gets_exactly_its_environment_and_its_own_log(children: Children) -> None:
    child = children.start(python("env", "import os; print(sorted(os.environ))"), {"ONLY": "this"})
    children.finish(child, 10)
    assert "ONLY" in children.log_path(child).read_text()
    assert "PATH" not in children.log_path(child).read_text()


def test_a_child_goes_behind_by_as_much_as_it_says(children: Children) -> None:
    own = psutil.Process().nice()
    low, plain = Program("low", ["sleep", "60"], tier=0, nice=4), Program("plain", ["sleep", "60"], tier=0)
    environment = {"PATH": os.environ["PATH"]}
    assert children.start(low, environment).process.nice() == min(own + 4, processes.LEAST_PRIORITY)
    assert children.start(plain, environment).process.nice() == own


def test_a_child_that_fails_is_reported_with_the_end_of_its_log(children: Children) -> None:
    child = children.start(python("broken", "import sys; sys.exit('no disk')"), {})
    with pytest.raises(StartError, match=r"broken failed \(code 1\)[\s\S]*no disk"):
        children.finish(child, 10)


def test_waiting_for_readiness_notices_a_child_that_exits(children: Children) -> None:
    child = children.start(python("gone", "print('bye')"), {})
    with pytest.raises(StartError, match=r"gone stopped while starting[\s\S]*bye"):
        children.wait(child, lambda: False, 10)


def test_waiting_ends_when_asked_to_stop(children: Children) -> None:
    child = children.start(sleeper("slow"), {})
    children.stopping.set()
    with pytest.raises(StoppedError):
        children.wait(child, lambda: False, 10)


def test_a_crashed_child_is_started_again_after_a_pause(children: Children) -> None:
    child = children.start(sleeper("worker"), {})
    first = child.process.pid
    child.process.kill()
    until(lambda: exited(child.process))
    children.restart_crashed()
    assert child.process.pid == first, "it was started again without a pause"
    until(lambda: children.restart_crashed() or child.process.pid != first)  # type: ignore[func-returns-value]
    assert not exited(child.process)
    assert leftovers(children.records)[0]["pid"] == child.process.pid


def test_pauses_double_with_every_crash(children: Children) -> None:
    child = children.start(python("crashing", "raise SystemExit(1)"), {})
    until(lambda: exited(child.process))
    children.restart_crashed()
    until(lambda: children.restart_crashed() or child.crashes == 2)  # type: ignore[func-returns-value]
    assert child.restart_at is not None
    assert child.restart_at - time.monotonic() > 1.5


def test_a_full_disk_ends_nothing_and_is_made_up_for(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 64 * 1024) as small:
        (small / "logs").mkdir()
        children = Children(small / "processes.json", small / "logs")
        child = children.start(sleeper("worker"), {})
        fill(small)
        try:
            first = child.process.pid
            child.process.kill()
            until(lambda: children.restart_crashed() or child.process.pid != first)  # type: ignore[func-returns-value]
            assert leftovers(children.records) == [], "it cannot have been written down"
            empty(small)
            until(lambda: children.restart_crashed() or leftovers(children.records) != [])  # type: ignore[func-returns-value]
            assert leftovers(children.records)[0]["pid"] == child.process.pid
        finally:
            children.hurry.set()
            children.stop()


def test_a_child_that_cannot_be_started_again_is_tried_again(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = children.start(sleeper("worker"), {})
    first = child.process.pid
    logs, children.logs = children.logs, children.logs / "gone"
    monkeypatch.setattr(processes, "LAST_BACKOFF_SECONDS", 0.1)
    child.process.kill()
    until(lambda: exited(child.process))
    for _ in range(50):
        children.restart_crashed()
        time.sleep(0.02)
    assert child.process.pid == first
    children.logs = logs
    until(lambda: children.restart_crashed() or child.process.pid != first)  # type: ignore[func-returns-value]


def test_higher_tiers_are_ended_before_lower_ones(children: Children, tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "def note(*_):\n"
        "    with pathlib.Path(sys.argv[1]).open('a') as file: file.write(sys.argv[2])\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, note); print('up', flush=True); time.sleep(60)"
    )
    for name, tier in (("a", 0), ("b", 2), ("c", 1)):
        child = children.start(Program(name, [sys.executable, "-c", code, tmp_path / "ended", name], tier), {})
        log = children.log_path(child)
        children.wait(child, partial(is_up, log), 10)
    children.stop()
    assert (tmp_path / "ended").read_text() == "bca"


def test_a_child_that_ignores_its_signal_is_killed_after_its_grace(children: Children) -> None:
    child = children.start(python("stubborn", STUBBORN, grace=0.2), {})
    children.wait(child, lambda: "deaf" in children.log_path(child).read_text(), 10)
    children.stop()
    assert child.process.wait() == -signal.SIGKILL


def test_leftovers_of_a_killed_parent_are_found_and_ended(children: Children, tmp_path: Path) -> None:
    parent = (
        "import os, pathlib, signal, sys\n"
        "from service.embedded.processes import Children, Program\n"
        "children = Children(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "children.start(Program('orphan', ['sleep', '60'], tier=0), {'PATH': os.environ['PATH']})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    records = tmp_path / "others.json"
    command: list[str | Path] = [sys.executable, "-c", parent, records, children.logs]
    children.start(Program("parent", command, tier=0), {**os.environ, "PYTHONPATH": str(Path.cwd())})
    until(lambda: len(leftovers(records)) == 1)
    [entry] = leftovers(records)
    end([entry])
    assert leftovers(records) == []


def test_a_stranger_with_a_recorded_pid_is_left_alone() -> None:
    me = psutil.Process()
    assert find(me.pid, me.create_time()) == me
    assert find(me.pid, me.create_time() - 60) is None
