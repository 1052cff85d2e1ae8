"""How far the policy that sampled is from the old policy that the trainer computes, and what corrects for it.

An engine with weights and kernels of its own gives a token another probability than the trainer does. An update whose
old policy is the trainer's then learns from samples of a slightly different policy; importance weights
``π_old/π_sampler`` undo that. An update whose old policy is the sampler's own needs none.

N response tokens, packed; ``old`` and ``sampler`` are the log-probabilities of the same tokens at the same temperature.
"""

from typing import Literal

import torch
from torch import Tensor

Correction = Literal["none", "token-truncate", "sequence-mask"]
DEFAULT_CAPS = {"token-truncate": 2.0, "sequence-mask": 3.0}
_FURTHEST = 20.0
"""Log-ratios beyond this are taken as this: their exponentials stay finite, and far beyond any cap."""


def weights(
    old: Tensor, sampler: Tensor, sequence_ids: Tensor, correction: Correction, cap: float | None = None
) -> Tensor:
    """Importance weights ``[N]`` that multiply the tokens' losses, detached.

    ``"token-truncate"``: ``min(π_old(a_t)/π_sampler(a_t), cap)`` per token (Yao et al., 2025, truncated importance
    sampling). ``"sequence-mask"``: the ratio of the whole answer's probabilities at each of its tokens, and 0 where it
    is above ``cap``: such an answer is not learned from. Of long answers it keeps few. ``"none"``: ones.

    Args:
        sequence_ids: ``[N]`` int64, which answer a token belongs to; 0 to the number of answers less one. All tokens of
            an answer have to be here.
        cap: ``DEFAULT_CAPS`` where it is None.

    Raises:
        ValueError: shapes that differ, or a cap of at most 1.
    """
    log_ratios = _log_ratios(old, sampler)
    if sequence_ids.shape != old.shape:
        raise ValueError(f"sequence_ids: {tuple(sequence_ids.shape)} where old has {tuple(old.shape)}")
    if correction == "none":
        return torch.ones_like(old)
    bound = DEFAULT_CAPS[correction] if cap is None else cap
    if not bound > 1:
        raise ValueError(f"cap: {bound} would change answers that both policies find equally likely; it must exceed 1")
    if correction == "token-truncate":
        return _exp(log_ratios).clamp(max=bound).to(old.dtype)
    number = int(sequence_ids.max()) + 1 if len(sequence_ids) else 0
    ratios = _exp(log_ratios.new_zeros(number).index_add(0, sequence_ids, log_ratios))
    return torch.where(ratios <= bound, ratios, 0.0)[sequence_ids].to(old.dtype)


def metrics(old: Tensor, sampler: Tensor, weights: Tensor | None = None) -> dict[str, float]:
    """The mismatch of a step's tokens, in nats, and the weights that were made of it.

    ``kl_k1`` and ``kl_k3`` estimate ``KL(π_sampler ‖ π_old)``: k1 without bias, k3 with less variance and
    never below 0. ``effective_sample_size`` is the share of the tokens that equal weights would need.

    Returns an empty dictionary where there are no tokens. Raises ``ValueError`` on shapes that differ.
    """
    log_ratios = _log_ratios(old, sampler)
    if not len(log_ratios):
        return {}
    numbers = {
        "mismatch_abs_mean": log_ratios.abs().mean(),
        "mismatch_abs_max": log_ratios.abs().max(),
        "mismatch_kl_k1": -log_ratios.mean(),
        "mismatch_kl_k3": (_exp(log_ratios) - 1 - log_ratios).mean(),
    }
    if weights is not None:
        numbers |= {
            "mismatch_weight_mean": weights.double().mean(),
            "mismatch_weight_min": weights.min(),
            "mismatch_weight_max": weights.max(),
            "mismatch_fraction_masked": (weights == 0).double().mean(),
            "mismatch_effective_sample_size": _effective_share(weights.double()),
        }
    return {name: float(value) for name, value in numbers.items()}


def _effective_share(weights: Tensor) -> Tensor:
    """Of how many equal weights' worth the weights are, ``(Σw)² / Σw²``, as a share of their number."""
    return weights.sum().square() / (len(weights) * weights.square().sum()).clamp(min=torch.finfo(weights.dtype).tiny)


def _log_ratios(old: Tensor, sampler: Tensor) -> Tensor:
    if old.shape != sampler.shape or old.dim() != 1:
        raise ValueError(f"old, sampler: {tuple(old.shape)} and {tuple(sampler.shape)} are not one shape [N]")
    return old.detach().double() - sampler.detach().double()


def _exp(log_ratios: Tensor) -> Tensor:
    return log_ratios.clamp(-_FURTHEST, _FURTHEST).exp()
