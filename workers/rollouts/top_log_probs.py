"""A sampler's most likely tokens per position, kept as arrays, and how they become the old policy's sparse rows.

n tokens of one answer, N tokens of all answers together, K most likely tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

import troll

if TYPE_CHECKING:
    from workers.rollouts.engine import Rollout


@dataclass(frozen=True, eq=False)
class TopLogProbs:
    """The K most likely tokens at each of n positions, at the sampling temperature."""

    ids: NDArray[np.int32]
    """``[n, K]``"""
    log_probs: NDArray[np.float32]
    """``[n, K]`` in the whole softmax."""

    def extended(self, later: "TopLogProbs") -> "TopLogProbs":
        """Those of these positions and, behind them, of ``later`` ones."""
        return TopLogProbs(np.concatenate([self.ids, later.ids]), np.concatenate([self.log_probs, later.log_probs]))


def sparse_rows(rollouts: Sequence["Rollout"], vocabulary_size: int, **options: Any) -> troll.SparseLogProbs:
    """The sampler's distributions as the old policy: rows ``[N]``, the answers' tokens one after the other.

    ``options`` are those of ``troll.from_top_log_probs``. The support a row keeps is at most the K tokens sampled with.

    Raises:
        ValueError: rollouts that were sampled without their most likely tokens.
    """
    tops = [rollout.top for rollout in rollouts if rollout.top is not None]
    if not tops or len(tops) < len(rollouts):
        missing = [row for row, rollout in enumerate(rollouts) if rollout.top is None]
        raise ValueError(f"rollouts {missing[:5]}: sampled without top log-probabilities; start the engine with some")
    return troll.from_top_log_probs(
        torch.from_numpy(np.concatenate([top.ids for top in tops])),
        torch.from_numpy(np.concatenate([top.log_probs for top in tops])),
        torch.tensor([token for rollout in rollouts for token in rollout.token_ids]),
        torch.tensor([value for rollout in rollouts for value in rollout.log_probs]),
        vocabulary_size,
        **options,
    )
