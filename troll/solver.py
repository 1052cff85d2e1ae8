"""Where the geodesic from the old policy to the new one leaves the trust region, for many rows at once.

With `s = log new - log old` and `psi(beta) = log sum(old e^(beta s))`, its point at `beta` is `old e^(beta s - psi)`:

    K(beta)  = KL(pi_beta || old) = beta psi'(beta) - psi(beta),   K'(beta) = beta psi''(beta),
    psi'     = E_pi[s],   psi'' = Var_pi[s].

Close to the old policy `K` is `beta^2 Var / 2`, so its square root is nearly a straight line. The solver keeps a
bracket with value and slope of `sqrt(K)` at both ends, and reads the next `beta` off the monotone cubic through them,
the other way round: two or three evaluations are usually enough. M rows, U slots.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_MAX_STEPS = 80
# How many roundings of the quantities a KL is summed from stand for its error.
_ROUNDINGS = 2.0
# The rows of a point's `[5, M]` tensor: `d beta / d sqrt(K)` is the slope, what rounding may do to the KL the noise.
_BETA, _PARTITION, _KL, _SLOPE, _NOISE = range(5)


class Solution(NamedTuple):
    """The largest `beta` of `[M]` rows that satisfies the constraint."""

    beta: Tensor
    log_partition: Tensor
    """`psi(beta)`, which normalises the projected row."""
    kl: Tensor
    tight: Tensor
    """bool: the constraint decides `beta`. Not so if the shared support alone brings a row inside the region."""
    feasible: Tensor
    """bool: some point on the geodesic satisfies the constraint."""
    noise: Tensor
    """How far rounding may have moved `kl`."""


def solve(log_weight: Tensor, mass_new: Tensor, score: Tensor, kl_bound: float) -> Solution:
    """Finds the largest `beta` in [0, 1] with `K(beta) <= kl_bound`, to the precision of the dtype, from below.

    Args:
        log_weight: `[M, U]` log of the old mass per slot, -inf for slots that take no part.
        mass_new: `[M, U]` the new mass per slot.
        score: `[M, U]` `log new - log old`, finite.
    """
    low, high = _start(log_weight.exp(), score), _end(mass_new, score)
    feasible, loose = low[_KL] <= kl_bound, high[_KL] <= kl_bound
    low = torch.where(loose, high, low)
    tight = feasible & ~loose
    rows = tight.nonzero().squeeze(-1)
    # Rows that need no refining stay where they are in it; sorting out many rows costs more than taking a few along.
    if 2 * len(rows) > len(tight):
        low = _refine(log_weight, score, low, high, kl_bound)
    elif len(rows):
        low[:, rows] = _refine(log_weight[rows], score[rows], low[:, rows], high[:, rows], kl_bound)
    kl = torch.where(feasible, low[_KL], 0.0)
    return Solution(low[_BETA], low[_PARTITION], kl, tight, feasible, low[_NOISE])


def _moments(mass: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moment `[M]` of the scores."""
    weighted = mass * score
    return weighted.sum(-1), weighted.mul_(score).sum(-1)


def _start(mass_old: Tensor, score: Tensor) -> Tensor:
    """The point at `beta = 0`, `[5, M]`: `sqrt(K)` leaves it as the straight line `beta sqrt(Var / 2)`."""
    total = mass_old.sum(-1)
    first, second = _moments(mass_old, score)
    variance = (second / total - (first / total).square()).clamp_(min=0)
    log_partition, zero = total.log(), torch.zeros_like(total)
    noise = zero + _ROUNDINGS * torch.finfo(total.dtype).eps
    return torch.stack([zero, log_partition, -log_partition, (2 / variance).sqrt(), noise])


def _end(mass_new: Tensor, score: Tensor) -> Tensor:
    """The point at `beta = 1`, `[5, M]`."""
    total = mass_new.sum(-1)
    first, second = _moments(mass_new, score)
    return _point(torch.ones_like(total), total.log(), first / total, second / total)


def _point(beta: Tensor, log_partition: Tensor, mean: Tensor, second: Tensor) -> Tensor:
    """The point at `beta`, `[5, M]`, from its log-partition and the first two moments of the scores there."""
    reach, curvature = beta * mean, (second - mean.square()).clamp_(min=0).mul_(beta)
    kl = reach - log_partition
    slope = kl.clamp(min=0).sqrt_().mul_(2).div_(curvature)
    noise = reach.abs().add_(beta * curvature).add_(1).mul_(_ROUNDINGS * torch.finfo(beta.dtype).eps)
    return torch.stack([beta, log_partition, kl, slope, noise])


def _evaluate(log_weight: Tensor, score: Tensor, beta: Tensor) -> Tensor:
    """The point at `beta`, `[5, M]`."""
    exponent = torch.addcmul(log_weight, score, beta.unsqueeze(-1))
    peak = exponent.amax(-1)
    mass = exponent.sub_(peak.unsqueeze(-1)).exp_()
    total = mass.sum(-1)
    first, second = _moments(mass, score)
    return _point(beta, total.log() + peak, first / total, second / total)


def _interpolate(low: Tensor, high: Tensor, target: Tensor) -> Tensor:
    """`beta` at `sqrt(K) = target`, read off a monotone cubic through both ends of the bracket.

    Slopes above three times the chord are cut, which keeps the cubic monotone and its value inside the bracket.
    """
    left, right = low[_KL].clamp(min=0).sqrt(), high[_KL].sqrt()
    chord, width = high[_BETA] - low[_BETA], right - left
    t = (target - left) / width
    rest, near_low, steepest = 1 - t, t < 0.5, 3 * chord
    rise_low, rise_high = low[_SLOPE] * width, high[_SLOPE] * width
    rise = torch.minimum(rise_low, steepest) * rest - torch.minimum(rise_high, steepest) * t
    cubic = low[_BETA] + t * rest * rise + chord * t.square() * (3 - 2 * t)
    # Far from the other end its shape says little: follow the tangent of the near one, if it stays in the bracket.
    tangent = torch.where(near_low, low[_BETA] + rise_low * t, high[_BETA] - rise_high * rest)
    cut = torch.where(near_low, rise_low, rise_high) > steepest
    return torch.where(cut & (tangent > low[_BETA]) & (tangent < high[_BETA]), tangent, cubic)


def _refine(log_weight: Tensor, score: Tensor, low: Tensor, high: Tensor, kl_bound: float) -> Tensor:
    """Shrinks the brackets `low`..`high` (`[5, M]` each) until they are solved; returns the lower ends.

    The steps aim a few rounding errors below the bound, so that the point that is accepted lies on the bracket side
    that satisfies it. Rows leave the iteration as they are solved, once that is half of them.
    """
    result, place = low.clone(), torch.arange(low.shape[1], device=low.device)
    epsilon = 2 * torch.finfo(score.dtype).eps
    for step in range(_MAX_STEPS):
        nearer_low = kl_bound - low[_KL] < high[_KL] - kl_bound
        margin = torch.where(nearer_low, low[_NOISE], high[_NOISE]).clamp(max=0.25 * kl_bound)
        beta = _interpolate(low, high, (kl_bound - margin).sqrt())
        # Every eighth step halves the bracket, whatever the curve looks like.
        inside = (beta > low[_BETA]) & (beta < high[_BETA]) & (step % 8 != 7)
        beta = torch.where(inside, beta, 0.5 * (low[_BETA] + high[_BETA]))
        point = _evaluate(log_weight, score, beta)
        above = point[_KL] > kl_bound
        low, high = torch.where(above, low, point), torch.where(above, point, high)
        close = low[_KL] >= kl_bound - 2 * torch.maximum(low[_NOISE], margin)
        left = (~close & (high[_BETA] - low[_BETA] > epsilon * high[_BETA])).nonzero().squeeze(-1)
        if len(left) <= 0.5 * len(close):
            result[:, place] = low
            if not len(left):
                return result
            place, low, high = place[left], low[:, left], high[:, left]
            log_weight, score = log_weight[left], score[left]
    result[:, place] = low
    return result
