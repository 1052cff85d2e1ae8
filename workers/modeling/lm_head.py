"""How a model makes logits of its last hidden states, where the loss layer can do the same without ever holding them.

Most models apply their output layer and nothing else. Some then scale the logits or cap them smoothly, by numbers in
their configuration. What the configuration announces counts only if the model's own logits bear it out.

T tokens of the probe, H hidden size, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap")
PROBE_TOKENS = 8
ROUNDINGS = 16
"""How many roundings, each of the largest logit's size, the same sums in another order may differ by."""


@dataclass(frozen=True)
class LogitTransform:
    """``softcap(logit_scale · (hidden @ weight.T + bias))``, with ``softcap(x) = cap tanh(x / cap)``."""

    logit_scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


@torch.no_grad()
def recognise(model: PreTrainedModel) -> tuple[nn.Linear, LogitTransform] | None:
    """The output layer and what follows it; None where the model does something else."""
    lm_head = model.get_output_embeddings()
    if not isinstance(lm_head, nn.Linear) or model.base_model is model:
        return None
    probe = torch.arange(PROBE_TOKENS, device=model.device).unsqueeze(0) % lm_head.out_features
    expected = model(probe).logits
    states = getattr(model.base_model(probe), "last_hidden_state", None)
    if states is None or states.shape[-1] != lm_head.in_features or states.dtype != lm_head.weight.dtype:
        return None
    plain = lm_head(states)
    if torch.equal(plain, expected):
        return lm_head, LogitTransform()
    room = ROUNDINGS * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    for transform in _announced(model.config.get_text_config()):
        if float((transform(plain.float()) - expected.float()).abs().max()) <= room:
            return lm_head, transform
    return None


def _announced(config: PreTrainedConfig) -> Iterator[LogitTransform]:
    """What the configuration's numbers may mean, all of them used first."""
    scales = [value for name in FACTORS if (value := _number(config, name)) is not None]
    scales += [1 / value for name in DIVISORS if (value := _number(config, name)) is not None]
    caps = [value for name in CAPS if (value := _number(config, name)) is not None]
    for cap in [*caps, None]:
        for scale in [*scales, 1.0]:
            yield LogitTransform(scale, cap)


def _number(config: PreTrainedConfig, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and value > 0 else None
