"""LoRA: the base model frozen, and low-rank adapters in float32 on every linear layer but the output layer.

The adapters are injected into the model itself, so that whatever runs it (training, the transformers engine, scoring)
runs the adapted model, and its output layer stays an ordinary one whose gradient nobody computes.

    h = base(x) + (alpha / rank) · B(A(x))       A random, B zero: training starts from the base model exactly
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workers.training import seeds

NAME = "default"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft's files put before the model's own names."""
UNCALLED = {"x_proj", "dt_proj", "out_proj"}
"""Layers of state space mixers whose weights are read past their ``forward``, where an adapter would not be seen."""


@dataclass(frozen=True)
class Lora:
    """What adapters a job trains."""

    rank: int
    alpha: int
    seed: int
    """The job's seed; the adapters' first values follow from it."""
    base: str
    """The base model's id, which the adapter's configuration names."""


def attach(model: PreTrainedModel, lora: Lora) -> LoraConfig:
    """Put fresh adapters into ``model`` and freeze the rest. Raises ``ValueError`` where no layer can be adapted."""
    targets = dict(_linear_layers(model))
    if not targets:
        raise ValueError(f"{type(model).__name__} has no linear layer that an adapter could be put on")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=_shortened(model, targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in targets.values()),
        task_type="CAUSAL_LM",
        base_model_name_or_path=lora.base,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seeds.derive(lora.seed, "lora", 0))
        inject_adapter_in_model(config, model, NAME)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # peft makes them in the base's dtype; an optimizer's small steps would be lost in bfloat16.
            parameter.data = parameter.data.float()
    return config


def module_names(config: LoraConfig) -> tuple[str, ...]:
    """The last names of the adapted modules, like ``("k_proj", "q_proj")``."""
    return tuple(sorted({name.rpartition(".")[2] for name in config.target_modules}))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights under the names of peft's files."""
    return {
        PREFIX + name.replace(f".{NAME}.", "."): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def save(weights: Mapping[str, Tensor], config: LoraConfig, folder: Path) -> None:
    """Write an adapter's weights, named as in ``tensors``, into ``folder`` in peft's format."""
    folder.mkdir(exist_ok=True)
    weights = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    settings: dict[str, Any] = config.to_dict() | {"inference_mode": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    (folder / CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def merged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of the base model's names with the adapters added in float32, one at a time."""
    layers = {f"{name}.base_layer.weight": module for name, module in model.named_modules() if _adapted(module)}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        layer = layers.get(name)
        if layer is not None:
            tensor = tensor.float() + layer.get_delta_weight(NAME)
        yield name.replace(".base_layer.", "."), tensor


def _adapted(module: nn.Module) -> bool:
    return isinstance(module, LoraLayer)


def _linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    output = model.get_output_embeddings()
    state_space = any(name.endswith(("dt_proj", "conv1d")) for name, _ in model.named_modules())
    uncalled = UNCALLED if state_space else set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not output and name.rpartition(".")[2] not in uncalled:
            yield name, module


def _shortened(model: PreTrainedModel, targets: dict[str, nn.Module]) -> list[str]:
    """Last names instead of full ones, as people and vLLM write them, where these mean the same layers."""
    short = {name.rpartition(".")[2] for name in targets}
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in short}
    return sorted(short if meant == targets.keys() else targets)
