"""The tensors of a loss call, checked and cut down to the tokens that count, and what a call returns.

M selected tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from troll import checks
from troll.aggregation import Segments, segments_of
from troll.reference import Reference


@dataclass(frozen=True)
class LossOutput:
    """What every loss of this package returns."""

    loss: Tensor
    """Scalar to minimise, differentiable."""
    metrics: dict[str, Tensor]
    """Detached scalars over this call's selected tokens; `tokens` says how many there were."""


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
    normalizer: float | Tensor | None
    reference: Reference | None
    """Its log-probabilities are those of the selected tokens, `[M]`."""


def select_batch(
    tokens: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    vocabulary_size: int,
    normalizer: float | Tensor | None,
    sequence_ids: Tensor | None,
    reference: Reference | None,
) -> Batch:
    """Checks the tensors the objectives share, and selects the tokens of the mask."""
    rows = checks.selected_rows(mask, tokens)
    flat = tokens.reshape(-1).long()
    checks.tokens_in_vocabulary(flat, rows, vocabulary_size)
    spread = checks.wide(checks.broadcast_advantages(advantages, tokens.shape).reshape(-1)[rows].detach())
    checks.finite_rows("advantages", spread, rows)
    if reference is not None:
        checks.same_shape("reference.log_probs", reference.log_probs, "tokens", tokens.shape)
        log_probs = checks.wide(reference.log_probs.detach().reshape(-1)[rows])
        checks.finite_rows("reference.log_probs", log_probs, rows)
        reference = Reference(log_probs, reference.coefficient, reference.estimator)
    return Batch(rows, flat[rows], spread, segments_of(rows, tokens.shape, sequence_ids), normalizer, reference)


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
