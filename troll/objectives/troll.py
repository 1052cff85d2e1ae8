"""TROLL: the projected policy's ratio, and the pull of the network back to its projection.

Per token `loss = -A pi(a) / old(a) + alpha KL(new || stop_grad(pi))` (arXiv 2510.03817), where `pi` is the new policy
projected onto the trust region around the old one. Nothing is clipped. Inside the region `pi` is the new policy and the
second term is exactly zero, in value and in gradient.

M selected tokens, K slots of a sparse row, U slots of an aligned pair (`troll.sparse`).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from troll import checks
from troll.batch import Batch, count, mean, mean_and_max
from troll.gradient import Backward
from troll.metrics import LOSS, MAX, MEAN, Metric
from troll.objectives.base import Evaluation, Objective, Selection, Sparsity
from troll.rows import SparseLogProbs, Tail
from troll.sparse import Kept, normalise
from troll.terms import Terms, sparse_entropy, token_terms

Support = Literal["union", "old"]
_MAX_OWN_LOG_RATIO = math.log(10)


@dataclass(frozen=True, kw_only=True)
class Troll(Objective[SparseLogProbs]):
    """The TROLL loss. An entropy bonus is given on the entropy of the sparse rows."""

    kl_bound: float = 0.05
    """The trust region's size in nats."""
    alpha: float = 1.0
    """Weight of the regression term."""
    pessimistic: bool = False
    """Take the worse of the projected and the network's own ratio, `-min(A pi(a), A new(a)) / old(a)`, as clipping.
    The projection then holds back what moves on in the advantage's direction, and nothing that comes back. Beyond ten
    times the old probability a token's gradient would drown all others', and the projected ratio counts alone."""
    max_tokens: int = 64
    """The most likely tokens kept of a row, at most; the sampled one is kept beside them."""
    dropped_mass: float = 1e-5
    """Probability that the kept tokens may leave out."""
    default_prob: float = 1e-12
    """Probability of each token left out (the paper's), used by `tail="constant"`."""
    support: Support = "union"
    """`"union"` of both policies' top tokens (the paper's), or the `"old"` policy's only."""
    tail: Tail = "constant"
    """What tokens left out get: `default_prob` each, or with `"mass"` their true mass spread evenly."""
    backward: Backward = "auto"
    """How `fused_loss` writes the gradient: `"sparse"` on kept rows only, which is exact but for the remainder the
    module `troll.gradient` describes; `"dense"` adds the remainder everywhere; `"auto"` where it could be seen."""

    metrics: ClassVar[dict[str, Metric]] = {
        **Objective.metrics,
        "regression_loss": LOSS,
        "kl_before": MEAN,
        "kl_before_max": MAX,
        "kl_after": MEAN,
        "kl_after_max": MAX,
        "fraction_projected": MEAN,
        "beta": Metric("mean", weights=("tokens", "fraction_projected")),
        "kept_mass": MEAN,
        "kept_mass_old": MEAN,
        "kept_tokens": MEAN,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive("kl_bound", self.kl_bound)
        checks.not_negative("alpha", self.alpha)
        checks.one_of("support", self.support, get_args(Support))
        checks.one_of("backward", self.backward, get_args(Backward))
        checks.sparsity(self.max_tokens, self.dropped_mass, self.default_prob, self.temperature, 1, self.tail)

    @property
    def sparsity(self) -> Sparsity:
        return {
            "max_tokens": self.max_tokens,
            "dropped_mass": self.dropped_mass,
            "default_prob": self.default_prob,
            "tail": self.tail,
        }

    def select_old(
        self, old: SparseLogProbs | Tensor, tokens: Tensor, batch: Batch, vocabulary_size: int
    ) -> SparseLogProbs:
        if isinstance(old, Tensor):
            raise ValueError("old: needs the old policy's rows (from sparsify, say), and not a tensor")
        checks.tail_within_row(self.default_prob, vocabulary_size)
        if old.vocabulary_size != vocabulary_size:
            raise ValueError(f"old: vocabulary of {old.vocabulary_size} does not match the model's {vocabulary_size}")
        checks.same_shape("old", old.kept_mass, "tokens", tokens.shape)
        chosen = old.select(batch.rows)
        checks.equal_rows("old", "tokens", chosen.ids[:, 0], batch.tokens, batch.rows)
        checks.finite_rows("old", chosen.log_probs.exp().sum(-1) + chosen.tail_log_prob.exp(), batch.rows)
        return chosen

    def selection(self, old: SparseLogProbs, batch: Batch) -> Selection:
        given = old.ids.long() if self.support == "old" else None
        return {"at_ids": given, "max_tokens": self.max_tokens, "dropped_mass": self.dropped_mass}

    def evaluate(self, kept: Kept, old: SparseLogProbs, batch: Batch) -> Evaluation:
        terms = token_terms(kept.ids, kept.log_probs, old, self.kl_bound, self.default_prob, self.tail)
        weight = self.importance(terms.log_ratio, batch)
        losses_of_tokens = -batch.advantages * weight
        if self.pessimistic:
            normalised, _, _ = normalise(kept.ids, kept.log_probs, old.vocabulary_size, self.default_prob, self.tail)
            own = normalised[:, 0] - old.log_probs[:, 0]
            # Inside the region the two are one, up to how they were computed.
            own = torch.where(terms.active & (own < _MAX_OWN_LOG_RATIO), own, terms.log_ratio)
            losses_of_tokens = torch.maximum(losses_of_tokens, -batch.advantages * self.importance(own, batch))
        losses = {
            "policy_loss": self.total(losses_of_tokens, batch),
            "regression_loss": self.alpha * self.total(terms.regression, batch),
        }
        return Evaluation(losses, describe(terms, weight.detach(), kept, old))

    def entropy(self, kept: Kept, old: SparseLogProbs) -> Tensor:
        return sparse_entropy(kept.ids, kept.log_probs, old.vocabulary_size, self.default_prob, self.tail)


def describe(terms: Terms, ratio: Tensor, kept: Kept, old: SparseLogProbs) -> dict[str, Tensor]:
    """Metrics of `[M]` tokens as detached scalars, zero where there is nothing to average."""
    metrics = count(ratio) | mean_and_max("ratio", ratio)
    metrics |= mean_and_max("kl_before", terms.kl_before) | mean_and_max("kl_after", terms.kl_after)
    metrics |= {"fraction_projected": mean(terms.active.to(ratio.dtype)), "beta": mean(terms.beta[terms.active])}
    metrics |= {"kept_mass": mean(terms.kept_mass), "kept_mass_old": mean(old.kept_mass)}
    metrics |= {"kept_tokens": mean((kept.ids >= 0).sum(-1).to(ratio.dtype)), "entropy": mean(kept.entropy)}
    return metrics
