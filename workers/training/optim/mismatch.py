"""How far the policy that sampled is from the old policy that the trainer computes, and what corrects for it.

An engine with weights and kernels of its own gives a token another probability than the trainer does. An update whose
old policy is the trainer's then learns from samples of a slightly different policy; importance weights
``π_old/π_sampler`` undo that. An update whose old policy is the sampler's own needs none.

N response tokens, packed; ``old`` and ``sampler`` are the log-probabilities of the same tokens at the same temperature.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_FURTHEST = 20.0
"""Log-ratios beyond this are taken as this: their exponentials stay finite, and far beyond any cap."""
GEOMETRIC_TOKEN_CAP = 2.0


@dataclass(frozen=True)
class LogRatios:
    """``log π_old/π_sampler`` of N response tokens of B answers, in float64."""

    tokens: Tensor
    """``[N]``"""
    sequence_ids: Tensor
    """``[N]`` int64, which answer a token belongs to; 0 to B - 1. All tokens of an answer have to be here."""

    def of_answers(self) -> Tensor:
        """``[N]``: at each token that of its whole answer."""
        return self._summed(self.tokens)[self.sequence_ids]

    def geometric_mean(self) -> Tensor:
        """``[N]``: at each token the mean over its answer's tokens."""
        return (self._summed(self.tokens) / self._summed(torch.ones_like(self.tokens)))[self.sequence_ids]

    def _summed(self, values: Tensor) -> Tensor:
        number = int(self.sequence_ids.max()) + 1 if len(self.sequence_ids) else 0
        return values.new_zeros(number).index_add(0, self.sequence_ids, values)


def none(ratios: LogRatios, cap: float) -> Tensor:
    """1."""
    return torch.ones_like(ratios.tokens)


def token_truncate(ratios: LogRatios, cap: float) -> Tensor:
    """``min(ρ_t, cap)`` with ``ρ_t = π_old(a_t)/π_sampler(a_t)``: truncated importance sampling (Yao et al., 2025)."""
    return _exp(ratios.tokens).clamp(max=cap)


def token_mask(ratios: LogRatios, cap: float) -> Tensor:
    """``ρ_t``, and 0 outside ``[1/cap, cap]``: such a token is not learned from (IcePop, 2025)."""
    weights = _exp(ratios.tokens)
    return torch.where((weights <= cap) & (weights >= 1 / cap), weights, 0.0)


def sequence_truncate(ratios: LogRatios, cap: float) -> Tensor:
    """``min(Π_t ρ_t, cap)`` at each token of an answer."""
    return _exp(ratios.of_answers()).clamp(max=cap)


def sequence_mask(ratios: LogRatios, cap: float) -> Tensor:
    """``Π_t ρ_t``, and 0 where it is above ``cap``: such an answer is not learned from. Of long ones it keeps few."""
    weights = _exp(ratios.of_answers())
    return torch.where(weights <= cap, weights, 0.0)


def geometric_mask(ratios: LogRatios, cap: float) -> Tensor:
    """``min(ρ_t, 2)``, and 0 for answers with ``(Π_t ρ_t)^(1/n)`` outside ``[1/cap, cap]``, however long they are."""
    mean = _exp(ratios.geometric_mean())
    weights = token_truncate(ratios, GEOMETRIC_TOKEN_CAP)
    return torch.where((mean <= cap) & (mean >= 1 / cap), weights, 0.0)


CORRECTIONS: dict[str, Callable[[LogRatios, float], Tensor]] = {
    "none": none,
    "token-truncate": token_truncate,
    "token-mask": token_mask,
    "sequence-truncate": sequence_truncate,
    "sequence-mask": sequence_mask,
    "geometric-mask": geometric_mask,
}
"""By the names of the hyperparameter ``mismatch_correction``; each takes the log-ratios and the cap."""


def weights(old: Tensor, sampler: Tensor, sequence_ids: Tensor, correction: str, cap: float) -> Tensor:
    """Importance weights ``[N]`` that multiply the tokens' losses, detached, as a function of ``CORRECTIONS`` says.

    Args:
        sequence_ids: ``[N]`` int64, which answer a token belongs to; 0 to the number of answers less one. All tokens of
            an answer have to be here.

    Raises:
        ValueError: shapes that differ, or a cap of at most 1.
    """
    log_ratios = _log_ratios(old, sampler)
    if sequence_ids.shape != old.shape:
        raise ValueError(f"sequence_ids: {tuple(sequence_ids.shape)} where old has {tuple(old.shape)}")
    if not cap > 1:
        raise ValueError(f"cap: {cap} would change answers that both policies find equally likely; it must exceed 1")
    return CORRECTIONS[correction](LogRatios(log_ratios, sequence_ids), cap).to(old.dtype)


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
