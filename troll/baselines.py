"""What TROLL is compared against, called as TROLL is: PPO and GSPO clipping, and DPPO's divergence masks.

All of them need the sampled token's log-probability alone, whose gradient with respect to the logits is dense. The
fused forms compute it tile by tile and skip tokens whose surrogate is flat (clipped, masked, or without advantage).

M selected tokens, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from troll import checks
from troll.aggregation import Aggregation
from troll.batch import (
    Batch,
    LossOutput,
    Ratio,
    Reduction,
    count,
    importance,
    mean,
    mean_and_max,
    select_batch,
    side_terms,
)
from troll.fused import kept_from_hidden, make_head
from troll.logits import kept_from_logits
from troll.reference import Reference
from troll.rows import SparseLogProbs
from troll.sparse import Kept

Divergence = Literal["tv", "kl"]


@dataclass(frozen=True)
class Clip:
    """PPO's surrogate: `-min(r A, clip(r, 1 - low, 1 + high) A)`, for `A < 0` at most `-dual A`."""

    low: float
    high: float
    dual: float | None

    def __post_init__(self) -> None:
        checks.not_negative("clip_low", self.low)
        checks.not_negative("clip_high", self.high)
        if self.dual is not None and self.dual <= 1:
            raise ValueError(f"dual_clip: needs a number above 1, got {self.dual}")

    def loss(self, ratio: Tensor, advantages: Tensor, _: Tensor, __: Tensor) -> tuple[Tensor, Tensor]:
        """Loss per token `[M]`, and which tokens' gradients the rule cut."""
        free, clipped = -ratio * advantages, -ratio.clamp(1 - self.low, 1 + self.high) * advantages
        loss, cut = torch.maximum(free, clipped), clipped > free
        if self.dual is not None:
            ceiling = torch.where(advantages < 0, -self.dual * advantages, torch.inf)
            loss, cut = torch.minimum(loss, ceiling), cut | (loss > ceiling)
        return loss, cut


@dataclass(frozen=True)
class DivergenceMask:
    """DPPO: `-r A`, without the tokens that have left the region and whose update would take them further out.

    The divergence is that of the two-outcome distributions "the sampled token, or another" (arXiv 2602.04879):
    total variation `|p - q|`, or `KL(q || p)`.
    """

    divergence: Divergence
    threshold: float

    def __post_init__(self) -> None:
        checks.one_of("divergence", self.divergence, ("tv", "kl"))
        checks.positive("threshold", self.threshold)

    def loss(self, ratio: Tensor, advantages: Tensor, new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        """Loss per token `[M]`, and which tokens the mask took out."""
        new, old = new.detach(), old.detach()
        if self.divergence == "tv":
            distance = (new.exp() - old.exp()).abs()
        else:
            rest = 1 - old.exp()
            distance = old.exp() * (old - new) + rest * (_log_of_rest(old) - _log_of_rest(new))
        outward = torch.where(advantages > 0, new > old, new < old)
        cut = (distance > self.threshold) & outward
        return torch.where(cut, 0.0, -ratio * advantages), cut


def _log_of_rest(log_probs: Tensor) -> Tensor:
    """`log(1 - p)`, finite also where p rounds to 1."""
    return torch.log1p(-log_probs.exp()).clamp(min=math.log(torch.finfo(log_probs.dtype).tiny))


def clip_loss(
    logits: Tensor,
    old: SparseLogProbs | Tensor,
    tokens: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    temperature: float = 1.0,
    ratio: Ratio = "token",
    aggregation: Aggregation = "token-mean",
    normalizer: float | Tensor | None = None,
    sequence_ids: Tensor | None = None,
    reference: Reference | None = None,
    entropy_coefficient: float = 0.0,
) -> LossOutput:
    """PPO clipping from logits `[..., V]`; GSPO's with `ratio="sequence"` (whose authors clip at 3e-4 and 4e-4).

    Args:
        old: the sampling policy's rows, or its log-probabilities of the sampled tokens `[...]`.
        dual_clip: bounds the loss of tokens with negative advantage at this multiple of it.

    The other arguments are `troll_loss`'s.
    """
    reduction = Reduction(ratio, aggregation, normalizer, sequence_ids, reference, entropy_coefficient)
    rule = Clip(clip_low, clip_high, dual_clip)
    return _from_logits(logits, old, tokens, advantages, mask, temperature, rule, reduction)


def fused_clip_loss(
    hidden: Tensor,
    weight: Tensor,
    old: SparseLogProbs | Tensor,
    tokens: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    temperature: float = 1.0,
    ratio: Ratio = "token",
    aggregation: Aggregation = "token-mean",
    normalizer: float | Tensor | None = None,
    sequence_ids: Tensor | None = None,
    reference: Reference | None = None,
    entropy_coefficient: float = 0.0,
) -> LossOutput:
    """`clip_loss` from hidden states `[..., H]` and the output matrix `[V, H]`; see `fused_troll_loss` for those."""
    reduction = Reduction(ratio, aggregation, normalizer, sequence_ids, reference, entropy_coefficient)
    rule = Clip(clip_low, clip_high, dual_clip)
    layer = (weight, bias, temperature, logit_scale, softcap)
    return _from_hidden(hidden, layer, old, tokens, advantages, mask, chunk_size, rule, reduction)


def dppo_loss(
    logits: Tensor,
    old: SparseLogProbs | Tensor,
    tokens: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    divergence: Divergence = "tv",
    threshold: float = 0.2,
    temperature: float = 1.0,
    ratio: Ratio = "token",
    aggregation: Aggregation = "token-mean",
    normalizer: float | Tensor | None = None,
    sequence_ids: Tensor | None = None,
    reference: Reference | None = None,
    entropy_coefficient: float = 0.0,
) -> LossOutput:
    """DPPO from logits `[..., V]`: `divergence="tv"` (its authors' threshold 0.2) or `"kl"` (0.05).

    The other arguments are `clip_loss`'s.
    """
    reduction = Reduction(ratio, aggregation, normalizer, sequence_ids, reference, entropy_coefficient)
    rule = DivergenceMask(divergence, threshold)
    return _from_logits(logits, old, tokens, advantages, mask, temperature, rule, reduction)


def fused_dppo_loss(
    hidden: Tensor,
    weight: Tensor,
    old: SparseLogProbs | Tensor,
    tokens: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
    divergence: Divergence = "tv",
    threshold: float = 0.2,
    temperature: float = 1.0,
    ratio: Ratio = "token",
    aggregation: Aggregation = "token-mean",
    normalizer: float | Tensor | None = None,
    sequence_ids: Tensor | None = None,
    reference: Reference | None = None,
    entropy_coefficient: float = 0.0,
) -> LossOutput:
    """`dppo_loss` from hidden states `[..., H]` and the output matrix `[V, H]`; see `fused_troll_loss` for those."""
    reduction = Reduction(ratio, aggregation, normalizer, sequence_ids, reference, entropy_coefficient)
    rule = DivergenceMask(divergence, threshold)
    layer = (weight, bias, temperature, logit_scale, softcap)
    return _from_hidden(hidden, layer, old, tokens, advantages, mask, chunk_size, rule, reduction)


def _from_logits(
    logits: Tensor,
    old: SparseLogProbs | Tensor,
    tokens: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    temperature: float,
    rule: Clip | DivergenceMask,
    reduction: Reduction,
) -> LossOutput:
    checks.logits_and_tokens("logits", logits, tokens)
    checks.positive("temperature", temperature)
    size = logits.shape[-1]
    batch = select_batch(tokens, advantages, mask, size, reduction)
    kept = kept_from_logits(
        logits.reshape(-1, size),
        batch.rows,
        batch.tokens,
        at_ids=batch.tokens.unsqueeze(-1),
        max_tokens=1,
        dropped_mass=0.0,
        temperature=temperature,
    )
    return _surrogate(kept, _old_log_probs(old, tokens, batch), batch, rule, reduction)


def _from_hidden(
    hidden: Tensor,
    layer: tuple[Tensor, Tensor | None, float, float, float | None],
    old: SparseLogProbs | Tensor,
    tokens: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    chunk_size: int | None,
    rule: Clip | DivergenceMask,
    reduction: Reduction,
) -> LossOutput:
    checks.logits_and_tokens("hidden", hidden, tokens)
    head = make_head(hidden, *layer)
    batch = select_batch(tokens, advantages, mask, head.vocabulary_size, reduction)
    kept = kept_from_hidden(
        hidden.reshape(-1, hidden.shape[-1])[batch.rows],
        head,
        batch.tokens,
        rows=batch.rows,
        at_ids=batch.tokens.unsqueeze(-1),
        max_tokens=1,
        dropped_mass=0.0,
        chunk_size=chunk_size,
        backward="dense",
    )
    return _surrogate(kept, _old_log_probs(old, tokens, batch), batch, rule, reduction)


def _old_log_probs(old: SparseLogProbs | Tensor, tokens: Tensor, batch: Batch) -> Tensor:
    """The old log-probabilities `[M]` of the selected tokens."""
    log_probs = old if isinstance(old, Tensor) else old.token_log_probs
    checks.same_shape("old", log_probs, "tokens", tokens.shape)
    checks.floating("old", log_probs)
    chosen = checks.wide(log_probs.detach().reshape(-1)[batch.rows])
    checks.finite_rows("old", chosen, batch.rows)
    return chosen


def _surrogate(kept: Kept, old: Tensor, batch: Batch, rule: Clip | DivergenceMask, reduction: Reduction) -> LossOutput:
    new = kept.log_probs[:, 0]
    log_ratio = new - old
    ratio = importance(log_ratio, batch.segments, reduction.ratio)
    losses, cut = rule.loss(ratio, batch.advantages, new, old)
    policy_loss = reduction.total(losses, batch.segments)
    side_loss, metrics = side_terms(new, lambda: kept.entropy, batch, reduction)
    metrics |= count(new) | mean_and_max("ratio", ratio) | {"policy_loss": policy_loss.detach()}
    metrics |= {"fraction_clipped": mean(cut.to(new.dtype)), "entropy": mean(kept.entropy)}
    # Schulman's k3 from old samples: an estimate of KL(old || new).
    metrics["kl_old_new"] = mean(torch.expm1(log_ratio) - log_ratio)
    return LossOutput(policy_loss + side_loss, metrics)
