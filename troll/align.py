"""Two sparse rows put on the union of their supports, where the projection compares them.

M rows, K slots of a row, U slots of an aligned pair.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from troll.rows import SparseLogProbs


class AlignedPair(NamedTuple):
    """Two sparse rows on the union of their supports; the last slot is the tail both share."""

    log_new: Tensor
    """`[M, U]`, differentiable when the new row's values are."""
    log_old: Tensor
    """`[M, U]`"""
    log_count: Tensor
    """`[M, U]` log of how many tokens a slot stands for: 0, -inf for an empty slot, the tail's log-multiplicity."""


def align(new_ids: Tensor, new_log_probs: Tensor, new_tail: Tensor, old: SparseLogProbs) -> AlignedPair:
    """Puts new rows (`ids`, `log_probs` `[M, K]`, tail `[M]`) and old rows on the union of their supports.

    An id kept by one side only takes the other side's tail probability there. Slots: the new row's, then those of the
    old row's that the new row lacks, then the shared tail.
    """
    old_ids = old.ids.long()
    new_in_old, new_position = _find(new_ids, old_ids)
    old_in_new, _ = _find(old_ids, new_ids)
    old_only = ~old_in_new & (old_ids >= 0)
    new_kept = new_ids >= 0
    old_at_new = torch.where(new_in_old, old.log_probs.gather(-1, new_position), old.tail_log_prob.unsqueeze(-1))
    rest = old.vocabulary_size - new_kept.sum(-1, keepdim=True) - old_only.sum(-1, keepdim=True)
    counts = torch.cat([new_kept, old_only, rest], -1).to(new_log_probs.dtype)
    # Empty slots hold 0 on both sides, so that nothing there can become NaN; their count of zero takes them out.
    log_new = torch.cat(
        [
            new_log_probs.masked_fill(~new_kept, 0.0),
            torch.where(old_only, new_tail.unsqueeze(-1), 0.0),
            new_tail.unsqueeze(-1),
        ],
        -1,
    )
    log_old = torch.cat(
        [
            old_at_new.masked_fill(~new_kept, 0.0),
            old.log_probs.masked_fill(~old_only, 0.0),
            old.tail_log_prob.unsqueeze(-1),
        ],
        -1,
    )
    return AlignedPair(log_new, log_old.to(log_new.dtype), counts.log())


def _find(needles: Tensor, haystack: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each id of `needles` `[M, A]` stands in the same row of `haystack` `[M, B]`, and in which slot."""
    ordered, order = haystack.sort(-1)
    place = torch.searchsorted(ordered, needles.contiguous()).clamp(max=haystack.shape[-1] - 1)
    found = (ordered.gather(-1, place) == needles) & (needles >= 0)
    return found, order.gather(-1, place)
