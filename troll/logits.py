"""The current policy's kept log-probabilities from a tensor of logits, with a backward that writes the logits once.

N rows of logits, M of them selected, K slots, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from troll import checks
from troll.sparse import Kept, rows_per_chunk, select_from_logits


def kept_from_logits(
    logits: Tensor,
    rows: Tensor,
    tokens: Tensor,
    *,
    at_ids: Tensor | None,
    max_tokens: int,
    dropped_mass: float,
    temperature: float,
) -> Kept:
    """`select_from_logits`, with `log_probs` differentiable in `logits` `[N, V]`."""
    kept = select_from_logits(
        logits.detach(),
        rows,
        tokens,
        at_ids=at_ids,
        max_tokens=max_tokens,
        dropped_mass=dropped_mass,
        temperature=temperature,
    )
    values = _Attach.apply(logits, kept.log_probs, kept.ids, kept.peak, kept.log_total, rows, temperature)
    return kept._replace(log_probs=values)


class _Attach(torch.autograd.Function):
    """Log-probabilities that are already known, given their gradient with respect to the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        log_probs: Tensor,
        ids: Tensor,
        peak: Tensor,
        log_total: Tensor,
        rows: Tensor,
        temperature: float,
    ) -> Tensor:
        ctx.save_for_backward(logits, ids, peak, log_total, rows)
        ctx.temperature = temperature
        return log_probs.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        logits, ids, peak, log_total, rows = ctx.saved_tensors
        temperature: float = ctx.temperature
        grad = grad.masked_fill(ids < 0, 0.0)
        out = torch.zeros_like(logits)
        step = rows_per_chunk(logits.shape[-1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            scaled = checks.wide(logits.index_select(0, rows[part])) / temperature
            dense = scaled.sub_(peak[part].unsqueeze(-1)).sub_(log_total[part].unsqueeze(-1)).exp_()
            dense.mul_(-grad[part].sum(-1, keepdim=True))
            dense.scatter_add_(-1, ids[part].clamp(min=0), grad[part])
            out.index_copy_(0, rows[part], (dense / temperature).to(out.dtype))
        return out, None, None, None, None, None, None
