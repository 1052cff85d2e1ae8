"""KL to a reference policy from the sampled tokens alone: Schulman's estimators k1, k2 and k3."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from troll import checks

Estimator = Literal["k1", "k2", "k3"]
_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class Reference:
    """A reference policy to stay close to."""

    log_probs: Tensor
    """`[...]` its log-probability of each sampled token, at the sampling temperature."""
    coefficient: float
    """What the divergence is multiplied by in the loss."""
    estimator: Estimator = "k3"

    def __post_init__(self) -> None:
        checks.floating("reference.log_probs", self.log_probs)
        checks.not_negative("reference.coefficient", self.coefficient)
        checks.one_of("reference.estimator", self.estimator, get_args(Estimator))


def reference_kl(log_probs: Tensor, reference_log_probs: Tensor, estimator: Estimator = "k3") -> Tensor:
    """Per-token estimate of `KL(policy || reference)` in nats, differentiable in `log_probs`, both `[...]`.

    With `d = log reference - log policy`: k1 is `-d` (unbiased, and can be negative; its gradient is 0 on average), k2
    is `d^2 / 2` (its gradient is the unbiased one), k3 is `exp(d) - 1 - d` (unbiased and never negative).
    """
    checks.one_of("estimator", estimator, get_args(Estimator))
    difference = reference_log_probs - log_probs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return 0.5 * difference.square()
    # Where the policy has all but dropped a token the exponential would drown every other token of the batch.
    return torch.expm1(difference.clamp(max=_MAX_LOG_RATIO)) - difference
