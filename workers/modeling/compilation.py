"""torch.compile for a model's layers, where rows are read: a few fused kernels in the place of many small ones.

Layers of a kind share their code, and so do rows of all shapes. What is read for training is compiled and nothing else:
sampling has caches and single tokens.

Compiled code rounds otherwise than the layers as they are, and otherwise again where it keeps something for a backward
pass.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

BACKEND = "inductor"
VARIANTS = 64
"""Of a layer's code, by kinds of layers, masks and whether there is one row; past them torch compiles no more."""


class CompilationError(Exception):
    """The layers cannot be compiled; the text says why, in a line."""


def reason(error: BaseException) -> str:
    """Why torch could not compile something, in a line."""
    cause = getattr(error, "inner_exception", error)
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


class Compilation:
    """``with compilation: model(...)`` runs the layers of the model that was given to ``begin`` compiled."""

    def __init__(self) -> None:
        self._layers: list[nn.Module] = []
        self._forwards: list[Callable[..., Any]] = []

    def begin(self, model: PreTrainedModel) -> None:
        """Raises ``CompilationError`` where the model has no layers that can be."""
        torch._dynamo.config.recompile_limit = VARIANTS
        # Of two variants that fit a shape the first is taken each time, and not the one that was used last: what is
        # computed again, or by the policy before and after, is the same code.
        torch._C._dynamo.eval_frame._set_lru_cache(False)  # type: ignore[attr-defined]
        self._layers = _layers(model)
        self._forwards = [torch.compile(layer.forward, dynamic=True, backend=BACKEND) for layer in self._layers]

    def end(self) -> None:
        """From now on the layers run as they are."""
        self._layers, self._forwards = [], []

    def __bool__(self) -> bool:
        return bool(self._layers)

    def __enter__(self) -> None:
        for layer, forward in zip(self._layers, self._forwards, strict=True):
            layer.forward = forward

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer in self._layers:
            # The class's is in its place again.
            del layer.forward


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    name = type(model).__name__
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if model._is_stateful or "linear_attention" in kinds:
        # Its layers go through the tokens one by one or in blocks, and would be compiled for each number of them.
        raise CompilationError(f"{name} keeps a state from token to token")
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise CompilationError(f"{name} has no layers of transformers' own kind")
    return layers
