"""Where the geodesic from the old policy to the new one leaves the trust region, for many rows at once.

With `s = log new - log old` and `psi(beta) = log sum(old e^(beta s))`, its point at `beta` is `old e^(beta s - psi)`:

    K(beta)  = KL(pi_beta || old) = beta psi'(beta) - psi(beta),   K'(beta) = beta psi''(beta),
    psi'     = E_pi[s],   psi'' = Var_pi[s].

Close to the old policy `K` is `beta^2 Var / 2`, so its square root is nearly a straight line. The solver keeps a
bracket with value and slope of `sqrt(K)` at both ends, and reads the next `beta` off the monotone cubic through them,
the other way round. Where such steps come no closer to the bound the bracket is halved. What comes back is the lower
end of the bracket, a point that was evaluated: its KL is measured, and on the side that satisfies the constraint. Two
or three evaluations are usually enough. M rows, U slots.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Bisection alone, at every third step, ends long before.
_MAX_STEPS = 600
# After so many steps a row is bisected unless they halved its distance from the bound.
_PATIENCE = 3
# How many roundings of the quantities a KL is summed from stand for its error.
_ROUNDINGS = 2.0
# The rows of a point's `[5, M]` tensor: the slope is `d beta / d sqrt(K)`, the noise what rounding may do to the KL.
_BETA, _PARTITION, _KL, _SLOPE, _NOISE = range(5)
_BITS = 1 / math.log(2)
# Sums below this have lost terms that count to underflow.
_VANISHING = {kind: 1e3 * torch.finfo(kind).tiny / torch.finfo(kind).eps for kind in (torch.float32, torch.float64)}


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


def exp_(exponent: Tensor) -> Tensor:
    """`e^exponent`, in place: on a CPU torch's `exp2` takes a third of the time of its `exp`."""
    return exponent.mul_(_BITS).exp2_()


def solve(
    log_weight: Tensor,
    score: Tensor,
    pull: Tensor,
    partition_old: Tensor,
    partition_new: Tensor,
    centre: Tensor | None,
    kl_bound: float,
) -> Solution:
    """Finds the largest `beta` in [0, 1] with `K(beta) <= kl_bound`, to the precision of the dtype, from below.

    Args:
        log_weight: `[M, U]` log of the old mass per slot, -inf for slots that take no part.
        score: `[M, U]` `log new - log old`, less the row's `centre`; finite.
        pull: `[M, U]` new mass per slot times its score. Overwritten: it becomes the work space.
        partition_old: `[M]` `psi(0)`.
        partition_new: `[M]` `psi(1)`.
        centre: `[M]`, None for 0. `log_partition` belongs to the scores that are less it.
    """
    total, mean = partition_new.exp(), pull.sum(-1)
    second = pull.mul_(score).sum(-1)
    partition_high = partition_new if centre is None else partition_new - centre
    high = _point(torch.ones_like(total), partition_high, mean / total, second / total)
    low = _start(partition_old, high)
    feasible, loose = low[_KL] <= kl_bound, high[_KL] <= kl_bound
    low = torch.where(loose, high, low)
    tight = feasible & ~loose
    rows = tight.nonzero().squeeze(-1)
    # Rows that need no refining stay where they are in it; sorting out many rows costs more than taking a few along.
    if 2 * len(rows) > len(tight):
        low = _refine(log_weight, score, pull, low, high, kl_bound)
    elif len(rows):
        low[:, rows] = _refine(log_weight[rows], score[rows], pull, low[:, rows], high[:, rows], kl_bound)
    kl = torch.where(feasible, low[_KL], 0.0)
    return Solution(low[_BETA], low[_PARTITION], kl, tight, feasible, low[_NOISE])


def _start(log_partition: Tensor, end: Tensor) -> Tensor:
    """The point at `beta = 0`, `[5, M]`; its slope is that of the parabola through `sqrt(K) = 0` there and the end."""
    zero = torch.zeros_like(log_partition)
    parabola = (2 * end[_KL].clamp(min=0).sqrt() - 1 / end[_SLOPE]).clamp_(min=0)
    noise = zero + _ROUNDINGS * torch.finfo(zero.dtype).eps
    return torch.stack([zero, log_partition, -log_partition, 1 / parabola, noise])


def _point(beta: Tensor, log_partition: Tensor, mean: Tensor, second: Tensor) -> Tensor:
    """The point at `beta`, `[5, M]`, from its log-partition and the first two moments of the scores there."""
    reach, curvature = beta * mean, (second - mean.square()).clamp_(min=0).mul_(beta)
    kl = reach - log_partition
    slope = kl.clamp(min=0).sqrt_().mul_(2).div_(curvature)
    noise = reach.abs().add_(beta * curvature).add_(1).mul_(_ROUNDINGS * torch.finfo(beta.dtype).eps)
    return torch.stack([beta, log_partition, kl, slope, noise])


def _evaluate(log_weight: Tensor, score: Tensor, beta: Tensor, work: Tensor) -> Tensor:
    """The point at `beta`, `[5, M]`; `work` `[M, U]` is overwritten."""
    mass = exp_(torch.addcmul(log_weight, score, beta.unsqueeze(-1), out=work))
    total = mass.sum(-1)
    log_partition = total.log()
    # `psi` is never much above 0. Where it is so low that masses vanish, the row's peak is taken out before.
    vanishing = (total < _VANISHING[total.dtype]).nonzero().squeeze(-1)
    if len(vanishing):
        exponent = torch.addcmul(log_weight[vanishing], score[vanishing], beta[vanishing].unsqueeze(-1))
        peak = exponent.amax(-1, keepdim=True)
        mass[vanishing] = exp_(exponent.sub_(peak))
        total[vanishing] = exponent.sum(-1)
        log_partition[vanishing] = total[vanishing].log() + peak.squeeze(-1)
    mass.mul_(score)
    mean = mass.sum(-1).div_(total)
    return _point(beta, log_partition, mean, mass.mul_(score).sum(-1).div_(total))


def _interpolate(low: Tensor, high: Tensor, target: Tensor) -> Tensor:
    """`beta` `[M]` at `sqrt(K) = target`, read off a monotone cubic through both ends of the bracket.

    Slopes above three times the chord are cut, which keeps the cubic monotone and its value inside the bracket.
    """
    left, right = low[_KL].clamp(min=0).sqrt_(), high[_KL].sqrt()
    chord, width = high[_BETA] - low[_BETA], right - left
    t = (target - left).div_(width)
    rest, steepest = 1 - t, 3 * chord
    rise_low, rise_high = low[_SLOPE] * width, high[_SLOPE] * width
    rise = torch.minimum(rise_low, steepest) * rest - torch.minimum(rise_high, steepest) * t
    cubic = low[_BETA] + t * rest * rise + chord * t.square() * (3 - 2 * t)
    # Far from the other end its shape says little: follow the tangent of the near one, if it stays in the bracket.
    near_low = t < 0.5
    tangent = torch.where(near_low, low[_BETA] + rise_low * t, high[_BETA] - rise_high * rest)
    cut = torch.where(near_low, rise_low, rise_high) > steepest
    return torch.where(cut & (tangent > low[_BETA]) & (tangent < high[_BETA]), tangent, cubic)


def _refine(log_weight: Tensor, score: Tensor, work: Tensor, low: Tensor, high: Tensor, kl_bound: float) -> Tensor:
    """Shrinks the brackets `low`..`high` (`[5, M]` each) until they are solved; returns the solutions, `[5, M]`.

    The steps aim a few rounding errors below the bound, so that what they end at lies on the side that satisfies it.
    Rows leave the iteration as they are solved, once that is half of them.
    """
    result, place = low.clone(), torch.arange(low.shape[1], device=low.device)
    epsilon = 2 * torch.finfo(score.dtype).eps
    distance = torch.full_like(high[_KL], torch.inf)
    for step in range(1, _MAX_STEPS + 1):
        below, above = kl_bound - low[_KL], high[_KL] - kl_bound
        margin = torch.where(below < above, low[_NOISE], high[_NOISE]).clamp_(max=0.25 * kl_bound)
        beta = _interpolate(low, high, (kl_bound - margin).sqrt_())
        useful = (beta > low[_BETA]) & (beta < high[_BETA])
        if step % _PATIENCE == 0:
            nearest = torch.minimum(below, above)
            useful &= nearest <= 0.5 * distance
            distance = nearest
        beta = torch.where(useful, beta, 0.5 * (low[_BETA] + high[_BETA]))
        point = _evaluate(log_weight, score, beta, work[: len(beta)])
        outside = point[_KL] > kl_bound
        low, high = torch.where(outside, low, point), torch.where(outside, point, high)
        short = kl_bound - low[_KL] > 2 * torch.maximum(low[_NOISE], margin)
        # What is not a number is not solved by going on.
        left = (short & (high[_BETA] - low[_BETA] > epsilon * high[_BETA])).nonzero().squeeze(-1)
        if len(left) <= 0.5 * len(short):
            result[:, place] = low
            if not len(left):
                break
            place, low, high, distance = place[left], low[:, left], high[:, left], distance[left]
            log_weight, score = log_weight[left], score[left]
    result[:, place] = low
    return result
