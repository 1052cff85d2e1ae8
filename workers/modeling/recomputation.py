"""Gradient checkpointing: layers remember their input alone and are computed again in the backward pass.

transformers' layers recompute in training mode only, which would turn dropout on as well, and keep no cache for
sampling while they do. So the layers alone are in training mode, without dropout, and recompute only inside ``with``.
"""

from contextlib import nullcontext
from functools import partial
from types import TracebackType
from typing import Literal

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from workers.modeling.compilation import Compilation

When = Literal["gpu", "always", "never"]


class Recomputation:
    """``with recomputation: model(...)`` recomputes in the backward pass, where gradients are recorded.

    Layers that ran inside ``with compilation`` are recomputed inside it.

    ``when`` ``"gpu"`` means: if ``device`` is one and the model has layers that can be recomputed. Raises
    ``ValueError`` when it should ``"always"`` and the model has no such layers.
    """

    def __init__(self, model: PreTrainedModel, when: When, device: torch.device, compilation: Compilation) -> None:
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if when == "always" and not layers:
            name = type(model).__name__
            raise ValueError(f"{name} has no gradient checkpointing; set gradient_checkpointing to never")
        wanted = when == "always" or (when == "gpu" and device.type == "cuda")
        self._layers = layers if wanted else []
        for layer in self._layers:
            layer._gradient_checkpointing_func = partial(
                checkpoint,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), compilation),
            )
            layer.training = True
            for name, value in vars(layer).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(layer, name, 0.0)

    def __enter__(self) -> None:
        self._switch(torch.is_grad_enabled())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._switch(False)

    def _switch(self, on: bool) -> None:
        for layer in self._layers:
            layer.gradient_checkpointing = on
