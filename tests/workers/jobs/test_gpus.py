"""The memory of a worker's GPUs."""

import subprocess
from typing import Any

import pytest

from workers.jobs import gpus


@pytest.mark.parametrize(
    ("told", "processes", "memory"),
    [("", 1, 0), ("GPU 80\nGPU 24\n", 1, 80), ("GPU 80\nGPU 24\n", 2, 48), ("a warning\nGPU 80\nGPU 80", 2, 160)],
)
def test_each_process_has_as_much_as_the_smallest(told: str, processes: int, memory: int) -> None:
    assert gpus.of_some(told, processes) == memory


def test_a_machine_without_gpus_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus.memory.cache_clear()
    monkeypatch.setattr(gpus, "DEVICES", ())
    monkeypatch.setattr(subprocess, "run", None)
    assert gpus.memory(1) == 0
    gpus.memory.cache_clear()


def test_what_cannot_be_asked_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(1, "python")

    gpus.memory.cache_clear()
    monkeypatch.setattr(gpus, "DEVICES", ("/dev/null",))
    monkeypatch.setattr(subprocess, "run", broken)
    assert gpus.memory(1) == 0
    gpus.memory.cache_clear()


def test_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    gpus.memory.cache_clear()
    monkeypatch.setattr(gpus, "DEVICES", ("/dev/null",))
    sizes = [torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())]
    assert gpus.memory(1) == (sizes[0] if sizes else 0)
    gpus.memory.cache_clear()
