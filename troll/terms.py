"""The objective's terms per token, from the kept entries of the current policy and the old policy's rows.

M tokens, K slots of the current policy's rows, U slots of an aligned pair.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from troll import kernels
from troll.align import AlignedPair, align
from troll.projection import Projection, project_rows
from troll.rows import SparseLogProbs, Tail
from troll.sparse import normalise


class Terms(NamedTuple):
    """What the objective needs of every token, `[M]` each."""

    log_ratio: Tensor
    """`log pi(a) - log old(a)`, differentiable."""
    regression: Tensor
    """`KL(new || stop_grad(pi))`, differentiable; exactly zero, with its gradient, where nothing is projected."""
    beta: Tensor
    active: Tensor
    """bool, whether the token's row was projected."""
    kl_before: Tensor
    kl_after: Tensor
    kept_mass: Tensor
    """Mass of the current policy's kept tokens before normalisation."""


def token_terms(
    ids: Tensor, log_probs: Tensor, old: SparseLogProbs, kl_bound: float, default_prob: float, tail: Tail
) -> Terms:
    """Normalises, aligns and projects rows `ids`, `log_probs` `[M, K]` against the old policy's rows `[M]`."""
    if kernels.available(log_probs, max(ids.shape[1], old.ids.shape[1] + 1)):
        columns = (old.ids, old.log_probs, old.tail_log_prob, old.vocabulary_size)
        return Terms(*kernels.token_terms(ids, log_probs, *columns, kl_bound, default_prob, tail))
    normalised, tail_log_prob, kept_mass = normalise(ids, log_probs, old.vocabulary_size, default_prob, tail)
    pair = align(ids, normalised, tail_log_prob, old)
    projection = project_rows(pair.log_old, pair.log_new, pair.log_count, kl_bound)
    return Terms(
        projection.log_probs[:, 0] - pair.log_old[:, 0],
        _regression(pair, projection),
        projection.beta,
        projection.active,
        projection.kl_before,
        projection.kl_after,
        kept_mass.detach(),
    )


def sparse_entropy(ids: Tensor, log_probs: Tensor, vocabulary_size: int, default_prob: float, tail: Tail) -> Tensor:
    """Entropy `[M]` of sparse rows in nats, differentiable in `log_probs` `[M, K]`."""
    normalised, tail_log_prob, _ = normalise(ids, log_probs, vocabulary_size, default_prob, tail)
    left_out = (vocabulary_size - (ids >= 0).sum(-1)).to(log_probs.dtype)
    # Forbidden and empty slots are -inf, and contribute nothing.
    kept = normalised.masked_fill(normalised == -torch.inf, 0.0)
    inside = torch.where(normalised > -torch.inf, kept.exp() * kept, 0.0).sum(-1)
    return -inside - left_out * tail_log_prob.exp() * tail_log_prob


def _regression(pair: AlignedPair, projection: Projection) -> Tensor:
    rows = projection.active.nonzero().squeeze(-1)
    log_new, log_count = pair.log_new[rows], pair.log_count[rows]
    mass = (log_new + log_count).exp()
    # A probability of zero contributes nothing, though its logarithm does not say so.
    distance = torch.where(mass > 0, log_new - projection.log_probs.detach()[rows], 0.0)
    return torch.zeros_like(projection.beta).index_copy(0, rows, (mass * distance).sum(-1))
