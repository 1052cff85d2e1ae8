"""Triton kernels behind the package's own functions; the plain PyTorch versions are always there.

A caller asks `available(tensor)` and, where it says yes, calls the function of the same meaning from here. Nothing is
imported from Triton before the first such call, so the package works without it. `TROLL_KERNELS=off` in the environment
turns the kernels off.
"""

import functools
import importlib.util
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from troll.kernels.selection import Scanner
    from troll.kernels.terms import Terms

__all__ = ["MAX_SLOTS", "available", "keep", "normalise", "scan_logits", "scanner", "token_terms"]

MAX_SLOTS = 258
"""The most slots of a row that the kernels hold: 256 candidates, the sampled token, the tail."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _importable() -> bool:
    return importlib.util.find_spec("triton") is not None


def available(tensor: Tensor, slots: int = 0) -> bool:
    """Whether the kernels can work on `tensor` (CUDA, single or half precision) and rows of `slots` entries."""
    fits = tensor.is_cuda and tensor.dtype in _DTYPES and slots <= MAX_SLOTS
    return fits and os.environ.get("TROLL_KERNELS", "on") != "off" and _importable()


def scanner(ids: Tensor, top: int) -> "Scanner":
    """Reads logits tile by tile: `.see(logits, start)` for every tile, then `.result()`.

    Args:
        ids: `[M, C]` token ids whose logits are wanted; negative ids read as -inf.
        top: how many of the most likely tokens to find; 0 for none.
    """
    from troll.kernels import selection

    return selection.Scanner(ids, top)


def scan_logits(logits: Tensor, rows: Tensor, ids: Tensor, top: int, temperature: float) -> tuple[Tensor, ...]:
    """What a scan keeps of rows `rows` `[M]` of `logits` `[N, V]`, without a copy of them.

    Returns peak, log-total and entropy `[M]`, values at `ids` `[M, C]`, and the `top` values and ids, falling.
    """
    from troll.kernels import selection

    return selection.scan_logits(logits, rows, ids, top, temperature)


def keep(
    top_ids: Tensor, top_log_probs: Tensor, tokens: Tensor, token_log_probs: Tensor, dropped_mass: float, spare: int = 0
) -> tuple[Tensor, Tensor]:
    """`troll.sparse.keep`."""
    from troll.kernels import selection

    return selection.keep(top_ids, top_log_probs, tokens, token_log_probs, dropped_mass, spare)


def normalise(
    ids: Tensor, log_probs: Tensor, vocabulary_size: int, default_prob: float, tail: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`troll.sparse.normalise`, not differentiable: for the old policy's rows.

    It rounds as `token_terms` does, so that a policy that has not moved has a ratio of exactly 1.
    """
    from troll.kernels import terms

    return terms.normalise(ids, log_probs, vocabulary_size, default_prob, tail)


def token_terms(
    ids: Tensor,
    log_probs: Tensor,
    old_ids: Tensor,
    old_log_probs: Tensor,
    old_tail: Tensor,
    vocabulary_size: int,
    kl_bound: float,
    default_prob: float,
    tail: str,
) -> "Terms":
    """The objective's terms per token, differentiable in `log_probs`: align, project and differentiate in one pass.

    Args:
        ids: `[M, K]` kept ids of the new policy, -1 in empty slots, slot 0 the sampled token.
        log_probs: `[M, K]` their log-softmax values, before normalisation.
        old_ids: `[M, L]` kept ids of the old policy, -1 in empty slots.
        old_log_probs: `[M, L]` their normalised log-probabilities.
        old_tail: `[M]` log-probability of each token the old policy left out.
    """
    from troll.kernels import terms

    return terms.token_terms(
        ids, log_probs, old_ids, old_log_probs, old_tail, vocabulary_size, kl_bound, default_prob, tail
    )
