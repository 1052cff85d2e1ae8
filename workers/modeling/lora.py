"""LoRA: the base model frozen, and low-rank adapters in float32 on its linear layers, but not on the output layer.

The adapters are injected into the model itself, so that whatever runs it (training, the transformers engine, scoring)
runs the adapted model, and its output layer stays an ordinary one whose gradient nobody computes.

    h = base(x) + (alpha / rank) · B(A(x))       A random, B zero: training starts from the base model exactly

Left out are layers whose weights are read past their ``forward``, and those whose name peft takes for another's: of
some mixtures it reads ``gate_proj``, ``up_proj`` and ``down_proj`` as the experts' fused weights.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from workers.modeling import seeds

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
    """Put fresh adapters into ``model`` and freeze the rest.

    Raises ``ValueError`` where no layer can be adapted, or others would be than was meant.
    """
    linear = dict(_linear_layers(model))
    names = _as_written(model, {_last(name) for name in linear})
    targets = {name: module for name, module in linear.items() if _last(name) in names}
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
    adapted = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if adapted != targets.keys():
        raise ValueError(f"adapters cannot be put on {sorted(adapted ^ targets.keys())[:5]} of {type(model).__name__}")
    for parameter in model.parameters():
        if parameter.requires_grad:
            # peft makes them in the base's dtype; an optimizer's small steps would be lost in bfloat16.
            parameter.data = parameter.data.float()
    return config


@contextmanager
def switched_off(model: PreTrainedModel) -> Iterator[None]:
    """Inside, ``model`` is its base model; one without adapters is that anyway."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    # Not peft's ``enable_adapters``, which freezes the adapters meanwhile: who is spread over ranks must not change so.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def module_names(config: LoraConfig) -> tuple[str, ...]:
    """The last names of the adapted modules, like ``("k_proj", "q_proj")``."""
    return tuple(sorted({_last(name) for name in config.target_modules}))


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


def stored_names(model: PreTrainedModel) -> dict[str, str]:
    """What the weights of the adapted layers are called in the base model's files, by the layers' own names.

    Raises ``ValueError`` where a layer's weight is not a tensor of the same shape there.
    """
    names: dict[str, str] = {}
    for layer, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        weight = torch.empty(module.get_base_layer().weight.shape, device="meta")
        stored = revert_weight_conversion(model, {f"{layer}.weight": weight})
        if [tensor.shape for tensor in stored.values()] != [weight.shape]:
            raise ValueError(f"the weight of {layer} is not stored as it is used: {sorted(stored)}")
        names[layer] = next(iter(stored))
    return names


def difference(weights: Mapping[str, Tensor], layer: str, config: LoraConfig) -> Tensor:
    """What an adapter (``weights`` named as in ``tensors``) adds to the weight of a layer, in float32."""
    down, up = (weights[f"{PREFIX}{layer}.lora_{side}.weight"] for side in "AB")
    added: Tensor = (up @ down) * (config.lora_alpha / config.r)
    return added.T if config.fan_in_fan_out else added


def _linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    output = model.get_output_embeddings()
    state_space = any(name.endswith(("dt_proj", "conv1d")) for name, _ in model.named_modules())
    uncalled = UNCALLED if state_space else set()
    for name, module in model.named_modules():
        # A class of its own with another forward, like a router's, is no linear layer to its caller.
        linear = type(module).forward in (nn.Linear.forward, Conv1D.forward)
        if linear and module is not output and _last(name) not in uncalled:
            yield name, module


def _as_written(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """Those of the layers' last names that peft does not take for something else in this architecture."""
    conversions, kept = get_model_conversion_mapping(model), set()
    for name in names:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model, conversions)
        except ValueError:
            continue  # one of several that it would take for parts of one weight
        if set(config.target_modules) == {name} and not config.target_parameters:
            kept.add(name)
    return kept


def _shortened(model: PreTrainedModel, targets: dict[str, nn.Module]) -> list[str]:
    """Last names instead of full ones, as people and vLLM write them, where these mean the same layers."""
    short = {_last(name) for name in targets}
    meant = {name for name, _ in model.named_modules() if _last(name) in short}
    return sorted(short if meant == targets.keys() else targets)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
