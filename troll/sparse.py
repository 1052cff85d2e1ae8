"""Sparse next-token distributions: which entries of a row are kept, and how they are normalised.

Shapes: `...` leading (`[B, T]` or `[N]`), M rows, K slots, U slots of an aligned pair, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from troll import checks, kernels
from troll.rows import TENSORS, SparseLogProbs, Tail

_CHUNK_BYTES = 1 << 26


class Kept(NamedTuple):
    """Kept entries of M rows before normalisation: what a forward pass selects."""

    ids: Tensor
    """`[M, K]` int64, -1 in empty slots, slot 0 the sampled token."""
    log_probs: Tensor
    """`[M, K]` log-softmax values, -inf in empty slots."""
    peak: Tensor
    """`[M]` largest logit of the row (at the sampling temperature)."""
    log_total: Tensor
    """`[M]` log-sum-exp of the whole row minus `peak`: kept apart, the two are exact where their sum would round."""
    entropy: Tensor
    """`[M]` entropy of the whole row in nats."""


def keep(
    top_ids: Tensor, top_log_probs: Tensor, tokens: Tensor, token_log_probs: Tensor, dropped_mass: float, spare: int = 0
) -> tuple[Tensor, Tensor]:
    """Keeps the smallest leading set of sorted candidates `[M, C]` that holds `1 - dropped_mass`, and the token.

    Returns ids and log-probabilities `[M, C + 1]` with the sampled token in slot 0. `spare` entries beyond the
    smallest set are kept as well, where there are candidates.
    """
    if kernels.available(top_log_probs, top_ids.shape[1]):
        return kernels.keep(top_ids, top_log_probs, tokens, token_log_probs, dropped_mass, spare)
    # The threshold sits a few float32 roundings from 1, so the masses are summed in float64 where there is one.
    mass = top_log_probs.to(checks.summation_dtype(top_log_probs)).exp()
    mass_before = mass.cumsum(-1) - mass
    if spare:
        mass_before = torch.cat([mass_before.new_zeros(len(mass), spare), mass_before], -1)[:, : mass.shape[1]]
    wanted = (mass_before < 1.0 - dropped_mass) & (top_ids != tokens.unsqueeze(-1)) & (top_log_probs > -torch.inf)
    ids = torch.cat([tokens.unsqueeze(-1), top_ids.masked_fill(~wanted, -1)], -1)
    log_probs = torch.cat([token_log_probs.unsqueeze(-1), top_log_probs.masked_fill(~wanted, -torch.inf)], -1)
    return ids, log_probs


def normalise(
    ids: Tensor, log_probs: Tensor, vocabulary_size: int, default_prob: float, tail: Tail = "constant"
) -> tuple[Tensor, Tensor, Tensor]:
    """Joins kept log-probabilities `[M, K]` and the tail into distributions; differentiable in `log_probs`.

    With `tail="constant"` every token left out gets `default_prob` and the row is renormalised; with `tail="mass"`
    the mass that was left out is spread evenly over them (never less than `default_prob` each).

    Returns log-probabilities `[M, K]`, the log-probability of each token left out `[M]`, and the kept mass `[M]`.
    """
    left_out = (vocabulary_size - (ids >= 0).sum(-1)).to(log_probs.dtype)
    kept_mass = log_probs.exp().sum(-1)
    floor = left_out * default_prob
    left_mass = floor if tail == "constant" else torch.maximum(1.0 - kept_mass, floor)
    log_total = torch.log(kept_mass + left_mass)
    # A row that keeps the whole vocabulary has no tail; its value is never used, and must not become NaN.
    tail_log_prob = torch.log(torch.where(left_out > 0, left_mass, 1.0) / left_out.clamp(min=1)) - log_total
    return log_probs - log_total.unsqueeze(-1), tail_log_prob, kept_mass


def rows_per_chunk(vocabulary_size: int, chunk_bytes: int = _CHUNK_BYTES) -> int:
    """How many float32 rows of logits make a chunk of about `chunk_bytes`."""
    return max(1, chunk_bytes // (4 * vocabulary_size))


def select_from_logits(
    logits: Tensor,
    rows: Tensor,
    tokens: Tensor,
    *,
    max_tokens: int,
    dropped_mass: float,
    temperature: float,
    spare: int = 0,
    at_ids: Tensor | None = None,
) -> Kept:
    """Selects the kept entries of rows `rows` `[M]` of `logits` `[N, V]` for `tokens` `[M]`, without gradient.

    With `at_ids` `[M, K]` the support is given (-1 in empty slots) and only the values are read.
    """
    if kernels.available(logits, max_tokens + 1):
        return _select_by_scan(logits, rows, tokens, max_tokens, dropped_mass, temperature, spare, at_ids)
    parts = []
    step = rows_per_chunk(logits.shape[-1])
    with torch.no_grad():
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            scaled = checks.wide(logits.index_select(0, rows[part])) / temperature
            peak, log_total, entropy = shift_by_peak(scaled)
            if at_ids is None:
                values, ids = scaled.topk(min(max_tokens, scaled.shape[-1]), -1)
                token_values = scaled.gather(-1, tokens[part].unsqueeze(-1)).squeeze(-1) - log_total
                ids, log_probs = keep(
                    ids, values - log_total.unsqueeze(-1), tokens[part], token_values, dropped_mass, spare
                )
            else:
                ids = at_ids[part]
                log_probs = scaled.gather(-1, ids.clamp(min=0)) - log_total.unsqueeze(-1)
                log_probs = log_probs.masked_fill(ids < 0, -torch.inf)
            parts.append(Kept(ids, log_probs, peak, log_total, entropy))
    kept = Kept(*(torch.cat(column) for column in zip(*parts, strict=True))) if parts else _no_rows(logits, max_tokens)
    checks.finite_rows("logits", kept.peak + kept.log_total, rows)
    return kept


def _select_by_scan(
    logits: Tensor,
    rows: Tensor,
    tokens: Tensor,
    max_tokens: int,
    dropped_mass: float,
    temperature: float,
    spare: int,
    at_ids: Tensor | None,
) -> Kept:
    """`select_from_logits` where kernels read the rows in place."""
    wanted = tokens.unsqueeze(-1) if at_ids is None else at_ids
    top = min(max_tokens, logits.shape[-1]) if at_ids is None else 0
    seen = kernels.scan_logits(logits.detach(), rows, wanted, top, temperature)
    peak, log_total, entropy, values, top_values, ids = seen
    checks.finite_rows("logits", peak + log_total, rows)
    # The peak goes first: where logits are large, its sum with the log-total would round.
    values = values - peak.unsqueeze(-1) - log_total.unsqueeze(-1)
    if at_ids is not None:
        return Kept(at_ids, values, peak, log_total, entropy)
    top_values = top_values - peak.unsqueeze(-1) - log_total.unsqueeze(-1)
    ids, values = keep(ids, top_values, tokens, values[:, 0], dropped_mass, spare)
    return Kept(ids, values, peak, log_total, entropy)


def shift_by_peak(scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Subtracts its peak from each row of logits `[C, V]`, in place.

    Returns the peaks, the log-sum-exp of what is left, and the entropy, `[C]` each.
    """
    peak = scaled.amax(-1)
    weights = scaled.sub_(peak.unsqueeze(-1)).exp()
    total = weights.sum(-1)
    mean = torch.linalg.vecdot(weights, scaled.clamp(min=torch.finfo(scaled.dtype).min)) / total
    log_total = total.log()
    return peak, log_total, log_total - mean


def _no_rows(logits: Tensor, max_tokens: int) -> Kept:
    slots = min(max_tokens, logits.shape[-1]) + 1
    empty = torch.empty(0, slots, device=logits.device, dtype=checks.wide_dtype(logits.dtype))
    return Kept(empty.long(), empty, empty[:, 0], empty[:, 0], empty[:, 0])


def sparsify(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    max_tokens: int = 64,
    dropped_mass: float = 1e-5,
    default_prob: float = 1e-12,
    temperature: float = 1.0,
    tail: Tail = "constant",
    spare_tokens: int = 0,
) -> SparseLogProbs:
    """The old policy's sparse rows, detached.

    Per row the smallest set of most likely tokens that holds `1 - dropped_mass` is kept, at most `max_tokens`, and
    always the sampled token.

    Args:
        logits: `[..., V]` floating point; divided by `temperature`, accumulated in float32 at least.
        tokens: `[...]` integer, the sampled tokens.
        mask: `[...]`, rows where it is zero are not read and come back empty. Everything is read without it.
        default_prob: probability of each token left out (the paper's), used by `tail="constant"`.
        tail: `"constant"`, or `"mass"` to spread the mass that was really left out.
        spare_tokens: how many tokens to keep beyond the smallest set, still at most `max_tokens`.

    Raises:
        ValueError: shapes, dtypes, options or tokens that do not fit, and rows with NaN or infinity.
    """
    checks.logits_and_tokens("logits", logits, tokens)
    checks.sparsity(max_tokens, dropped_mass, default_prob, temperature, logits.shape[-1], tail)
    flat_logits, flat_tokens = logits.detach().reshape(-1, logits.shape[-1]), tokens.reshape(-1).long()
    rows = checks.selected_rows(mask, tokens)
    checks.tokens_in_vocabulary(flat_tokens, rows, logits.shape[-1])
    kept = select_from_logits(
        flat_logits,
        rows,
        flat_tokens[rows],
        max_tokens=max_tokens,
        dropped_mass=dropped_mass,
        temperature=temperature,
        spare=spare_tokens,
    )
    return spread(sparse_from_kept(kept, logits.shape[-1], default_prob, tail), rows, tokens.shape)


def sparse_from_kept(kept: Kept, vocabulary_size: int, default_prob: float, tail: Tail) -> SparseLogProbs:
    """Normalised sparse rows `[M]` from what a forward pass kept."""
    function = kernels.normalise if kernels.available(kept.log_probs, kept.ids.shape[1]) else normalise
    log_probs, tail_log_prob, kept_mass = function(kept.ids, kept.log_probs, vocabulary_size, default_prob, tail)
    return SparseLogProbs(
        kept.ids.int(), log_probs, tail_log_prob, kept_mass, kept.log_probs[:, 0].contiguous(), vocabulary_size
    )


def spread(sparse: SparseLogProbs, rows: Tensor, shape: torch.Size) -> SparseLogProbs:
    """Puts `sparse` `[M]` at flat positions `rows` of a leading `shape`; the other rows are empty."""
    if len(rows) == shape.numel():
        return sparse.reshape(*shape)
    fill = {"ids": -1, "log_probs": -torch.inf}

    def place(name: str) -> Tensor:
        tensor: Tensor = getattr(sparse, name)
        whole = tensor.new_full((shape.numel(), *tensor.shape[1:]), fill.get(name, 0.0))
        return whole.index_copy_(0, rows, tensor).reshape(*shape, *tensor.shape[1:])

    return SparseLogProbs(**{name: place(name) for name in TENSORS}, vocabulary_size=sparse.vocabulary_size)


def from_top_log_probs(
    ids: Tensor,
    log_probs: Tensor,
    tokens: Tensor,
    token_log_probs: Tensor,
    vocabulary_size: int,
    *,
    max_tokens: int = 64,
    dropped_mass: float = 1e-5,
    default_prob: float = 1e-12,
    tail: Tail = "constant",
) -> SparseLogProbs:
    """The old policy's sparse rows from a sampler's top log-probabilities instead of logits.

    Args:
        ids: `[..., C]` integer candidates in any order, -1 where a row has fewer.
        log_probs: `[..., C]` their log-probabilities in the whole softmax, at the sampling temperature.
        tokens: `[...]` the sampled tokens; they need not be among the candidates.
        token_log_probs: `[...]` their log-probabilities.
    """
    checks.top_log_probs(ids, log_probs, tokens, token_log_probs, vocabulary_size)
    checks.sparsity(max_tokens, dropped_mass, default_prob, 1.0, vocabulary_size, tail)
    flat_tokens, slots = tokens.reshape(-1).long(), ids.shape[-1]
    flat_ids = ids.reshape(-1, slots).long()
    flat = checks.wide(log_probs.detach()).reshape(-1, slots).masked_fill(flat_ids < 0, -torch.inf)
    values, order = flat.topk(min(max_tokens, slots), -1)
    token_values = checks.wide(token_log_probs.detach()).reshape(-1)
    kept_ids, kept = keep(flat_ids.gather(-1, order), values, flat_tokens, token_values, dropped_mass)
    unused = torch.zeros_like(token_values)
    sparse = sparse_from_kept(Kept(kept_ids, kept, unused, unused, unused), vocabulary_size, default_prob, tail)
    return sparse.reshape(*tokens.shape)
