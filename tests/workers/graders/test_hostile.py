"""Hostile graders: none gets what it wants, and the jail goes on grading after each of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.graders.settings import JailTier
from tests.workers.graders import jails
from tests.workers.graders.hostile import AS_GRADER, CONTROLLED, ENDINGS, UNCONTROLLED
from workers.graders.jail import Jail, Outcome

HARMLESS = "def grade(sample, item):\n    return 0.5\n"


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    other = tmp_path_factory.mktemp("other-job") / "rows.jsonl"
    other.write_text("a secret of another job")
    return {"other_job": str(other), "worker": os.getpid(), "user": 65534}


def run(jail: Jail, source: str, item: object = None, seconds: float = 20.0) -> Outcome:
    return jail.run({"kind": "grade", "source": source, "sample": {}, "item": item, "seconds": seconds})


def only_line(outcome: Outcome) -> dict[str, Any]:
    lines = list(outcome.lines())
    assert len(lines) == 1, outcome
    return lines[0]


def assert_works(jail: Jail) -> None:
    assert only_line(run(jail, HARMLESS)) == {"reward": 0.5}


@pytest.mark.parametrize("name", CONTROLLED | UNCONTROLLED)
def test_no_attempt_succeeds(jail: Jail, item: dict[str, Any], name: str) -> None:
    source = (CONTROLLED | UNCONTROLLED)[name]
    # An attempt that fails for a mistake of its own reports an error and not the reward of failure.
    assert only_line(run(jail, AS_GRADER + source, item)) == {"reward": 0.0}
    assert_works(jail)


@pytest.mark.parametrize("name", CONTROLLED)
def test_outside_a_jail_the_attempt_succeeds(item: dict[str, Any], name: str, tmp_path: Path) -> None:
    code = f"import json, sys\nITEM = json.loads(sys.argv[1])\n{CONTROLLED[name]}\nprint(attempt())"
    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(item)], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert ran.stdout.strip() == "True", ran


@pytest.mark.parametrize("name", ENDINGS)
def test_bad_endings_are_told_and_survived(jail: Jail, name: str) -> None:
    expected, source = ENDINGS[name]
    outcome = run(jail, AS_GRADER + source, seconds=0.7 if expected == "time" else 20.0)
    assert ending(outcome) == expected, outcome
    assert_works(jail)


def ending(outcome: Outcome) -> str:
    if outcome.stopped is not None:
        return outcome.stopped
    if outcome.exit < 0:
        return "signal"
    line = next(outcome.lines(), None)
    if line is None:
        return "exit"
    return "error" if "error" in line else "reward"


def test_nothing_outlives_its_time(jail: Jail) -> None:
    source = """
import os, signal, time
def grade(sample, item):
    for _ in range(4):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
    time.sleep(600)
"""
    before = members(jail)
    assert run(jail, source, seconds=0.5).stopped == "time"
    assert members(jail) == before


def test_closing_a_jail_leaves_no_process(tier: JailTier) -> None:
    with Jail(jails.settings(tier)) as jail:
        processes = [psutil.Process(pid) for pid in members(jail)]
        assert len(processes) >= 2
    assert not [process for process in processes if alive(process)]


def test_a_jail_ends_with_the_worker(tier: JailTier) -> None:
    code = f"""
import os, signal
from tests.workers.graders import jails
from workers.graders.jail import Jail
jail = Jail(jails.settings({tier!r}))
print(jail.pid, flush=True)
source = "import time\\ndef grade(s, i): time.sleep(600)"
jail.run({{"kind": "grade", "source": source, "sample": 0, "item": 0, "seconds": 600}})
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        launcher = psutil.Process(int(worker.stdout.readline()))
        wait_until(lambda: len(launcher.children(recursive=True)) >= 2)
        processes = [launcher, *launcher.children(recursive=True)]
        worker.kill()
    wait_until(lambda: not any(alive(process) for process in processes))


def test_a_sample_sees_no_other_of_its_batch(jail: Jail) -> None:
    run(jail, "def grade(sample, item):\n    open('/scratch/note', 'w').write('x')\n    return 1\n", "the-other-sample")
    source = """
import gc, os
def grade(sample, item):
    assert not os.path.exists("/scratch/note")
    return float(any("the-other" + "-sample" == each for each in gc.get_objects() if isinstance(each, str)))
"""
    assert only_line(run(jail, source)) == {"reward": 0.0}


def test_two_jails_share_no_folder(tier: JailTier, jail: Jail) -> None:
    with Jail(jails.settings(tier)) as other:
        run(other, "def grade(s, i):\n    open('/scratch/note', 'w').write('x')\n    return 1\n")
        assert only_line(run(jail, "import os\ndef grade(s, i):\n    return len(os.listdir('/scratch'))\n")) == {
            "reward": 0.0
        }


def members(jail: Jail) -> list[int]:
    """The processes of a jail, as this machine numbers them."""
    return sorted([jail.pid, *(each.pid for each in psutil.Process(jail.pid).children(recursive=True))])


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
