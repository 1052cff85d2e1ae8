"""When the kernels are chosen, and when not."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from troll import kernels


def on_gpu(dtype: torch.dtype = torch.float32) -> Any:
    return SimpleNamespace(is_cuda=True, dtype=dtype)


def test_tensors_on_a_gpu_take_the_kernels() -> None:
    assert kernels.available(on_gpu(), 65)


def test_tensors_on_the_cpu_take_the_plain_version() -> None:
    assert not kernels.available(torch.zeros(1), 65)


def test_float64_takes_the_plain_version() -> None:
    assert not kernels.available(on_gpu(torch.float64), 65)


def test_supports_larger_than_the_kernels_hold_take_the_plain_version() -> None:
    assert not kernels.available(on_gpu(), kernels.MAX_SLOTS + 1)


def test_the_environment_turns_the_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROLL_KERNELS", "off")
    assert not kernels.available(on_gpu(), 65)


def test_without_triton_the_plain_version_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_importable", lambda: False)
    assert not kernels.available(on_gpu(), 65)


def test_the_package_works_without_importing_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch, troll
logits, tokens = torch.randn(3, 9), torch.tensor([1, 2, 3])
troll.Troll().loss(logits, troll.sparsify(logits, tokens), tokens, torch.ones(3))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
