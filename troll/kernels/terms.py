# mypy: disallow-untyped-defs=False, check-untyped-defs=False
"""The kernel of the objective: one program per token aligns, projects, and writes the terms with their gradients.

A row's slots form a `[WIDTH, 2]` tile: the new policy's kept entries in the first column, those of the old policy that
the new one lacks in the second, with the tail both share behind them. Everything between loading and storing is
float64: a row has at most a few hundred slots and is read once, so precision costs next to nothing here, and neither
rounding nor a second solve has to be thought of. What is loaded and stored is float32.

The math is that of `troll.sparse`, `troll.projection` and `troll.objective`, which say what the symbols are.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK = 16
# Bisection alone, at every third step, ends long before.
_MAX_STEPS = 600


class Terms(NamedTuple):
    """Per token `[M]`; the first two are differentiable in the new policy's log-probabilities."""

    log_ratio: Tensor
    """`log pi(a) - log old(a)` of the projected policy."""
    regression: Tensor
    """`KL(new || stop_grad(pi))`"""
    beta: Tensor
    active: Tensor
    """bool"""
    kl_before: Tensor
    kl_after: Tensor
    kept_mass: Tensor


@triton.jit
def _normalised(raw, kept, size, default_prob, SPREAD: tl.constexpr):
    """A row's log-probabilities and tail, rounded to float32; its kept mass, the tail's mass, and whether that is true.

    The tail's mass is true where it is what is left of 1, and not where it is the constant or its floor.
    """
    mass = tl.where(kept, tl.exp(raw), 0.0)
    kept_mass = tl.sum(mass, axis=0)
    left_out = (size - tl.sum(kept.to(tl.int32), axis=0)).to(tl.float64)
    floor = left_out * default_prob
    left_mass = floor
    if SPREAD:
        left_mass = tl.maximum(floor, 1.0 - kept_mass)
    log_total = tl.log(kept_mass + left_mass)
    each = tl.where(left_out > 0, left_mass / tl.maximum(left_out, 1.0), 1.0)
    log_probs = (raw - log_total).to(tl.float32)
    return log_probs, (tl.log(each) - log_total).to(tl.float32), kept_mass, left_mass, left_mass > floor


@triton.jit
def _total(tile):
    return tl.sum(tl.sum(tile, axis=1), axis=0)


@triton.jit
def normalise_row(
    ids,
    log_probs,
    out,
    tail,
    kept_mass,
    slots,
    size,
    default_prob: tl.float64,
    SPREAD: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """`troll.sparse.normalise` of one row."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, WIDTH)
    inside = place < slots
    kept = tl.load(ids + row * slots + place, mask=inside, other=-1) >= 0
    raw = tl.load(log_probs + row * slots + place, mask=inside, other=-float("inf")).to(tl.float64)
    values, left, mass, _, _ = _normalised(tl.where(kept, raw, -float("inf")), kept, size, default_prob, SPREAD)
    tl.store(out + row * slots + place, values, mask=inside)
    tl.store(tail + row, left)
    tl.store(kept_mass + row, mass.to(tl.float32))


@triton.jit
def _values_at(ids, row, other_ids, other_values, other_slots, fill, CHUNK: tl.constexpr):
    """The other side's values at `ids`, `fill` where it lacks one."""
    values = tl.zeros_like(ids).to(tl.float32) + fill
    for first in range(0, other_slots, CHUNK):
        place = first + tl.arange(0, CHUNK)
        inside = place < other_slots
        there = tl.load(other_ids + row * other_slots + place, mask=inside, other=-1)
        value = tl.load(other_values + row * other_slots + place, mask=inside, other=0.0)
        same = (ids[:, None] == there[None, :]) & (there >= 0)[None, :]
        hit = tl.max(same.to(tl.int32), axis=1) > 0
        values = tl.where(hit, tl.sum(tl.where(same, value[None, :], 0.0), axis=1), values)
    return values


@triton.jit
def _lacks(ids, row, other_ids, other_slots, CHUNK: tl.constexpr):
    """Where `ids` are not among the other side's."""
    hits = tl.zeros_like(ids).to(tl.int32)
    for first in range(0, other_slots, CHUNK):
        place = first + tl.arange(0, CHUNK)
        there = tl.load(other_ids + row * other_slots + place, mask=place < other_slots, other=-1)
        hits += tl.sum((ids[:, None] == there[None, :]).to(tl.int32), axis=1)
    return hits == 0


@triton.jit
def _evaluate(log_weight, score, beta):
    """Log-partition, KL from the old policy, slope of `beta` over `sqrt(KL)`, and rounding noise of the KL."""
    exponent = log_weight + beta * score
    peak = tl.max(tl.max(exponent, axis=1), axis=0)
    weight = tl.exp(exponent - peak)
    total = _total(weight)
    mean = _total(weight * score) / total
    centred = score - mean
    variance = _total(weight * centred * centred) / total
    log_partition = tl.log(total) + peak
    kl = beta * mean - log_partition
    curve = beta * variance
    slope = tl.where(curve > 0, 2.0 * tl.sqrt(tl.maximum(kl, 0.0)) / curve, 0.0)
    noise = 4.5e-16 * (1.0 + tl.abs(beta * mean) + beta * curve)
    return log_partition, kl, slope, noise


@triton.jit
def _solve(log_weight, score, variance, kl_old, log_partition_old, kl_high, slope_high, kl_bound, STEPS: tl.constexpr):
    """The largest `beta` with `KL <= kl_bound`, from below, with its log-partition and KL.

    Newton steps on `sqrt(KL)`, which is close to a straight line, inside a bracket that shrinks with every evaluation;
    where three of them did not halve the distance from the bound, a bisection.
    """
    low, high = tl.zeros_like(kl_bound), tl.zeros_like(kl_bound) + 1.0
    low_partition, low_kl = log_partition_old, kl_old
    target = tl.sqrt(kl_bound)
    beta = tl.sqrt(2.0 * kl_bound / tl.maximum(variance, 1e-300))
    tangent = high - (tl.sqrt(kl_high) - target) * slope_high
    beta = tl.where(beta < high, beta, tangent)
    beta = tl.where((beta > low) & (beta < high), beta, 0.5 * high)
    step = 0
    above_by = kl_high - kl_bound
    distance = above_by
    solved = kl_high <= kl_bound
    while (step < STEPS) & (solved == 0):
        partition, kl, slope, noise = _evaluate(log_weight, score, beta)
        noise = tl.minimum(noise, 0.1 * kl_bound)
        above = kl > kl_bound
        low = tl.where(above, low, beta)
        low_partition = tl.where(above, low_partition, partition)
        low_kl = tl.where(above, low_kl, kl)
        high = tl.where(above, beta, high)
        above_by = tl.where(above, kl - kl_bound, above_by)
        close = (kl <= kl_bound) & (kl >= kl_bound - 4.0 * noise)
        solved = close | (high - low <= 4.5e-16 * high)
        # The aim lies a few roundings below the bound, so that the point accepted is on the right side of it.
        aim = beta - (tl.sqrt(tl.maximum(kl, 0.0)) - tl.sqrt(kl_bound - 2.0 * noise)) * slope
        nearest = tl.minimum(above_by, kl_bound - low_kl)
        due = step % 3 == 2
        usable = (aim > low) & (aim < high) & ~(due & (nearest > 0.5 * distance))
        distance = tl.where(due, nearest, distance)
        beta = tl.where(usable, aim, 0.5 * (low + high))
        step += 1
    return low, low_partition, low_kl


@triton.jit
def token_row(
    new_ids,
    new_log_probs,
    old_ids,
    old_log_probs,
    old_tail,
    log_ratio,
    regression,
    out_beta,
    out_active,
    kl_before,
    kl_after,
    kept_mass,
    d_ratio,
    d_regression,
    new_slots,
    old_slots,
    size,
    bound: tl.float64,
    default_prob: tl.float64,
    SPREAD: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """The terms of one token, and their gradients with respect to the new policy's kept log-probabilities."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, WIDTH)
    infinity = float("inf")
    kl_bound = tl.zeros([], tl.float64) + bound

    # Both rows on the union of their supports.
    inside = place < new_slots
    ids = tl.load(new_ids + row * new_slots + place, mask=inside, other=-1).to(tl.int32)
    kept = ids >= 0
    raw = tl.load(new_log_probs + row * new_slots + place, mask=inside, other=-infinity).to(tl.float64)
    raw = tl.where(kept, raw, -infinity)
    values, new_tail, mass, left_mass, spread = _normalised(raw, kept, size, default_prob, SPREAD)
    tail = tl.load(old_tail + row)
    other_ids = tl.load(old_ids + row * old_slots + place, mask=place < old_slots, other=-1).to(tl.int32)
    other = tl.load(old_log_probs + row * old_slots + place, mask=place < old_slots, other=-infinity)
    there = _values_at(ids, row, old_ids, old_log_probs, old_slots, tail, CHUNK)
    lone = (other_ids >= 0) & _lacks(other_ids, row, new_ids, new_slots, CHUNK)
    rest = size - tl.sum(kept.to(tl.int32), axis=0) - tl.sum(lone.to(tl.int32), axis=0)
    is_tail = place == old_slots
    one = tl.where(kept, 1, 0)
    count = tl.join(one, tl.where(is_tail, rest, tl.where(lone, 1, 0))).to(tl.float64)
    new_side = tl.zeros_like(values) + new_tail
    log_new = tl.join(values, new_side).to(tl.float64)
    log_old = tl.join(there, tl.where(is_tail, tail, other)).to(tl.float64)

    # Slots where either side has a probability of zero take no part, and are infinitely far if the new one has mass.
    shared = (count > 0) & (log_new > -infinity) & (log_old > -infinity)
    score = tl.where(shared, log_new - tl.where(shared, log_old, 0.0), 0.0)
    mass_new = tl.where(count > 0, tl.exp(log_new) * count, 0.0)
    outside = _total(((mass_new > 0) & ~shared).to(tl.int32)) > 0
    mass_shared = tl.where(shared, mass_new, 0.0)
    kl_new = tl.where(outside, infinity, _total(mass_shared * score))
    active = kl_new > kl_bound

    # Both ends of the geodesic, cut down to the shared slots, then the point between them where it leaves the region.
    log_weight = tl.where(shared, log_old + tl.log(tl.maximum(count, 1.0)), -infinity)
    weight = tl.exp(log_weight)
    total_old = _total(weight)
    mean_old = _total(weight * score) / total_old
    variance_old = _total(weight * (score - mean_old) * (score - mean_old)) / total_old
    total_new = _total(mass_shared)
    mean_new = _total(mass_shared * score) / total_new
    variance_new = _total(mass_shared * (score - mean_new) * (score - mean_new)) / total_new
    kl_old, kl_high = -tl.log(total_old), mean_new - tl.log(total_new)
    slope_high = 2.0 * tl.sqrt(tl.maximum(kl_high, 0.0)) / tl.maximum(variance_new, 1e-300)
    # Negated comparisons, so that a row without any shared slot (NaN) counts as infeasible.
    feasible = kl_old <= kl_bound
    loose = feasible & (kl_high <= kl_bound)
    tight = active & feasible & (kl_high > kl_bound)
    start_kl = tl.where(tight, kl_high, 0.0)
    beta, partition, kl = _solve(
        log_weight,
        score,
        variance_old,
        kl_old,
        tl.log(total_old),
        start_kl,
        slope_high,
        kl_bound,
        STEPS,
    )
    beta = tl.where(loose, 1.0, beta)
    partition = tl.where(loose, tl.log(total_new), partition)
    kl = tl.where(loose, kl_high, kl)
    beta = tl.where(feasible, beta, 0.0)
    partition = tl.where(feasible, partition, 0.0)
    kl = tl.where(feasible, kl, 0.0)

    # The projected row and the two terms.
    step = beta * score - partition
    pi = tl.where(shared, tl.exp(log_old + step) * count, 0.0)
    is_token = tl.join(tl.where(place == 0, 1, 0), tl.zeros_like(place)) > 0
    plain_ratio = _total(tl.where(is_token, log_new - tl.where(shared, log_old, 0.0), 0.0))
    token_shared = _total((is_token & shared).to(tl.int32)) > 0
    ratio = _total(tl.where(is_token & shared, step, 0.0))
    ratio = tl.where(token_shared, ratio, tl.where(feasible, -infinity, 0.0))
    distance = tl.where(shared, score - step, infinity)
    distance = tl.where(mass_new > 0, distance, 0.0)
    terms = tl.where(mass_new > 0, mass_new * distance, 0.0)
    tl.store(log_ratio + row, tl.where(active, ratio, plain_ratio).to(tl.float32))
    tl.store(regression + row, tl.where(active, _total(terms), 0.0).to(tl.float32))
    tl.store(out_beta + row, tl.where(active, beta, 1.0).to(tl.float32))
    tl.store(out_active + row, active)
    tl.store(kl_before + row, kl_new.to(tl.float32))
    tl.store(kl_after + row, tl.where(active, kl, kl_new).to(tl.float32))
    tl.store(kept_mass + row, mass.to(tl.float32))

    # Gradients on the union, then through the normalisation onto the kept entries.
    mean = _total(pi * score)
    centred = tl.where(shared, score - mean, 0.0)
    variance = _total(pi * centred * centred)
    turn = tl.where(tight & (variance > 0), 1.0 / tl.sqrt(tl.maximum(variance, 1e-300)), 0.0)
    direction = centred * turn
    token_direction = _total(tl.where(is_token, direction, 0.0))
    here = is_token.to(tl.float64)
    g_ratio = tl.where(active, beta * (here - pi * (1.0 + direction * token_direction)), here)
    g_regression = tl.where(active, mass_new * (distance + 1.0), 0.0)
    factor = tl.exp(values.to(tl.float64))
    first_column = tl.join(tl.where(place >= 0, 1, 0), tl.zeros_like(place)) > 0
    sum_ratio, sum_regression = _total(g_ratio), _total(g_regression)
    if SPREAD:
        # The tail takes what is left of 1: kept entries are as they were, and only the tail moves against them.
        tail_ratio = _total(tl.where(first_column, 0.0, g_ratio))
        tail_regression = _total(tl.where(first_column, 0.0, g_regression))
        factor = tl.where(spread, tl.exp(raw) / left_mass, factor)
        sum_ratio = tl.where(spread, tail_ratio, sum_ratio)
        sum_regression = tl.where(spread, tail_regression, sum_regression)
    own_ratio = tl.sum(tl.where(first_column, g_ratio, 0.0), axis=1)
    own_regression = tl.sum(tl.where(first_column, g_regression, 0.0), axis=1)
    d_own = tl.where(kept, own_ratio - factor * sum_ratio, 0.0)
    d_reg = tl.where(kept, own_regression - factor * sum_regression, 0.0)
    tl.store(d_ratio + row * new_slots + place, d_own.to(tl.float32), mask=inside)
    tl.store(d_regression + row * new_slots + place, d_reg.to(tl.float32), mask=inside)


class _Terms(torch.autograd.Function):
    """The terms with the gradients that were written beside them."""

    @staticmethod
    def forward(
        ctx: Any,
        log_probs: Tensor,
        ids: Tensor,
        old_ids: Tensor,
        old_log_probs: Tensor,
        old_tail: Tensor,
        size: int,
        kl_bound: float,
        default_prob: float,
        tail: str,
    ) -> tuple[Tensor, ...]:
        number, slots = log_probs.shape
        old_slots = old_ids.shape[1]
        log_ratio, regression, beta, kl_before, kl_after, kept_mass = log_probs.new_empty(6, number)
        active = torch.empty(number, dtype=torch.bool, device=log_probs.device)
        d_ratio, d_regression = log_probs.new_empty(2, number, slots)
        if number:
            with torch.cuda.device_of(log_probs):
                token_row[(number,)](
                    ids.contiguous(),
                    log_probs.contiguous(),
                    old_ids.contiguous(),
                    old_log_probs.contiguous(),
                    old_tail.contiguous(),
                    log_ratio,
                    regression,
                    beta,
                    active,
                    kl_before,
                    kl_after,
                    kept_mass,
                    d_ratio,
                    d_regression,
                    slots,
                    old_slots,
                    size,
                    kl_bound,
                    default_prob,
                    SPREAD=tail == "mass",
                    WIDTH=triton.next_power_of_2(max(slots, old_slots + 1)),
                    CHUNK=_CHUNK,
                    STEPS=_MAX_STEPS,
                )
        ctx.save_for_backward(d_ratio, d_regression)
        rest = (beta, active, kl_before, kl_after, kept_mass)
        ctx.mark_non_differentiable(*rest)
        return log_ratio, regression, *rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_ratio: Tensor, g_regression: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        d_ratio, d_regression = ctx.saved_tensors
        gradient = torch.addcmul(g_ratio.unsqueeze(-1) * d_ratio, g_regression.unsqueeze(-1), d_regression)
        return gradient, *[None] * 8


def token_terms(
    ids: Tensor,
    log_probs: Tensor,
    old_ids: Tensor,
    old_log_probs: Tensor,
    old_tail: Tensor,
    vocabulary_size: int,
    kl_bound: float,
    default_prob: float,
    tail: str,
) -> Terms:
    """The objective's terms per token; see `troll.kernels.token_terms`."""
    outputs = _Terms.apply(  # type: ignore[no-untyped-call]
        log_probs, ids, old_ids, old_log_probs, old_tail, vocabulary_size, kl_bound, default_prob, tail
    )
    return Terms(*outputs)


def normalise(
    ids: Tensor, log_probs: Tensor, vocabulary_size: int, default_prob: float, tail: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`troll.sparse.normalise` without a gradient: log-probabilities `[M, K]`, tail `[M]`, kept mass `[M]`."""
    number, slots = log_probs.shape
    out = torch.empty_like(log_probs, memory_format=torch.contiguous_format)
    left, kept_mass = log_probs.new_empty(2, number)
    if number:
        with torch.cuda.device_of(log_probs):
            normalise_row[(number,)](
                ids.contiguous(),
                log_probs.detach().contiguous(),
                out,
                left,
                kept_mass,
                slots,
                vocabulary_size,
                default_prob,
                SPREAD=tail == "mass",
                WIDTH=triton.next_power_of_2(slots),
            )
    return out, left, kept_mass
