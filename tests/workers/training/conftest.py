"""Model folders made once for all tests of training, and runs in this process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from service.jobs.spec import RunSpec
from tests.workers.training import tiny
from tests.workers.training.tiny import Recorder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are faster on one thread, and do not wait for the other where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny float32 Qwen3."""
    return tiny.save(tmp_path_factory.mktemp("models") / "qwen3")


@pytest.fixture
def make_spec(tmp_path: Path, base: Path) -> Callable[..., RunSpec]:
    """``make_spec(n_steps=2, ...)``: a run of the tiny model in a folder of its own."""

    def make(name: str = "run", model_path: Path = base, **asked: Any) -> RunSpec:
        return tiny.spec(tmp_path / name, model_path, **asked)

    return make


@pytest.fixture
def execute() -> Callable[..., tuple[int, Recorder]]:
    """``execute(spec)``: the exit code and the lines of a run in this process, failures explained as in a child."""
    from workers.training.__main__ import run_one_job

    def run(spec: RunSpec, recorder: Recorder | None = None) -> tuple[int, Recorder]:
        recorder = recorder or Recorder()
        path = spec.training_path.with_name("run.json")
        path.write_text(spec.model_dump_json())
        recorder.channel.starts.put(path)
        return run_one_job(recorder.channel), recorder

    return run
