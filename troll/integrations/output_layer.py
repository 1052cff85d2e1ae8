"""Where hidden states and the output layer of a Hugging Face language model meet, handed to whoever wants to read them.

TRL gives a model a forward pass that returns log-probabilities of labels instead of logits (`fused_lm_head=True`).
`divert_output_layer` puts itself in front of that one: while a reader is set it gets the hidden states and the matrix,
inside the forward pass, where data-parallel wrappers expect every parameter to be used.

B sequences, L tokens, H hidden size, V vocabulary.
"""

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl.trainer.utils import FusedCausalLMOutput


@dataclass(frozen=True)
class OutputLayer:
    """The last step of a forward pass: `logits = softcap(logit_scale * (hidden @ weight.T + bias))`."""

    hidden: Tensor
    """`[B, L - 1, H]` hidden states, each of which predicts the next token."""
    labels: Tensor
    """`[B, L - 1]` the tokens predicted, -100 where nobody asks."""
    weight: Tensor
    """`[V, H]`, of the dtype of `hidden`."""
    bias: Tensor | None
    """`[V]`"""
    logit_scale: float
    softcap: float | None


@dataclass(frozen=True)
class Reading:
    """What a reader returns for the last T positions, `[B, T]`."""

    log_probs: Tensor
    entropy: Tensor


Reader = Callable[[OutputLayer], Reading]


def divert_output_layer(model: PreTrainedModel, reader: Callable[[], Reader | None], float32: bool) -> None:
    """Lets `reader()`, where it is not None, answer `model(..., labels=..., fused_lm_head=True)`.

    Args:
        float32: whether to read in float32 whatever the model's dtype (TRL's `cast_lm_head_to_fp32`).
    """
    without_reader = model.forward
    scale, softcap = logit_scale(model), getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    # `generate` checks its arguments against the signature.
    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any
    ) -> Any:
        read = reader()
        if not fused_lm_head:
            return without_reader(*args, **kwargs) if labels is None else without_reader(*args, labels=labels, **kwargs)
        if read is None or labels is None:
            return without_reader(*args, labels=labels, fused_lm_head=True, **kwargs)
        outputs = self.base_model(*args, **kwargs, use_cache=False)
        layer = self.get_output_embeddings()
        hidden = outputs.last_hidden_state[:, :-1].to(layer.weight.device)
        hidden, weight, bias = _same_dtype(hidden, _whole(layer.weight), _whole(layer.bias), float32)
        # The reader chooses its own precision: sums in float32 at least, from operands of the model's dtype.
        with torch.autocast(hidden.device.type, enabled=False):
            reading = read(OutputLayer(hidden, labels[:, 1:].to(hidden.device), weight, bias, scale, softcap))
        return FusedCausalLMOutput(
            log_probs=reading.log_probs, entropy=reading.entropy, aux_loss=_balancing_loss(self, outputs, kwargs)
        )

    model.forward = types.MethodType(forward, model)


def logit_scale(model: PreTrainedModel) -> float:
    """What the model's own forward multiplies its logits by, under the name its family has for it."""
    config = model.config.get_text_config()
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)


def _whole(parameter: Tensor | None) -> Tensor | None:
    """A parameter that FSDP2 has sharded, gathered; the gradient finds its way back."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _same_dtype(
    hidden: Tensor, weight: Tensor | None, bias: Tensor | None, float32: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Operands in the dtype a linear layer would have used here."""
    assert weight is not None
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    dtype = torch.float32 if float32 else dtype
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _balancing_loss(model: PreTrainedModel, outputs: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The load-balancing loss of a mixture of experts, where the caller asked for router logits."""
    if not kwargs.get("output_router_logits"):
        return None
    config = model.config.get_text_config()
    mask = kwargs.get("attention_mask")
    experts, chosen = config.num_experts, config.num_experts_per_tok
    loss: Tensor | None = load_balancing_loss_func(outputs.router_logits, experts, chosen, mask)
    return loss
