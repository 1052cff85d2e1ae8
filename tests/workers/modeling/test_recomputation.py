"""Gradient checkpointing costs time and no number changes."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from tests.workers.training import tiny
from workers.errors import RunError
from workers.modeling import policy
from workers.modeling.lora import Lora
from workers.modeling.policy import Policy
from workers.modeling.rows import Block, Continuation, collate
from workers.rollouts.engine import Sampling
from workers.rollouts.transformers import TransformersEngine

CPU = torch.device("cpu")
IDS = torch.arange(10).unsqueeze(0)
LORA = Lora(4, 32, 3, "base")
WHEN: tuple[Literal["never"], Literal["always"]] = ("never", "always")


def forward(loaded: Policy) -> Tensor:
    learned = [Continuation(IDS[0].tolist(), range(1, IDS.shape[1]))]
    return loaded.logits(collate([[Block([], learned)]], IDS.device))


def gradients(loaded: Policy) -> tuple[Tensor, list[Tensor]]:
    logits = forward(loaded)
    logits.log_softmax(-1)[:, 3].sum().backward()
    return logits.detach(), [p.grad for p in loaded.model.parameters() if p.grad is not None]


def remembered(loaded: Policy) -> int:
    """Elements that a forward pass keeps for the backward pass, the parameters apart."""
    parameters = {p.data_ptr() for p in loaded.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(loaded)
    return sum(kept.values())


@pytest.mark.parametrize("adapters", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_numbers_are_identical_with_and_without(tmp_path: Path, family: str, adapters: Lora | None) -> None:
    folder = tiny.save(tmp_path / "model", family)
    plain, recomputed = (policy.load(folder, CPU, adapters, recompute=each) for each in WHEN)
    (logits, expected), (same_logits, given) = gradients(plain), gradients(recomputed)
    assert torch.equal(logits, same_logits)
    assert len(expected) == len(given) > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(given, expected, strict=True))


@pytest.mark.parametrize("adapters", [None, LORA], ids=["full", "lora"])
def test_less_is_remembered(base: Path, adapters: Lora | None) -> None:
    plain, recomputed = (remembered(policy.load(base, CPU, adapters, recompute=each)) for each in WHEN)
    assert recomputed < plain / 2


def test_sampling_keeps_its_cache_and_its_numbers(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    rollouts = []
    for recompute in WHEN:
        loaded = policy.load(base, CPU, recompute=recompute)
        gradients(loaded)
        engine = TransformersEngine(loaded.model, loaded.stop_ids, loaded.context_length)
        rollouts.append(engine.generate([[5, 6, 7]], 4, Sampling(1.0, 10, seed=1)))
    assert rollouts[0] == rollouts[1]
    assert "Caching is incompatible" not in caplog.text


def test_dropout_within_a_layer_stays_off(base: Path) -> None:
    from workers.modeling.compilation import Compilation
    from workers.modeling.recomputation import Recomputation

    loaded = policy.load(base, CPU)
    for layer in loaded.model.base_model.layers:
        layer.hidden_dropout = 0.5
    Recomputation(loaded.model, "always", loaded.device, Compilation())
    assert [layer.hidden_dropout for layer in loaded.model.base_model.layers] == [0.0, 0.0]
    assert not any(module.training for module in loaded.model.modules() if isinstance(module, nn.Linear))


def test_a_model_without_it_is_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.modeling import recomputation

    monkeypatch.setattr(recomputation, "GradientCheckpointingLayer", nn.Conv3d)
    policy.load(base, CPU, recompute="gpu")
    with pytest.raises(RunError, match="gradient_checkpointing to never"):
        policy.load(base, CPU, recompute="always")
