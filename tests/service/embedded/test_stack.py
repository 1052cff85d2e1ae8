"""``troll up`` and ``troll down``, with every process, as a person at a terminal meets them."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from openai import BadRequestError, InternalServerError, OpenAI

from service.core.db import LOGINS
from service.embedded.detached import stop_stack
from service.embedded.folder import Folder
from service.embedded.processes import find, leftovers
from service.embedded.servers import Servers
from service.embedded.stack import Options, Stack
from tests.disks import empty as empty_disk
from tests.disks import fill, small_disk
from tests.workers.graders.jails import first_tier

APPS = ["api", "control-worker", "training-worker", "serving-worker", "beat"]
PROCESSES = ["redis", "postgres", *APPS]
PATIENCE = 240
"""How long a command may take on a machine that is busy, in seconds."""
ROWS = b'{"messages": [{"role": "user", "content": "1+1="}], "answer": "2"}\n'

Attended = tuple[Path, "subprocess.Popen[str]"]
"""The folder of a stack that runs at a terminal, without a jail, and its ``up``, which has said where it is."""


def environment() -> dict[str, str]:
    """Ours, without what would point the stack at other servers and folders."""
    names = ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY")
    return {name: value for name, value in os.environ.items() if name not in names and not name.startswith("TROLL_")}


def troll(*arguments: object, **more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "service.cli", *map(str, arguments)]
    return subprocess.run(
        command, env=environment() | more, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def up(folder: Path, *arguments: object) -> dict[str, Any]:
    done = troll("up", "--data-dir", folder, "--port", 0, "--detach", *arguments)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def client(ready: dict[str, Any]) -> OpenAI:
    return OpenAI(base_url=ready["base_url"], api_key=ready["api_key"], max_retries=10)


def state(folder: Path) -> dict[str, Any]:
    state = Folder(folder).read_state()
    assert state is not None
    return state


def recorded(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "processes.json").read_text()))


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that many tests use one after the other, as an operator does over the years."""
    folder = tmp_path_factory.mktemp("stack") / "data"
    yield folder
    stop_stack(folder)


@pytest.fixture
def folder(lasting: Path) -> Path:
    """A folder with a stack that is up; an earlier test may have used it."""
    if Folder(lasting).read_state() is None:
        up(lasting)
    return lasting


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    stop_stack(tmp_path / "data")


@pytest.fixture(scope="module")
def attended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attended]:
    folder = tmp_path_factory.mktemp("attended") / "data"
    command = [sys.executable, "-m", "service.cli", "up", "--data-dir", str(folder), "--port", "0", "--jail", "off"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline().startswith("OPENAI_BASE_URL=http://127.0.0.1:")
            yield folder, run
        finally:
            stop_stack(folder)
            run.kill()


def test_up_says_where_it_is_as_its_last_line(lasting: Path) -> None:
    ready = up(lasting)
    assert ready.keys() == {"base_url", "api_key", "data_dir", "model", "jail", "jail_note"}
    assert (ready["data_dir"], ready["model"]) == (str(lasting), None)
    assert client(ready).models.list().data == []


def test_every_process_has_a_log_of_its_own(folder: Path) -> None:
    assert [entry["name"] for entry in recorded(folder)] == PROCESSES
    assert {path.stem for path in (folder / "logs").glob("*.log")} == {*PROCESSES, "prepare", "jail-test", "stack"}


def test_secrets_are_readable_by_their_owner_only(folder: Path) -> None:
    modes = {stat.S_IMODE((folder / name).stat().st_mode) for name in ("secrets.json", "first_key", "stack.json")}
    assert modes == {0o600}


SECRETS = {
    "prepare": {"DATABASE_OWNER_URL", "DATABASE_URL", "TROLL_KEY_PEPPER"},
    "api": {"DATABASE_URL", "REDIS_URL", "TROLL_KEY_PEPPER", "TROLL_WEBHOOK_KEY", "TROLL_OIDC_CLIENT_SECRET"},
    "control-worker": {"DATABASE_URL", "REDIS_URL", "TROLL_WEBHOOK_KEY"},
    "training-worker": {"DATABASE_URL", "REDIS_URL", "TROLL_WANDB_API_KEY", "TROLL_MLFLOW_TOKEN"},
    "serving-worker": {"REDIS_URL"},
    "beat": {"REDIS_URL"},
}
LOGIN_OF_SERVICE = {
    "prepare": "troll_operator", "api": "troll_api", "control-worker": "troll_control",
    "training-worker": "troll_worker",
}  # fmt: skip


def test_each_process_is_given_only_the_secrets_that_it_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROLL_WANDB_API_KEY", "w" * 40)
    monkeypatch.setenv("TROLL_OIDC_CLIENT_SECRET", "o" * 40)
    monkeypatch.setenv("TROLL_MLFLOW_TOKEN", "m" * 40)
    monkeypatch.setenv("TROLL_KEY_PEPPER", "p" * 40)
    stack = Stack(Options(tmp_path))
    passwords = {role: stack.folder.password(role) for role in LOGINS}
    running = Servers("postgresql://postgres:of-the-owner@/troll?host=/run", "unix:///redis.sock", passwords)
    given = {name: stack._environment() | own for name, own in stack._secrets(running).items()}
    secret = re.compile("(DATABASE.*_URL|REDIS_URL|_PEPPER|_KEY|_SECRET|_TOKEN)$")
    assert {name: {each for each in given[name] if secret.search(each)} for name in given} == SECRETS
    for name, variables in given.items():
        known = [role for role, password in passwords.items() if password in "\n".join(variables.values())]
        assert known == ([LOGIN_OF_SERVICE[name]] if name in LOGIN_OF_SERVICE else [])
        assert ("of-the-owner" in "\n".join(variables.values())) == (name == "prepare")


PYTHON: Any = {"type": "python", "name": "p", "source": "import scipy\ndef grade(sample, item):\n    return 0.5\n"}
NO_JAIL = {"TROLL_GRADERS": json.dumps({"jail_cgroup": "/nowhere"})}
"""Settings under which no jail can be made, as on a machine that forbids namespaces."""


def test_python_graders_run_in_a_jail_without_a_word_from_anybody(folder: Path) -> None:
    first_tier()
    assert state(folder)["jail"] == "unshare"
    assert state(folder)["jail_note"].startswith("Python graders and code tests run in a jail (unshare)")
    graders = client(state(folder)).fine_tuning.alpha.graders
    checked = graders.validate(grader=PYTHON).grader
    assert checked is not None
    assert checked.name == "p"
    assert graders.run(grader=PYTHON, model_sample="x", item={}).reward == 0.5


def test_where_no_jail_holds_python_graders_are_off_and_it_says_why(empty: Path) -> None:
    done = troll("up", "--data-dir", empty, "--port", 0, "--detach", **NO_JAIL)
    assert done.returncode == 0, done.stderr
    ready = json.loads(done.stdout.splitlines()[-1])
    why = "the control group cannot be made"
    assert ready["jail"] == "off"
    assert ready["jail_note"].startswith(f"Python graders and code tests are off: {why}")
    assert ready["jail_note"] in done.stderr.splitlines()
    with pytest.raises(BadRequestError, match="turned off on this server"):
        client(ready).fine_tuning.alpha.graders.validate(grader=PYTHON)


def test_a_jail_that_has_to_hold_and_does_not_is_an_error(empty: Path) -> None:
    done = troll("up", "--data-dir", empty, "--port", 0, "--detach", "--jail", "on", **NO_JAIL)
    assert done.returncode == 1
    assert "none holds here: the control group cannot be made" in done.stderr
    assert "'--jail off'" in done.stderr
    assert leftovers(empty / "processes.json") == []


def test_settings_of_graders_that_cannot_be_read_are_told_before_anything_starts(empty: Path) -> None:
    done = troll("up", "--data-dir", empty, "--port", 0, "--detach", TROLL_GRADERS='{"jail": "docker"}')
    assert (done.returncode, "TROLL_GRADERS cannot be read" in done.stderr) == (1, True)
    assert not (empty / "postgres").exists()


def test_only_the_api_listens_on_a_port(folder: Path) -> None:
    assert listening(folder) == {"api"}


def test_a_second_up_on_the_folder_is_refused(folder: Path) -> None:
    second = troll("up", "--data-dir", folder, "--port", 0)
    assert second.returncode == 1
    assert f"is in use by process {Folder(folder).holder()}" in second.stderr


def listening(folder: Path) -> set[str]:
    """Names of those that listen on a port."""
    processes = {entry["name"]: psutil.Process(entry["pid"]) for entry in recorded(folder)}
    return {
        name
        for name, process in processes.items()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_operator_commands_find_the_stack_by_its_folder(folder: Path) -> None:
    made = troll("keys", "create", "--organization", "acme", "--data-dir", folder)
    assert made.returncode == 0, made.stderr
    assert client({**state(folder), "api_key": made.stdout.strip()}).models.list().data == []
    listed = json.loads(troll("keys", "list", "--json", "--data-dir", folder).stdout)
    assert [(key["organization"], key["name"]) for key in listed] == [("default", "first"), ("acme", "unnamed")]


def test_a_crashed_api_is_started_again_on_its_port(folder: Path) -> None:
    [api] = [entry for entry in recorded(folder) if entry["name"] == "api"]
    os.kill(api["pid"], signal.SIGKILL)
    assert client(state(folder)).models.list().data == []
    assert [entry["pid"] for entry in recorded(folder) if entry["name"] == "api"] != [api["pid"]]
    assert "api exited (signal SIGKILL)" in (folder / "logs" / "stack.log").read_text()


def test_everything_is_there_again_after_down_and_up(folder: Path) -> None:
    before, running = state(folder), recorded(folder)
    uploaded = client(before).files.create(file=("rows.jsonl", ROWS), purpose="fine-tune").id
    assert troll("down", "--data-dir", folder).returncode == 0
    assert [entry["name"] for entry in running if find(entry["pid"], entry["started"])] == []
    assert not (folder / "stack.json").exists()
    another_database_under_the_folder_is_refused(folder)
    after = up(folder)
    assert after["api_key"] == before["api_key"]
    assert client(after).files.content(uploaded).read() == ROWS
    assert (folder / "files" / "notes.txt").exists()


def another_database_under_the_folder_is_refused(folder: Path) -> None:
    """The folder is as before afterwards, but for a stranger's file among the service's own, which nothing removes."""
    (folder / "files" / "notes.txt").write_text("a stranger's")
    (folder / "postgres").rename(folder / "aside")
    refused = troll("up", "--data-dir", folder, "--port", 0, "--detach")
    assert refused.returncode == 1
    assert "do not belong together" in refused.stderr
    assert f"> {folder / 'installation'}" in refused.stderr
    shutil.rmtree(folder / "postgres")
    (folder / "aside").rename(folder / "postgres")


def test_up_ends_what_a_killed_stack_left_and_goes_on(folder: Path) -> None:
    before, running = state(folder), recorded(folder)
    os.kill(before["pid"], signal.SIGKILL)
    time.sleep(0.1)
    assert [entry["name"] for entry in leftovers(folder / "processes.json")] == PROCESSES
    after = up(folder)
    assert [entry["name"] for entry in running if find(entry["pid"], entry["started"])] == []
    assert after["api_key"] == before["api_key"]
    assert "left: redis, postgres, api" in (folder / "logs" / "stack.log").read_text()


def test_up_comes_back_when_everything_was_killed_at_once(folder: Path) -> None:
    before = state(folder)
    for pid in (before["pid"], *(entry["pid"] for entry in recorded(folder))):
        os.kill(pid, signal.SIGKILL)
    after = up(folder)
    assert client(after).models.list().data == []
    assert after["api_key"] == before["api_key"]


def test_a_jail_can_be_refused(attended: Attended) -> None:
    folder, _ = attended
    assert (state(folder)["jail"], "are off: --jail off" in state(folder)["jail_note"]) == ("off", True)
    assert not (folder / "logs" / "jail-test.log").exists()


def test_ctrl_c_stops_all_of_it(attended: Attended) -> None:
    folder, run = attended
    running = recorded(folder)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, said
    assert said.endswith("Stopped.\n")
    assert [entry["name"] for entry in running if find(entry["pid"], entry["started"])] == []


def test_ctrl_c_while_starting_stops_all_of_it_too(empty: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "up", "--data-dir", str(empty), "--port", "0"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while not (empty / "processes.json").exists():
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130
    assert out == ""
    assert leftovers(empty / "processes.json") == []


def test_a_taken_port_is_told_before_anything_starts(empty: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = troll("up", "--data-dir", empty, "--port", taken.getsockname()[1], "--detach")
    assert done.returncode == 1
    assert "Address already in use. Choose another with --port" in done.stderr
    assert not (empty / "postgres").exists()


def test_a_database_that_does_not_answer_is_told_with_the_log(empty: Path) -> None:
    nowhere = {"DATABASE_URL": "postgresql://127.0.0.1:9/none", "TROLL_KEY_PEPPER": "x" * 40}
    done = troll("up", "--data-dir", empty, "--port", 0, "--detach", **nowhere)
    assert done.returncode == 1
    assert "Error: prepare failed" in done.stderr
    assert "port 9" in done.stderr
    assert leftovers(empty / "processes.json") == []


def test_a_full_data_folder_ends_nothing_and_all_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 320 * 1024**2) as folder:
        try:
            ready = up(folder)
            first = client(ready).files.create(file=("rows.jsonl", ROWS), purpose="fine-tune").id
            fill(folder)
            for name in ("control-worker", "beat"):
                os.kill(next(entry["pid"] for entry in recorded(folder) if entry["name"] == name), signal.SIGKILL)
            with pytest.raises(InternalServerError) as full:
                client(ready).with_options(max_retries=0).files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
            assert full.value.status_code == 507
            time.sleep(12)
            assert Folder(folder).holder() == state(folder)["pid"], (folder / "logs" / "stack.log").read_text()
            empty_disk(folder)
            wait_until_ready(ready)
            assert client(ready).files.content(first).read() == ROWS
            client(ready).files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
            grader: Any = {"type": "string_check", "name": "g", "operation": "eq", "input": "1", "reference": "1"}
            # A control worker is there again.
            assert client(ready).fine_tuning.alpha.graders.run(grader=grader, model_sample="x", item={}).reward == 1.0
            wait_until_all_run(folder)
        finally:
            stop_stack(folder)


def wait_until_all_run(folder: Path, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not all(find(entry["pid"], entry["started"]) for entry in recorded(folder)):
        assert time.monotonic() < deadline, "something does not run again"
        time.sleep(0.2)


def wait_until_ready(ready: dict[str, Any], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if httpx2.get(ready["base_url"].removesuffix("/v1") + "/readyz", timeout=5).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        assert time.monotonic() < deadline, "it is not ready again"
        time.sleep(0.2)


def test_down_without_a_stack_is_no_error(empty: Path) -> None:
    done = troll("down", "--data-dir", empty)
    assert (done.returncode, "No stack was up." in done.stderr) == (0, True)
