"""What every loss of the package does around its own formula: check and select the batch, reduce tokens to one number.

M selected tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from troll import checks
from troll.aggregation import AGGREGATIONS, Aggregation, Segments, aggregate, need_sequences, segments_of
from troll.reference import Reference, reference_kl

Ratio = Literal["token", "sequence"]
_MAX_LOG_RATIO = 10.0


@dataclass(frozen=True)
class LossOutput:
    """What every loss of this package returns."""

    loss: Tensor
    """Scalar to minimise, differentiable."""
    metrics: dict[str, Tensor]
    """Detached scalars over this call's selected tokens; `tokens` says how many there were."""


@dataclass(frozen=True)
class Reduction:
    """How tokens become one number: the options all losses share."""

    ratio: Ratio
    aggregation: Aggregation
    normalizer: float | Tensor | None
    sequence_ids: Tensor | None
    reference: Reference | None
    entropy_coefficient: float

    def __post_init__(self) -> None:
        checks.one_of("ratio", self.ratio, ("token", "sequence"))
        checks.one_of("aggregation", self.aggregation, AGGREGATIONS)
        checks.not_negative("entropy_coefficient", self.entropy_coefficient)

    def total(self, values: Tensor, segments: Segments) -> Tensor:
        """One scalar from a value per token `[M]`."""
        return aggregate(values, segments, self.aggregation, self.normalizer)


@dataclass(frozen=True)
class Batch:
    """The tensors of a loss call, checked, flat, and cut down to the M tokens the mask selects."""

    rows: Tensor
    """`[M]` flat positions."""
    tokens: Tensor
    """`[M]`"""
    advantages: Tensor
    """`[M]`"""
    segments: Segments
    reference_log_probs: Tensor | None
    """`[M]`"""


def select_batch(
    tokens: Tensor, advantages: Tensor, mask: Tensor | None, vocabulary_size: int, reduction: Reduction
) -> Batch:
    """Checks the tensors the losses share, and selects the tokens of the mask."""
    if reduction.ratio == "sequence":
        need_sequences(tokens.shape, reduction.sequence_ids, "ratio='sequence'")
    if reduction.aggregation != "token-mean":
        need_sequences(tokens.shape, reduction.sequence_ids, f"aggregation={reduction.aggregation!r}")
    rows = checks.selected_rows(mask, tokens)
    flat = tokens.reshape(-1).long()
    checks.tokens_in_vocabulary(flat, rows, vocabulary_size)
    spread = checks.wide(checks.broadcast_advantages(advantages, tokens.shape).reshape(-1)[rows].detach())
    checks.finite_rows("advantages", spread, rows)
    reference = None
    if reduction.reference is not None:
        checks.same_shape("reference.log_probs", reduction.reference.log_probs, "tokens", tokens.shape)
        reference = checks.wide(reduction.reference.log_probs.detach().reshape(-1)[rows])
        checks.finite_rows("reference.log_probs", reference, rows)
    return Batch(rows, flat[rows], spread, segments_of(rows, tokens.shape, reduction.sequence_ids), reference)


def importance(log_ratio: Tensor, segments: Segments, ratio: Ratio) -> Tensor:
    """Importance weights `[M]` from the tokens' log-ratios.

    At sequence level (GSPO) a weight has the value of its sequence's geometric mean and the gradient of its own token.
    """
    if ratio == "token":
        return log_ratio.exp()
    of_sequence = segments.mean(log_ratio.detach()).clamp(max=_MAX_LOG_RATIO).exp()
    return of_sequence[segments.index] * (log_ratio - log_ratio.detach()).exp()


def side_terms(
    log_probs: Tensor, entropy: Callable[[], Tensor], batch: Batch, reduction: Reduction
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted KL to the reference policy less the entropy bonus, and their metrics.

    Args:
        log_probs: `[M]` of the sampled tokens.
        entropy: gives `[M]` entropies to differentiate; asked only if there is a bonus.
    """
    term, metrics = log_probs.new_zeros(()), {}
    if reduction.reference is not None and batch.reference_log_probs is not None:
        divergence = reference_kl(log_probs, batch.reference_log_probs, reduction.reference.estimator)
        term = reduction.reference.coefficient * reduction.total(divergence, batch.segments)
        metrics = {"reference_kl": mean(divergence), "reference_loss": term.detach()}
    if reduction.entropy_coefficient:
        bonus = reduction.entropy_coefficient * reduction.total(entropy(), batch.segments)
        term, metrics = term - bonus, metrics | {"entropy_bonus": bonus.detach()}
    return term, metrics


def mean(values: Tensor) -> Tensor:
    """Detached mean of `[M]` values, 0 of none."""
    return values.detach().sum() / max(len(values), 1)


def mean_and_max(name: str, values: Tensor) -> dict[str, Tensor]:
    """Metrics `name` and `name_max` of `[M]` values, 0 of none."""
    largest = values.detach().max() if len(values) else values.new_zeros(())
    return {name: mean(values), f"{name}_max": largest}


def count(values: Tensor) -> dict[str, Tensor]:
    """The metric `tokens`."""
    return {"tokens": torch.tensor(float(len(values)), device=values.device)}
