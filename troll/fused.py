"""Sparse rows and kept log-probabilities from hidden states and the output matrix, without a tensor of the logits.

M rows, H hidden size, V vocabulary, K slots.
"""

import torch
from torch import Tensor

from troll import checks
from troll.gradient import Attach, Backward
from troll.head import Head, scan
from troll.rows import SparseLogProbs, Tail
from troll.sparse import Kept, keep, sparse_from_kept, spread


def select_from_hidden(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    *,
    max_tokens: int,
    dropped_mass: float,
    spare: int = 0,
    rows: Tensor,
    at_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Kept:
    """Selects the kept entries of rows `hidden` `[M, H]` for `tokens` `[M]`, without gradient.

    `rows` `[M]` are the numbers an error names them by.
    With `at_ids` `[M, K]` the support is given (-1 in empty slots) and only the values are read.
    """
    with torch.no_grad():
        wanted = tokens.unsqueeze(-1) if at_ids is None else at_ids
        seen = scan(hidden.detach(), head, wanted, 0 if at_ids is not None else max_tokens, chunk_size)
        checks.finite_rows("hidden", seen.peak + seen.log_total, rows)
        offset = seen.peak.unsqueeze(-1)
        values = seen.values - offset - seen.log_total.unsqueeze(-1)
        if at_ids is None:
            top = seen.top_values - offset - seen.log_total.unsqueeze(-1)
            ids, values = keep(seen.top_ids, top, tokens, values[:, 0], dropped_mass, spare)
        else:
            ids = at_ids
    return Kept(ids, values, seen.peak, seen.log_total, seen.entropy)


def kept_from_hidden(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    *,
    rows: Tensor,
    at_ids: Tensor | None,
    max_tokens: int,
    dropped_mass: float,
    chunk_size: int | None,
    backward: Backward,
    sparse_weight_grad: bool = False,
) -> Kept:
    """`select_from_hidden`, with `log_probs` and `entropy` differentiable in `hidden` and the head's parameters."""
    frozen = head.detach()
    kept = select_from_hidden(
        hidden,
        frozen,
        tokens,
        rows=rows,
        at_ids=at_ids,
        max_tokens=max_tokens,
        dropped_mass=dropped_mass,
        chunk_size=chunk_size,
    )
    log_probs, entropy = Attach.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, kept, frozen, backward, sparse_weight_grad
    )
    return kept._replace(log_probs=log_probs, entropy=entropy)


def fused_sparsify(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
    max_tokens: int = 64,
    dropped_mass: float = 1e-5,
    default_prob: float = 1e-12,
    temperature: float = 1.0,
    tail: Tail = "constant",
    spare_tokens: int = 0,
) -> SparseLogProbs:
    """`sparsify` from hidden states `[..., H]` and an output matrix `[V, H]`: see `Objective.fused_loss` for it."""
    checks.logits_and_tokens("hidden", hidden, tokens)
    head = make_head(hidden, weight, bias, temperature, logit_scale, softcap).detach()
    checks.sparsity(max_tokens, dropped_mass, default_prob, temperature, head.vocabulary_size, tail)
    flat_hidden, flat_tokens = hidden.detach().reshape(-1, hidden.shape[-1]), tokens.reshape(-1).long()
    rows = checks.selected_rows(mask, tokens)
    checks.tokens_in_vocabulary(flat_tokens, rows, head.vocabulary_size)
    kept = select_from_hidden(
        flat_hidden[rows],
        head,
        flat_tokens[rows],
        rows=rows,
        max_tokens=max_tokens,
        dropped_mass=dropped_mass,
        spare=spare_tokens,
        chunk_size=chunk_size,
    )
    return spread(sparse_from_kept(kept, head.vocabulary_size, default_prob, tail), rows, tokens.shape)


def make_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: float,
    logit_scale: float,
    softcap: float | None,
) -> Head:
    """A checked `Head` for hidden states `[..., H]`."""
    checks.projection_matrix(hidden, weight, bias)
    checks.positive("temperature", temperature)
    checks.positive("logit_scale", logit_scale)
    if softcap is not None:
        checks.positive("softcap", softcap)
    return Head(weight, bias, temperature, logit_scale, softcap)
