"""The gradient of kept log-probabilities in the output layer's inputs, which touches kept rows only.

Under the sparse definition the gradient with respect to the logits is `scatter(G) - (sum G) softmax`, and `sum G` is
next to nothing: what a row's gradient says outside its support is a remainder that is bounded before it is left out.
So `d hidden` is a short weighted sum of output rows and `d weight` is written on those rows alone, or is nothing but
those rows where a sparse tensor is wanted. Rows whose remainder does not vanish (a cap that cuts off real mass) get the
dense part as well, computed again tile by tile.

M rows, H hidden size, V vocabulary, K slots, E entries (kept slots of all rows), D rows with a dense part.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from troll.head import Head, matmul
from troll.sparse import Kept

Backward = Literal["auto", "sparse", "dense"]
# The remainder that may be left out, relative to the gradient: a thousandth at most, and by far less in practice (the
# bound takes every left-out token's output row to point the same way). Where a vocabulary is small the dense part costs
# next to nothing, and in float64 somebody is checking: there it is left out only below rounding.
_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-3}
_TOLERANCE_SMALL = 1e-6
_SMALL_VOCABULARY = 1 << 14
_CPU_WORK_BYTES, _GPU_WORK_BYTES = 1 << 23, 1 << 28


class Attach(torch.autograd.Function):
    """Log-probabilities and entropies that are known, given their gradient in the output layer's inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kept: Kept,
        head: Head,
        backward: Backward,
        sparse_weight_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias, *kept)
        ctx.options = (head.temperature, head.logit_scale, head.softcap, backward, sparse_weight_grad)
        return kept.log_probs.clone(), kept.entropy.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *columns = ctx.saved_tensors
        *options, mode, sparse_weight_grad = ctx.options
        head, kept = Head(weight, bias, *options), Kept(*columns)
        pull = _pull(head, kept, grad, grad_entropy, mode)
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden, dtype=head.dtype) if want_hidden else None
        rows_only = sparse_weight_grad and not len(pull.dense_rows)
        d_weight = torch.zeros_like(weight) if want_weight and not rows_only else None
        d_bias = torch.zeros_like(bias, dtype=head.dtype) if want_bias and bias is not None else None
        if len(pull.dense_rows):
            _add_dense(hidden, head, kept, pull, d_hidden, d_weight, d_bias)
        _add_sparse(hidden, head, pull, d_hidden, d_weight, d_bias)
        if want_weight and rows_only:
            d_weight = _touched_rows(hidden, weight, pull)
        if d_hidden is not None:
            d_hidden = d_hidden.to(hidden.dtype)
        if d_bias is not None and bias is not None:
            d_bias = d_bias.to(bias.dtype)
        return d_hidden, d_weight, d_bias, None, None, None, None


class _Pull(NamedTuple):
    """The gradient with respect to the raw logits, as entries and as the rows that need a dense part."""

    entry_rows: Tensor
    """`[E]` row of each entry, rising."""
    entry_ids: Tensor
    """`[E]`"""
    entry_grads: Tensor
    """`[E]`"""
    dense_rows: Tensor
    """`[D]`"""
    dense_grads: Tensor
    """`[D]` what multiplies the softmax of those rows."""
    entropy_grads: Tensor
    """`[D]` what multiplies the gradient of their entropy."""


def _pull(head: Head, kept: Kept, grad: Tensor, grad_entropy: Tensor, mode: Backward) -> _Pull:
    """Splits the gradients of kept log-probabilities `[M, K]` and of entropies `[M]` into entries and dense rows."""
    full = kept.ids >= 0
    grad = grad.masked_fill(~full, 0.0)
    total = grad.sum(-1)
    probabilities = kept.log_probs.exp()
    inside = grad - total.unsqueeze(-1) * probabilities
    if mode == "auto":
        tolerance = _TOLERANCE[inside.dtype]
        if head.vocabulary_size < _SMALL_VOCABULARY:
            tolerance = min(tolerance, _TOLERANCE_SMALL)
        # All that the softmax of a row puts outside its support, times what would multiply it.
        remainder = total.abs() * (1.0 - probabilities.sum(-1)).clamp(min=0)
        dense = _too_long(remainder, inside, tolerance)
    else:
        dense = (total != 0) & (mode == "dense")
    dense |= grad_entropy != 0
    entries = torch.where(dense.unsqueeze(-1), grad, inside)
    entries = entries * head.slope(kept.log_probs + (kept.peak + kept.log_total).unsqueeze(-1))
    # A slot at -inf has no gradient, but its slope is not a number.
    wanted = full & (entries != 0) & (kept.log_probs > -torch.inf)
    rows, slots = wanted.nonzero(as_tuple=True)
    dense_rows = dense.nonzero().squeeze(-1)
    dense_grads = (-total[dense_rows], grad_entropy[dense_rows])
    return _Pull(rows, kept.ids[rows, slots], entries[rows, slots], dense_rows, *dense_grads)


def _too_long(remainder: Tensor, inside: Tensor, tolerance: float) -> Tensor:
    """Which rows' remainders `[M]` may not be left out beside gradients `inside` `[M, K]`.

    None, as long as all of them together are a small part of the batch's gradient.
    """
    length: Tensor = torch.linalg.vector_norm(inside, dim=-1)
    usual = length.square().sum().div(max(len(length), 1)).sqrt()
    small = remainder.square().sum().sqrt() <= tolerance * length.square().sum().sqrt()
    return (remainder > 0.7 * tolerance * torch.maximum(length, usual)) & ~small


def _add_dense(
    hidden: Tensor,
    head: Head,
    kept: Kept,
    pull: _Pull,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
) -> None:
    """Adds `dense_grads * softmax`, and the entropy's gradient, of the dense rows, tile by tile over the vocabulary."""
    rows = pull.dense_rows
    part, peak, log_total = hidden[rows], kept.peak[rows].unsqueeze(-1), kept.log_total[rows].unsqueeze(-1)
    entropy, entropy_scale = kept.entropy[rows].unsqueeze(-1), pull.entropy_grads.unsqueeze(-1)
    stirred, lowest = bool(entropy_scale.any()), 0.5 * torch.finfo(head.dtype).min
    back = torch.zeros_like(part, dtype=head.dtype)
    for start, stop in head.tiles(len(rows)):
        logits = head.tile(part, start, stop)
        slope = head.slope(logits)
        scale = pull.dense_grads.unsqueeze(-1)
        if stirred:
            scale = scale - entropy_scale * (logits.clamp(min=lowest) - peak - log_total + entropy)
        grads = logits.sub_(peak).sub_(log_total).exp_().mul_(scale).mul_(slope)
        operand = grads.to(hidden.dtype)
        if d_hidden is not None:
            back += matmul(operand, head.weight[start:stop])
        if d_weight is not None:
            d_weight[start:stop] = matmul(operand.T, part)
        if d_bias is not None:
            d_bias[start:stop] += grads.sum(0)
    if d_hidden is not None:
        d_hidden[rows] = back


def _add_sparse(
    hidden: Tensor, head: Head, pull: _Pull, d_hidden: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None
) -> None:
    """Adds the entries: sums of output rows into `d_hidden`, sums of hidden states into the weight's rows."""
    if not len(pull.entry_rows):
        return
    if d_bias is not None:
        d_bias.index_add_(0, pull.entry_ids, pull.entry_grads)
    if d_hidden is not None:
        rows, counts = torch.unique_consecutive(pull.entry_rows, return_counts=True)
        sums = _weighted_sums(head.weight, pull.entry_ids, pull.entry_grads, counts)
        for first, part in sums:
            d_hidden[rows[first : first + len(part)]] += part
    if d_weight is not None:
        targets, sums = _sums_by_token(hidden, pull)
        for first, part in sums:
            chosen = targets[first : first + len(part)]
            if len(pull.dense_rows):
                part += d_weight[chosen]
            d_weight.index_copy_(0, chosen, part.to(d_weight.dtype))


def _touched_rows(hidden: Tensor, weight: Tensor, pull: _Pull) -> Tensor:
    """The weight's gradient as a sparse tensor that holds the entries' rows."""
    targets, sums = _sums_by_token(hidden, pull)
    values = weight.new_empty(len(targets), weight.shape[1])
    for first, part in sums:
        values[first : first + len(part)] = part
    return torch.sparse_coo_tensor(
        targets.unsqueeze(0), values, weight.shape, is_coalesced=True, check_invariants=False
    )


def _sums_by_token(hidden: Tensor, pull: _Pull) -> tuple[Tensor, Iterator[tuple[int, Tensor]]]:
    """The rising token ids of the entries, each once, and parts of the sums that the weight's rows of them get."""
    ids, order = pull.entry_ids.sort()
    targets, counts = torch.unique_consecutive(ids, return_counts=True)
    return targets, _weighted_sums(hidden, pull.entry_rows[order], pull.entry_grads[order], counts)


def _weighted_sums(table: Tensor, index: Tensor, weights: Tensor, counts: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Sums of `weights * table[index]` over runs of `counts` entries, as parts (first run, `[runs, H]`).

    A part has at most as many entries as fill the work space; a table in half precision is widened part by part.
    """
    ends = counts.cumsum(0).cpu()
    work = _CPU_WORK_BYTES if table.device.type == "cpu" else _GPU_WORK_BYTES
    step = max(1, work // (table.shape[1] * weights.element_size()))
    first = begin = 0
    while first < len(ends):
        last = max(int(torch.searchsorted(ends, begin + step, right=True)), first + 1)
        stop = int(ends[last - 1])
        offsets = torch.cat([counts.new_zeros(1), counts[first : last - 1].cumsum(0)])
        rows, places = table, index[begin:stop]
        if table.dtype != weights.dtype:
            rows, places = table[places].to(weights.dtype), torch.arange(stop - begin, device=table.device)
        yield first, embedding_bag(places, rows, offsets, mode="sum", per_sample_weights=weights[begin:stop])
        first, begin = last, stop
