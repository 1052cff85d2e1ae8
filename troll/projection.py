"""The projection onto the trust region: `argmin KL(pi || new)` subject to `KL(pi || old) <= kl_bound`, row by row.

A row outside the region has its answer on the geodesic `pi = old^(1 - beta) new^beta / Z(beta)`, at the one `beta` in
(0, 1) where the constraint is tight; `troll.solver` finds it. Its derivative is known in closed form.

A slot may stand for several tokens of equal probability (`log_count`), which is how a sparse row's tail takes part.
M rows, U slots.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from troll import checks
from troll.solver import exp_, solve

# Rows whose KL rounding may have moved by more nats than this are solved again, with care.
_VISIBLE_NOISE = {torch.float32: 1e-6, torch.float64: 1e-11}
# Smaller bounds could not be told from the rounding of float32 sums, and are worked on in float64 throughout.
_SMALL_BOUND = 1e-3
# Elements of the rows a CPU works on at a time, so that they stay in its last cache.
_CPU_ELEMENTS = 1 << 21


class Projection(NamedTuple):
    """Rows projected onto the trust region."""

    log_probs: Tensor
    """`[..., V]` log of the projected distribution; differentiable in the new policy's log-probabilities."""
    beta: Tensor
    """`[...]` position on the geodesic from the old (0) to the new (1) policy; `beta = 1 / (1 + eta)`."""
    active: Tensor
    """`[...]` bool, whether the row lay outside the trust region."""
    kl_before: Tensor
    """`[...]` `KL(new || old)` in nats."""
    kl_after: Tensor
    """`[...]` `KL(pi || old)` as it was measured, at most `kl_bound`."""


def project(log_old: Tensor, log_new: Tensor, kl_bound: float) -> Projection:
    """Projects `log_new` onto the trust region around `log_old`.

    Args:
        log_old: `[..., V]` log-probabilities; no gradient flows into them.
        log_new: `[..., V]` log-probabilities. -inf is a probability of zero: where either side is zero so is the
            projection. If the new policy is zero on so much of the old one that no distribution with a finite
            `KL(pi || new)` reaches the region, the row comes back as the old policy with `beta = 0`.
        kl_bound: nats, positive.

    Raises:
        ValueError: shapes, dtypes or a bound that do not fit, and rows with NaN.
    """
    checks.positive("kl_bound", kl_bound)
    checks.floating("log_old", log_old)
    checks.floating("log_new", log_new)
    checks.same_shape("log_new", log_new, "log_old", log_old.shape)
    if log_old.dim() < 1 or not log_old.shape[-1]:
        raise ValueError(f"log_old: needs a last dimension over the vocabulary, got shape {list(log_old.shape)}")
    size = log_old.shape[-1]
    leading = log_old.shape[:-1]
    flat = project_rows(log_old.reshape(-1, size), log_new.reshape(-1, size), None, kl_bound)
    # NaN, infinity and rows without a single token all show in this divergence.
    if not flat.kl_before.isfinite().all():
        everything = torch.arange(leading.numel(), device=log_old.device)
        for name, tensor in (("log_old", log_old), ("log_new", log_new)):
            checks.finite_rows(name, tensor.detach().reshape(-1, size).amax(-1), everything)
    return Projection(flat.log_probs.reshape(log_old.shape), *(value.reshape(leading) for value in flat[1:]))


def project_rows(log_old: Tensor, log_new: Tensor, log_count: Tensor | None, kl_bound: float) -> Projection:
    """`project` for rows `[M, U]` whose slots stand for `exp(log_count)` tokens each; unchecked."""
    rows = checks.wide(log_new), checks.wide(log_old).detach()
    return Projection(*_Project.apply(*rows, log_count, kl_bound))  # type: ignore[no-untyped-call]


class _Project(torch.autograd.Function):
    """Solves forward, differentiates through the solution in closed form backward."""

    @staticmethod
    def forward(
        ctx: Any, log_new: Tensor, log_old: Tensor, log_count: Tensor | None, kl_bound: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        moved = _move_in_chunks(log_new, log_old, log_count, kl_bound)
        ctx.save_for_backward(moved.log_pi, log_new, log_old, log_count, moved.beta, moved.active, moved.tight)
        ctx.mark_non_differentiable(moved.beta, moved.active, moved.kl_new, moved.kl_after)
        return moved.log_pi, moved.beta, moved.active, moved.kl_new, moved.kl_after

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        log_pi, log_new, log_old, log_count, beta, active, tight = ctx.saved_tensors
        rows = active.nonzero().squeeze(-1)
        if not len(rows):
            return grad, None, None, None
        log_mass = log_pi[rows] if log_count is None else log_pi[rows] + log_count[rows]
        weight, g, score = log_mass.exp_(), grad[rows], log_new[rows] - log_old[rows]
        # A score that is not finite belongs to a slot without mass, or to a row that came back as the old policy.
        score.nan_to_num_(0.0, 0.0, 0.0)
        direction = standardised(weight, score) * tight[rows].unsqueeze(-1)
        along = (g * direction).sum(-1, keepdim=True)
        inner = g - weight * g.sum(-1, keepdim=True) - (weight * direction) * along
        return grad.index_copy(0, rows, beta[rows].unsqueeze(-1) * inner), None, None, None


def standardised(weight: Tensor, score: Tensor) -> Tensor:
    """`c = (s - E[s]) / sqrt(Var[s])` under the probabilities `weight`, both `[M, U]`; zero where nothing varies."""
    centred = score - (weight * score).sum(-1, keepdim=True)
    variance = (weight * centred.square()).sum(-1, keepdim=True)
    return centred * torch.where(variance > 0, variance, torch.inf).rsqrt()


class _Moved(NamedTuple):
    """Rows after the projection, `[M, U]` and `[M]`."""

    log_pi: Tensor
    beta: Tensor
    active: Tensor
    kl_new: Tensor
    kl_after: Tensor
    tight: Tensor
    noise: Tensor


def _move_in_chunks(log_new: Tensor, log_old: Tensor, log_count: Tensor | None, kl_bound: float) -> _Moved:
    """Projects rows `[M, U]`, a cacheful at a time on a CPU."""
    rows, slots = log_new.shape
    step = max(1, _CPU_ELEMENTS // max(slots, 1)) if log_new.device.type == "cpu" else max(rows, 1)
    narrow = log_new.dtype != checks.summation_dtype(log_new) and kl_bound < _SMALL_BOUND
    log_pi, parts = torch.empty_like(log_new), []
    for start in range(0, max(rows, 1), step):
        part = slice(start, start + step)
        new, old, count = log_new[part], log_old[part], None if log_count is None else log_count[part]
        if narrow:
            moved = _move_again(new, old, count, None, kl_bound)
            log_pi[part] = moved.log_pi
        else:
            moved = _move(new, old, count, None, kl_bound, log_pi[part])
        _move_rough_rows(moved, new, old, count, kl_bound)
        parts.append(moved[1:])
    return _Moved(log_pi, *(torch.cat(column) for column in zip(*parts, strict=True)))


def _move_again(
    log_new: Tensor, log_old: Tensor, log_count: Tensor | None, heaviest: Tensor | None, kl_bound: float
) -> _Moved:
    """`_move` in the widest dtype, rounded to that of the rows."""
    dtype, wide = log_new.dtype, checks.summation_dtype(log_new)
    if dtype == wide:
        return _move(log_new, log_old, log_count, heaviest, kl_bound, torch.empty_like(log_new))
    count = None if log_count is None else log_count.to(wide)
    new, old = (_normalised(rows.to(wide), count) for rows in (log_new, log_old))
    # Rounding must not lift what is reported above the bound.
    bound = kl_bound * (1 - torch.finfo(dtype).eps)
    found = _move(new, old, count, heaviest, bound, torch.empty_like(new))
    moved = _Moved(*(value.to(dtype) if value.is_floating_point() else value for value in found))
    returned = moved.active & ~moved.tight & (moved.beta == 0)
    log_pi = torch.where(moved.active.unsqueeze(-1), moved.log_pi, log_new)
    return moved._replace(log_pi=torch.where(returned.unsqueeze(-1), log_old, log_pi))


def _normalised(log_probs: Tensor, log_count: Tensor | None) -> Tensor:
    """Rows whose masses add up to 1: narrower ones do so to their own rounding, which a small bound feels."""
    return log_probs - (log_probs if log_count is None else log_probs + log_count).logsumexp(-1, keepdim=True)


def _move_rough_rows(
    moved: _Moved, log_new: Tensor, log_old: Tensor, log_count: Tensor | None, kl_bound: float
) -> None:
    """Does rows whose rounding could be seen again.

    Their scores are counted from that of the slot with most of the mass: nothing large is left to cancel.
    """
    rows = (~(moved.noise <= _VISIBLE_NOISE[moved.noise.dtype])).nonzero().squeeze(-1)
    if not len(rows):
        return
    new, old, count = log_new[rows], log_old[rows], None if log_count is None else log_count[rows]
    log_pi = torch.where(moved.log_pi[rows].isfinite(), moved.log_pi[rows], old)
    heaviest = (log_pi if count is None else log_pi + count).argmax(-1, keepdim=True)
    again = _move_again(new, old, count, heaviest, kl_bound)
    for coarse, fine in zip(moved, again, strict=True):
        coarse[rows] = fine


class _Scene(NamedTuple):
    """What the projection of rows `[M, U]` starts from."""

    log_old: Tensor
    log_new: Tensor
    log_weight: Tensor
    """Log of the old mass per slot, -inf for slots that take no part."""
    score: Tensor
    """`log new - log old`, finite."""
    pull: Tensor
    """The new mass per slot, times the score."""
    kl_new: Tensor
    """`[M]` `KL(new || old)`"""
    partitions: Tensor
    """`[2, M]` log of the old and of the new mass that takes part: 0 unless slots were taken out."""
    centre: Tensor | None
    """`[M]` what the score and the pull's are counted from; None for 0."""

    def select(self, rows: Tensor) -> "_Scene":
        log_old = self.log_old[rows]
        log_weight = log_old if self.log_weight is self.log_old else self.log_weight[rows]
        columns = (self.log_new[rows], log_weight, self.score[rows], self.pull[rows], self.kl_new[rows])
        centre = None if self.centre is None else self.centre[rows]
        return _Scene(log_old, *columns, self.partitions[:, rows], centre)


def _move(
    log_new: Tensor,
    log_old: Tensor,
    log_count: Tensor | None,
    heaviest: Tensor | None,
    kl_bound: float,
    out: Tensor,
) -> _Moved:
    """Projects rows `[M, U]` into `out`; solves those that lie outside the trust region.

    With `heaviest` `[M, 1]` scores are counted from those of these slots.
    """
    score = log_new - log_old
    log_weight = log_old if log_count is None else log_old + log_count
    # Until the rows are written, `out` is work space.
    mass = exp_(out.copy_(log_new) if log_count is None else torch.add(log_new, log_count, out=out))
    pull = mass.mul_(score)
    kl_new = pull.sum(-1)
    scene = _Scene(log_old, log_new, log_weight, score, pull, kl_new, torch.zeros_like(kl_new).expand(2, -1), None)
    # A probability of zero on either side shows in the sum, as infinity or as not a number.
    regular = bool(kl_new.isfinite().all())
    if not regular:
        scene = _share(scene, log_count)
    if heaviest is not None:
        scene = _centre(scene, log_count, heaviest)
    active = scene.kl_new > kl_bound
    rows = active.nonzero().squeeze(-1)
    if 2 * len(rows) > len(active):
        # Sorting out most rows costs more than taking the others along.
        return _solve(scene, active, kl_bound, regular, out)
    found = None
    if len(rows):
        chosen = scene.select(rows)
        found = _solve(chosen, active[rows], kl_bound, regular, torch.empty_like(chosen.score))
    out.copy_(log_new)
    zero = torch.zeros_like(kl_new)
    moved = _Moved(out, zero + 1, active, scene.kl_new, scene.kl_new.clone(), active.clone(), zero)
    if found is not None:
        for target, values in zip(moved, found, strict=True):
            target[rows] = values
    return moved


def _solve(scene: _Scene, active: Tensor, kl_bound: float, regular: bool, out: Tensor) -> _Moved:
    """Moves the active rows along their geodesics to where they leave the trust region; the others stay."""
    partition_old, partition_new = scene.partitions
    found = solve(scene.log_weight, scene.score, scene.pull, partition_old, partition_new, scene.centre, kl_bound)
    beta = torch.where(active, found.beta, 1.0)
    if scene.centre is None:
        # At a weight of 1 this is the new policy, to the bit.
        torch.lerp(scene.log_old, scene.log_new, beta.unsqueeze(-1), out=out)
    else:
        torch.addcmul(scene.log_old, scene.score, beta.unsqueeze(-1), out=out)
    out.sub_(torch.where(active, found.log_partition, 0.0).unsqueeze(-1))
    if not regular:
        out.masked_fill_(scene.log_weight == -torch.inf, -torch.inf)
        out.copy_(torch.where(found.feasible.unsqueeze(-1), out, scene.log_old))
    if scene.centre is not None or not regular:
        out.copy_(torch.where(active.unsqueeze(-1), out, scene.log_new))
    kl = torch.where(active, found.kl, scene.kl_new)
    return _Moved(out, beta, active, scene.kl_new, kl, active & found.tight, torch.where(active, found.noise, 0.0))


def _centre(scene: _Scene, log_count: Tensor | None, heaviest: Tensor) -> _Scene:
    """Counts scores from those of slots `heaviest` `[M, 1]`: a constant in a row's scores changes no distribution."""
    centre = scene.score.gather(-1, heaviest)
    shared = scene.log_weight > -torch.inf
    score = torch.where(shared, scene.score - centre, 0.0)
    mass = (scene.log_new if log_count is None else scene.log_new + log_count).exp()
    pull = torch.where(shared, mass, 0.0).mul_(score)
    return scene._replace(score=score, pull=pull, centre=centre.squeeze(-1))


def _share(scene: _Scene, log_count: Tensor | None) -> _Scene:
    """Takes slots where either side has a probability of zero out of the rows.

    Mass of the new policy where the old one has none is infinitely far away.
    """
    shared = (scene.log_new > -torch.inf) & (scene.log_old > -torch.inf)
    log_mass = scene.log_new if log_count is None else scene.log_new + log_count
    # NaN counts as outside, so that it is seen whatever stands opposite.
    outside = ((~shared & (log_mass != -torch.inf)) | scene.log_old.isnan()).any(-1) | ~shared.any(-1)
    score = torch.where(shared, scene.log_new - scene.log_old, 0.0)
    log_weight = scene.log_weight.masked_fill(~shared, -torch.inf)
    mass = log_mass.exp().masked_fill_(~shared, 0.0)
    partitions = torch.stack([log_weight.exp().sum(-1), mass.sum(-1)]).log_()
    pull = mass.mul_(score)
    kl_new = torch.where(outside, torch.inf, pull.sum(-1))
    return scene._replace(log_weight=log_weight, score=score, pull=pull, kl_new=kl_new, partitions=partitions)
