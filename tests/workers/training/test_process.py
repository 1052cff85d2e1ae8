"""The training process: how it starts, speaks, stops, dies and is followed by another."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from service.jobs.spec import RunSpec
from tests.workers.training import tiny
from tests.workers.training.tiny import Recorder
from workers import wire
from workers.training import __main__ as training
from workers.training import checkpoint
from workers.wire import ExitCode

ROOT = Path(__file__).parents[3]
PATIENCE = 120

MakeSpec = Callable[..., RunSpec]
Execute = Callable[..., tuple[int, Recorder]]


@contextmanager
def child(*arguments: str, launcher: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A training process that is gone when the test is over."""
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, "workers.training", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def supervised(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A training process and the supervisor's end of its socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "wire.sock"))
        listener.listen(1)
        listener.settimeout(PATIENCE)
        with child("--socket", str(folder / "wire.sock")) as process:
            connection, _ = listener.accept()
            with connection:
                yield process, connection


def send(connection: socket.socket, command: wire.Start | wire.Stop) -> None:
    connection.sendall(command.model_dump_json().encode() + b"\n")


def stored(spec: RunSpec) -> Path:
    path = spec.training_path.with_name("run.json")
    path.write_text(spec.model_dump_json())
    return path


def test_under_torchrun_it_prints_its_lines_without_a_supervisor(make_spec: MakeSpec) -> None:
    launcher = ("torch.distributed.run", "--nproc-per-node", "1", "-m")
    with child("--", "--run", str(stored(make_spec(n_steps=1))), launcher=launcher) as process:
        out, _ = process.communicate(timeout=PATIENCE)
    lines = [wire.parse(raw) for raw in out.splitlines()]
    assert process.returncode == ExitCode.DONE
    assert isinstance(lines[-1], wire.Result)


def test_a_job_of_another_version_is_left_to_a_worker_that_is_started_anew(make_spec: MakeSpec) -> None:
    path = stored(make_spec(n_steps=1))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"foresight": 1}))
    with child("--run", str(path)) as process:
        out, _ = process.communicate(timeout=PATIENCE)
    failure = wire.parse(out.splitlines()[-1])
    assert process.returncode == ExitCode.UNAVAILABLE
    assert isinstance(failure, wire.Failure)
    assert failure.code == "worker_unavailable"


def test_a_killed_run_is_resumed_exactly(make_spec: MakeSpec, execute: Execute) -> None:
    # One step ahead, so that it is killed in the middle of sampling, grading and training.
    asked = {"n_steps": 6, "eval_interval": 2, "max_staleness": 1}
    _, whole = execute(make_spec("whole", **asked))
    spec = make_spec("killed", **asked)
    told = Recorder()
    with child("--run", str(stored(spec))) as process:
        assert process.stdout
        for raw in process.stdout:
            told.lines.append(wire.parse(raw))
            if told.checkpoints():
                process.send_signal(signal.SIGKILL)
                break
        for raw in process.stdout.read().splitlines():
            told.lines.append(wire.parse(raw))
        assert process.wait(PATIENCE) == -signal.SIGKILL
    again = {"attempt": 2, "checkpoints": told.checkpoints(), "output_dir": spec.output_dir.with_name("again")}
    code, rest = execute(spec.model_copy(update=again))

    assert code == ExitCode.DONE
    assert tiny.without_times(told.metrics() | rest.metrics()) == tiny.without_times(whole.metrics())
    ours, theirs = (load_file(run.output_dir / "model" / "model.safetensors") for run in (_again(spec), _whole(spec)))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def _again(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"output_dir": spec.output_dir.with_name("again")})


def _whole(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"output_dir": spec.output_dir.parents[1] / "whole" / "out"})


def test_a_supervised_run_stops_with_a_checkpoint(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(n_steps=1000, eval_interval=1000)
    told = Recorder()
    with supervised(tmp_path) as (process, connection), connection.makefile("rb") as lines:
        send(connection, wire.Start(run=stored(spec)))
        for raw in lines:
            told.lines.append(wire.parse(raw))
            if isinstance(told.lines[-1], wire.Progress) and told.lines[-1].step == 2:
                send(connection, wire.Stop())
        assert process.wait(PATIENCE) == ExitCode.STOPPED
    (folder,) = told.checkpoints()
    checkpoint.verify(folder)
    assert folder.name == f"step-{max(told.metrics()):06d}"


def test_sigterm_stops_it_too(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Recorder()

    def hear(raw: bytes) -> None:
        told.lines.append(wire.parse(raw))
        if isinstance(told.lines[-1], wire.Progress) and told.lines[-1].step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training, "_print", hear)
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        code = training.main(["--run", str(stored(make_spec(n_steps=1000, eval_interval=1000)))])
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    assert code == ExitCode.STOPPED
    assert len(told.checkpoints()) == 1


def test_a_process_that_is_told_to_stop_before_it_starts_leaves() -> None:
    recorder = Recorder()
    recorder.channel.stop()
    assert (training.run_one_job(recorder.channel), recorder.lines) == (ExitCode.STOPPED, [])


def test_it_dies_with_its_supervisor_in_the_middle_of_a_run(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(n_steps=100_000, eval_interval=100_000)
    with supervised(tmp_path) as (process, connection):
        send(connection, wire.Start(run=stored(spec)))
        assert connection.recv(1)
        connection.shutdown(socket.SHUT_RDWR)
        assert process.wait(PATIENCE) == ExitCode.UNAVAILABLE


def test_a_waiting_process_dies_with_its_supervisor(tmp_path: Path) -> None:
    with supervised(tmp_path) as (process, connection):
        connection.close()
        assert process.wait(PATIENCE) == ExitCode.UNAVAILABLE


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel, on Linux only")
def test_the_kernel_ends_it_when_its_parent_ends(tmp_path: Path) -> None:
    """The parent holds the socket open for others, so that only its death can tell."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "wire.sock"))
        listener.listen(1)
        listener.settimeout(PATIENCE)
        start = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(600)"
        command = [sys.executable, "-m", "workers.training", "--socket", str(tmp_path / "wire.sock")]
        parent = subprocess.Popen(
            [sys.executable, "-c", start, *command], cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ}
        )
        assert parent.stdout
        pid = int(parent.stdout.readline())
        connection, _ = listener.accept()
        parent.kill()
        parent.communicate()
        deadline = time.monotonic() + PATIENCE
        while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
            assert time.monotonic() < deadline, "the child outlived its parent"
            time.sleep(0.02)
        connection.close()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_nothing_is_imported_before_the_environment_is_set() -> None:
    code = "import sys, workers.wire, workers.training.__main__; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
