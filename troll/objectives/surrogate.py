"""What objectives have in common that see the sampled token's probability ratio alone.

They need its log-probability, whose gradient with respect to the logits is dense. The fused form computes that tile by
tile and skips tokens whose surrogate is flat (clipped, masked, or without advantage).

M selected tokens.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from troll import checks
from troll.batch import Batch, count, mean, mean_and_max
from troll.gradient import Backward
from troll.metrics import MEAN, Metric
from troll.objectives.base import MAX_TOKEN_LOG_RATIO, Evaluation, Objective, Selection, Sparsity
from troll.rows import SparseLogProbs
from troll.sparse import Kept


@dataclass(frozen=True, kw_only=True)
class Surrogate(Objective[Tensor]):
    """A loss per token made of its probability ratio. An entropy bonus is given on the entropy of the whole row."""

    metrics: ClassVar[dict[str, Metric]] = {**Objective.metrics, "fraction_clipped": MEAN, "kl_old_new": MEAN}

    @abstractmethod
    def rule(self, ratio: Tensor, advantages: Tensor, new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        """Loss per token `[M]`, and which tokens' gradients the rule cut.

        Args:
            ratio: `[M]` importance weights.
            new: `[M]` log-probabilities of the sampled tokens under the current policy.
            old: `[M]` under the old one.
        """

    @property
    def sparsity(self) -> Sparsity:
        return {"max_tokens": 1, "dropped_mass": 0.0, "default_prob": 1e-12, "tail": "constant"}

    @property
    def backward(self) -> Backward:
        return "dense"

    def select_old(self, old: SparseLogProbs | Tensor, tokens: Tensor, batch: Batch, vocabulary_size: int) -> Tensor:
        log_probs = old if isinstance(old, Tensor) else old.token_log_probs
        checks.same_shape("old", log_probs, "tokens", tokens.shape)
        checks.floating("old", log_probs)
        chosen = checks.wide(log_probs.detach().reshape(-1)[batch.rows])
        checks.finite_rows("old", chosen, batch.rows)
        return chosen

    def selection(self, old: Tensor, batch: Batch) -> Selection:
        return {"at_ids": batch.tokens.unsqueeze(-1), "max_tokens": 1, "dropped_mass": 0.0}

    def evaluate(self, kept: Kept, old: Tensor, batch: Batch) -> Evaluation:
        new = kept.log_probs[:, 0]
        log_ratio = new - old
        ratio = self.importance(log_ratio, batch)
        losses, cut = self.rule(ratio, batch.advantages, new, old)
        metrics = count(new) | mean_and_max("ratio", ratio)
        metrics |= {"fraction_clipped": mean(cut.to(new.dtype)), "entropy": mean(kept.entropy)}
        # Schulman's k3 from old samples: an estimate of KL(old || new).
        metrics["kl_old_new"] = mean(torch.expm1(log_ratio.clamp(max=MAX_TOKEN_LOG_RATIO)) - log_ratio)
        return Evaluation({"policy_loss": self.total(losses, batch)}, metrics)

    def entropy(self, kept: Kept, old: Tensor) -> Tensor:
        return kept.entropy
