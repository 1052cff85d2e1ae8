"""A job in two processes is the job in one: its loss, gradients, weights, checkpoints, answers, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from service.graders.settings import GraderSettings, ScoringService
from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.jobs.methods.reinforcement import Reinforcement
from service.jobs.spec import RunSpec
from service.settings import Settings
from tests import factories
from tests.workers.conftest import events, row
from tests.workers.graders.servers import Answer, Asked, serve
from tests.workers.training import in_ranks, tiny
from tests.workers.training.in_ranks import CASES, PPO
from tests.workers.training.tiny import Recorder
from workers import wire
from workers.errors import RunError
from workers.jobs import supervisor
from workers.jobs.child import Child
from workers.modeling import distributed, policy
from workers.training import checkpoint, reinforcement
from workers.training.processes.channel import Channel
from workers.training.reporting.clock import Clock
from workers.training.sampling.sampler import make_sampler
from workers.wire import ExitCode

ROOT = Path(__file__).parents[3]
PATIENCE = 120
MakeSpec = Callable[..., RunSpec]
Execute = Callable[..., tuple[int, Recorder]]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes wrote what came out of ``in_ranks``."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("ranks")
    for name, case in CASES.items():
        tiny.save(in_ranks.folder_of(root, name), case.family, case.dtype)
    for name in ("tied", "lora"):
        in_ranks.save_and_go_on(root, name, root / f"by-one-{name}")
    in_ranks.train_ppo(root, "ppo", root / "by-one-ppo")
    in_ranks.answers_in_pieces(root / "pieces-of-one")
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", in_ranks.__name__, str(root)]
    ended = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode == 0, ended.stderr
    return root


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of any two tensors, relative to the largest value of each."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).abs().max() / theirs[n].abs().max().clamp(min=1e-3)) for n in ours)


@pytest.fixture(scope="module")
def one_rank(two_ranks: Path) -> dict[str, Any]:
    """The same cases trained in this process."""
    return {name: in_ranks.train(two_ranks, name) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_the_first_step_is_the_same(two_ranks: Path, one_rank: dict[str, Any], name: str) -> None:
    numbers, gradients, _ = one_rank[name]
    told = json.loads((two_ranks / "numbers.json").read_text())[name][0]
    assert told.keys() == numbers[0].keys()
    assert told == pytest.approx(numbers[0], rel=2e-6, abs=1e-7)
    assert furthest(load_file(two_ranks / f"gradients-{name}.safetensors"), gradients) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_the_weights_after_five_steps_are_the_same(two_ranks: Path, one_rank: dict[str, Any], name: str) -> None:
    numbers, _, weights = one_rank[name]
    told = json.loads((two_ranks / "numbers.json").read_text())[name]
    assert furthest(load_file(two_ranks / f"weights-{name}.safetensors"), weights) < 1e-4
    assert [n["grad_norm"] for n in told] == pytest.approx([n["grad_norm"] for n in numbers], rel=1e-3)


@pytest.mark.parametrize("name", PPO)
def test_a_critic_and_a_reference_are_the_same(two_ranks: Path, name: str) -> None:
    numbers, weights = in_ranks.train_ppo(two_ranks, name)
    told = json.loads((two_ranks / "numbers.json").read_text())[name]
    assert told[0].keys() == numbers[0].keys() > {"reference_kl"}
    assert told[0] == pytest.approx(numbers[0], rel=1e-5, abs=1e-6)
    assert told[-1] == pytest.approx(numbers[-1], rel=1e-3, abs=1e-5)
    assert furthest(load_file(two_ranks / f"weights-{name}.safetensors"), weights) < 1e-3


def test_a_critic_goes_on_in_another_number_of_processes(two_ranks: Path) -> None:
    saved = load_file(two_ranks / "weights-ppo.safetensors")
    found = in_ranks.resume_critic(two_ranks, "ppo", two_ranks / "by-two-ppo")
    assert all(torch.equal(found[key], saved[key]) for key in saved if key.startswith("critic/"))
    theirs = load_file(two_ranks / "found-ppo.safetensors")
    ours = in_ranks.resume_critic(two_ranks, "ppo", two_ranks / "by-one-ppo")
    assert theirs.keys() == ours.keys() == found.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_unfinished_answers_go_on_in_another_number_of_processes(two_ranks: Path, tmp_path: Path) -> None:
    whole = in_ranks.answers_in_pieces(tmp_path / "kept")["answers"]
    from_two = in_ranks.answers_in_pieces(tmp_path, again=two_ranks / "pieces-of-two")["answers"]
    by_two, from_one = (load_file(two_ranks / f"{name}.safetensors")["answers"] for name in ("pieces", "pieces-of-one"))
    assert len(whole.unique(dim=0)) > 5
    for other in (from_two, by_two, from_one):
        assert torch.equal(other, whole)


def test_ranks_agree_on_which_answers_are_over(two_ranks: Path) -> None:
    found = load_file(two_ranks / "kept-again.safetensors")
    assert found["kept"].tolist() == [3, 3, 3, 3]
    assert torch.equal(found["restored"], found["kept"])


def test_supervised_training_is_the_same(two_ranks: Path) -> None:
    numbers, gradients = in_ranks.supervise(two_ranks)
    assert json.loads((two_ranks / "numbers.json").read_text())["supervised"] == pytest.approx(numbers, rel=2e-6)
    assert furthest(load_file(two_ranks / "gradients-supervised.safetensors"), gradients) < 1e-5


@pytest.mark.parametrize("name", ["tied", "lora"])
def test_one_process_goes_on_from_what_two_saved(two_ranks: Path, name: str) -> None:
    checkpoint.verify(two_ranks / f"by-two-{name}")
    found, after = in_ranks.resume(two_ranks, name, two_ranks / f"by-two-{name}")
    saved = load_file(two_ranks / f"saved-{name}.safetensors")
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[key], saved[key]) for key in saved)
    assert furthest(after, load_file(two_ranks / f"after-{name}.safetensors")) < 1e-5


@pytest.mark.parametrize("name", ["tied", "lora"])
def test_two_processes_go_on_from_what_one_saved(two_ranks: Path, name: str) -> None:
    found, after = in_ranks.resume(two_ranks, name, two_ranks / f"by-one-{name}")
    theirs = load_file(two_ranks / f"found-{name}.safetensors")
    assert all(torch.equal(found[key], theirs[key]) for key in theirs)
    assert furthest(load_file(two_ranks / f"resumed-{name}.safetensors"), after) < 1e-5


def test_a_checkpoint_of_two_is_in_two_parts_without_code(two_ranks: Path) -> None:
    folder = two_ranks / "by-two-tied"
    parts = sorted((folder / checkpoint.STATE / checkpoint.TENSORS).iterdir())
    sizes = [sum(tensor.numel() for tensor in load_file(part).values()) for part in parts]
    assert len(sizes) == 2
    assert max(sizes) < 1.2 * min(sizes)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".jinja"}


def test_the_model_that_two_save_is_described_as_that_of_one(two_ranks: Path) -> None:
    by_two, by_one = (two_ranks / f"by-{n}-tied" / checkpoint.MODEL for n in ("two", "one"))
    assert {path.name for path in by_two.iterdir()} == {path.name for path in by_one.iterdir()}
    assert (by_two / "config.json").read_bytes() == (by_one / "config.json").read_bytes()


@contextmanager
def child() -> Iterator[Child]:
    """A training child in two processes, gone when the test is over."""
    started = Child(processes=2)
    try:
        yield started
    finally:
        started.close()


def follow(running: Child, spec: RunSpec, on_line: Callable[[wire.Line], None] = lambda line: None) -> Recorder:
    """The lines of ``spec``'s run to its end."""
    told = Recorder(on_line)
    path = spec.training_path.with_name("run.json")
    path.write_text(spec.model_dump_json())
    running.start(path)
    deadline, ended = time.monotonic() + PATIENCE, False
    while not ended:
        assert time.monotonic() < deadline, running.log_tail()
        lines, ended = running.read(0.2)
        for line in lines:
            told.lines.append(wire.parse(line))
            on_line(told.lines[-1])
    return told


def followers_of(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(pid) for pid in children if "--follow" in Path(f"/proc/{pid}/cmdline").read_text()]


def is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(process: int) -> None:
    deadline = time.monotonic() + 20
    while not is_gone(process):
        assert time.monotonic() < deadline, "a process outlived the one that started it"
        time.sleep(0.02)


def test_a_run_in_two_processes_stops_together_and_ends_in_one_as_if_it_had_been_there_from_the_start(
    make_spec: MakeSpec, execute: Execute
) -> None:
    code, whole = execute(make_spec("whole", n_steps=4, eval_interval=10))
    assert code == ExitCode.DONE
    spec = make_spec("stopped", n_steps=4, eval_interval=10)
    with child() as running:

        def stop(line: wire.Line) -> None:
            if isinstance(line, wire.Progress) and line.step == 1:
                running.stop()

        told = follow(running, spec, stop)
        assert running.wait(20) == ExitCode.STOPPED, running.log_tail()
    assert len(told.checkpoints()) == 1
    again = {"attempt": 2, "checkpoints": told.checkpoints(), "output_dir": spec.output_dir.with_name("again")}
    code, rest = execute(spec.model_copy(update=again))
    assert code == ExitCode.DONE
    ours, theirs = told.metrics() | rest.metrics(), whole.metrics()
    assert list(ours) == list(theirs)
    for step, expected in theirs.items():
        assert ours[step]["samples"] == expected["samples"]
        assert ours[step]["train_mean_reward"] == expected["train_mean_reward"]
        assert ours[step]["full_valid_mean_reward"] == expected["full_valid_mean_reward"]
        assert ours[step]["completions"] == expected["completions"]
        known = {name: value for name, value in expected["troll"].items() if value is not None}
        assert {name: ours[step]["troll"][name] for name in known} == pytest.approx(known, rel=2e-2, abs=1e-4)


def test_two_processes_whose_grader_is_away_stop_with_a_checkpoint_when_asked(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    away = threading.Event()

    def answer(asked: Asked) -> Any:
        return Answer(503) if away.is_set() else {"rewards": [len(each["item"]) for each in asked.json["samples"]]}

    def on_line(line: wire.Line) -> None:
        if isinstance(line, wire.Progress) and line.step == 1:
            away.set()
        if isinstance(line, wire.Event) and "asked again" in line.message:
            running.stop()

    with serve(answer) as server, child() as running:
        service = ScoringService(server.origin, tmp_path / "secret", private_network=True)
        spec = make_spec(grader={"type": "http", "url": server.origin}, n_steps=4, eval_interval=10)
        spec = spec.model_copy(update={"graders": GraderSettings(scoring_services=(service,))})
        told = follow(running, spec, on_line)
        # Long before patience would be over.
        assert running.wait(20) == ExitCode.STOPPED, running.log_tail()
    assert [folder.name for folder in told.checkpoints()] == ["step-000001"]


def test_the_others_end_with_the_first_however_it_ends() -> None:
    with child() as running:
        deadline = time.monotonic() + 20
        while not (others := followers_of(running.process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(1)
        os.kill(running.process.pid, signal.SIGKILL)
        for other in others:
            wait_until_gone(other)


FOLLOWER = """
import os, signal, socket, sys
from workers import wire
rank, connection = os.environ["RANK"], socket.socket(fileno=int(sys.argv[2]))
if rank == "2":
    {does}
connection.recv(1)
"""
FAILS = """failure = wire.Failure(code="grader_failed", message="It said no.")
    connection.sendall(failure.model_dump_json().encode() + b"\\n")
    os._exit(65)"""
LEADER = """
import sys, time
from pathlib import Path
from workers.training.processes import followers as starting
from workers.training.processes.channel import Channel
starting.COMMAND = [sys.executable, "-c", sys.argv[1]]
followers = starting.Followers(4, Path(sys.argv[2]))
followers.watch(Channel(lambda line: (sys.stdout.buffer.write(line), sys.stdout.flush())))
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("does", "code", "told"),
    [
        (FAILS, ExitCode.GRADER_ERROR, ["grader_failed"]),
        ("os._exit(70)", ExitCode.BUG, []),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV, []),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, []),
    ],
)
def test_a_rank_that_fails_ends_the_job_in_its_own_way(tmp_path: Path, does: str, code: int, told: list[str]) -> None:
    command = [sys.executable, "-c", LEADER, FOLLOWER.format(does=does), str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, timeout=PATIENCE)
    assert ended.returncode == code, ended.stderr
    lines = [wire.parse(line) for line in ended.stdout.splitlines()]
    assert [line.code for line in lines if isinstance(line, wire.Failure)] == told
    assert len(lines) == len(told)


def test_parts_are_balanced_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [9, 1, 1, 5, 4, 8, 2]
    monkeypatch.setattr(distributed, "size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(distributed.own_part(items, lambda item: item))
    assert sorted(item for part in parts for item in part) == sorted(items)
    assert [sum(part) for part in parts] == [10, 10, 10]


@pytest.mark.parametrize("together", [1, 2, 6])
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_strided_shards_come_back_in_order(monkeypatch: pytest.MonkeyPatch, count: int, together: int) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 6)
    shares = []
    for rank in range(6):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.strided_shard(range(count), together))
    assert sum(map(len, shares)) == together * count
    monkeypatch.setattr(distributed, "gather", lambda own: shares)
    assert distributed.gather_strided(shares[0], together) == list(range(count))


def test_engines_that_leave_a_process_out_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "TROLL_DATA_DIR", "TROLL_MODELS_DIR"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("TROLL_KEY_PEPPER", "x" * 32)
    monkeypatch.setenv("TROLL_PROCESSES_PER_JOB", "4")
    monkeypatch.setenv("TROLL_ROLLOUT_TENSOR_PARALLEL", "2")
    assert Settings().rollout_tensor_parallel == 2
    monkeypatch.setenv("TROLL_ROLLOUT_TENSOR_PARALLEL", "3")
    with pytest.raises(ValidationError, match="TROLL_ROLLOUT_TENSOR_PARALLEL=3 does not divide"):
        Settings()


@pytest.mark.parametrize(
    ("device", "heads", "reason"), [("cpu", 4, "this machine has none"), ("cuda", 3, "3 attention heads")]
)
def test_what_no_shared_engine_takes_is_refused(base: Path, device: str, heads: int, reason: str) -> None:
    loaded = policy.load(base, torch.device("cpu"))
    loaded.device, loaded.model.config.num_attention_heads = torch.device(device), heads
    asked = Hyperparameters(rollout_engine="vllm")
    with pytest.raises(RunError, match=reason):
        make_sampler(loaded, resolve(asked, training_rows=8), [[5, 6]], 8, tensor_parallel=2)


@pytest.mark.parametrize(
    ("engine", "processes", "tensor_parallel", "refused"),
    [
        ("transformers", 1, 1, False),
        ("transformers", 2, 1, True),
        ("vllm", 2, 1, False),
        ("vllm", 2, 2, True),
    ],
)
def test_who_cannot_sample_ahead_is_told_before_a_model_is_loaded(
    make_spec: MakeSpec,
    monkeypatch: pytest.MonkeyPatch,
    engine: Any,
    processes: int,
    tensor_parallel: int,
    refused: bool,
) -> None:
    class Loads(Exception):
        """A model would be loaded."""

    def begin(*_: object, **__: object) -> None:
        raise Loads

    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(reinforcement, "begin", begin)
    spec = make_spec(max_staleness=1, rollout_engine=engine)
    spec = spec.model_copy(update={"rollout_tensor_parallel": tensor_parallel})
    assert isinstance(spec.job.method, Reinforcement)
    with pytest.raises(RunError if refused else Loads) as stopped:
        reinforcement.prepare(spec, spec.job.method, Channel(lambda line: None), Clock())
    if isinstance(stopped.value, RunError):
        assert stopped.value.param == "hyperparameters.max_staleness"


def test_a_job_whose_rank_was_killed_goes_on_from_its_checkpoint(
    client: TestClient, models_dir: Path, faster: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Child] = []

    def remember(processes: int) -> Child:
        started.append(Child(processes))
        return started[-1]

    monkeypatch.setattr(supervisor, "Child", remember)
    monkeypatch.setattr(supervisor.warm_children, "warm_up", lambda: None)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    supervisor.shutting_down.clear()
    faster(processes_per_job=2, retry_delay_seconds=0)
    tiny.save(models_dir / "tiny" / "ranks")
    asked = {"n_steps": 12, "eval_interval": 2, "batch_size": 4, "group_size": 2, "max_completion_tokens": 4}
    id = factories.create_job(client, "tiny/ranks", **asked)["id"]

    attempt = threading.Thread(target=supervisor.run, args=["worker-1"])
    attempt.start()
    deadline = time.monotonic() + PATIENCE
    while row(id).step < 3:
        assert time.monotonic() < deadline, started[0].log_tail()
        time.sleep(0.02)
    (other,) = followers_of(started[0].process.pid)
    os.kill(other, signal.SIGKILL)
    attempt.join(PATIENCE)
    assert row(id).status == "queued"
    assert "SIGKILL" in events(id)[-1].message

    supervisor.run("worker-1")
    assert (row(id).status, row(id).attempt) == ("succeeded", 2)
    steps = [event.data["step"] for event in events(id) if event.type == "metrics"]
    assert steps == list(range(13))
    assert any("resumed from" in event.message for event in events(id))
