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
    """`select_from_logits`, with `log_probs` and `entropy` differentiable in `logits` `[N, V]`."""
    kept = select_from_logits(
        logits.detach(),
        rows,
        tokens,
        at_ids=at_ids,
        max_tokens=max_tokens,
        dropped_mass=dropped_mass,
        temperature=temperature,
    )
    log_probs, entropy = _Attach.apply(logits, kept, rows, temperature)  # type: ignore[no-untyped-call]
    return kept._replace(log_probs=log_probs, entropy=entropy)


class _Attach(torch.autograd.Function):
    """Log-probabilities and entropies that are already known, given their gradient with respect to the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, kept: Kept, rows: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, rows, *kept)
        ctx.temperature = temperature
        return kept.log_probs.clone(), kept.entropy.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_entropy: Tensor) -> tuple[Tensor, None, None, None]:
        logits, rows, *columns = ctx.saved_tensors
        kept = Kept(*columns)
        grad = grad.masked_fill(kept.ids < 0, 0.0)
        stirred, lowest = bool(grad_entropy.any()), 0.5 * torch.finfo(grad.dtype).min
        out = torch.zeros_like(logits)
        step = rows_per_chunk(logits.shape[-1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            scaled = checks.wide(logits.index_select(0, rows[part])) / ctx.temperature
            log_probs = scaled.sub_(kept.peak[part].unsqueeze(-1)).sub_(kept.log_total[part].unsqueeze(-1))
            scale = -grad[part].sum(-1, keepdim=True)
            if stirred:
                surprise = log_probs.clamp(min=lowest) + kept.entropy[part].unsqueeze(-1)
                scale = scale - grad_entropy[part].unsqueeze(-1) * surprise
            dense = log_probs.exp_().mul_(scale)
            dense.scatter_add_(-1, kept.ids[part].clamp(min=0), grad[part])
            out.index_copy_(0, rows[part], (dense / ctx.temperature).to(out.dtype))
        return out, None, None, None
