"""Cross-entropy for supervised fine-tuning, called as the objectives are, so that both train through one output layer.

Its gradient with respect to the logits is dense; the fused form computes it tile by tile.

M selected tokens, V vocabulary.
"""

from torch import Tensor

from troll import checks
from troll.batch import LossOutput, count, mean
from troll.fused import kept_from_hidden, make_head
from troll.logits import kept_from_logits
from troll.sparse import Kept


def cross_entropy(
    logits: Tensor, tokens: Tensor, mask: Tensor | None = None, *, normalizer: float | Tensor | None = None
) -> LossOutput:
    """The negative log-likelihood of `tokens` `[...]` under `logits` `[..., V]`, summed and divided by `normalizer`.

    Args:
        mask: `[...]`, zero leaves a token out. Such rows are not read at all.
        normalizer: the number of tokens of the whole batch, for calls that see a part of it; the parts' losses and
            gradients then add up to those of one call. This call's own count without it.

    Returns the loss, and as metrics `tokens`, `accuracy` (how often the right token is the most likely one) and
    `entropy` (nats).

    Raises:
        ValueError: names the argument that does not fit and, where rows are at fault, the first of them.
    """
    checks.logits_and_tokens("logits", logits, tokens)
    vocabulary_size = logits.shape[-1]
    rows, flat = _selected(tokens, mask, vocabulary_size)
    kept = kept_from_logits(
        logits.reshape(-1, vocabulary_size),
        rows,
        flat,
        at_ids=None,
        max_tokens=1,
        dropped_mass=0.0,
        temperature=1.0,
    )
    return _loss(kept, normalizer)


def fused_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
    normalizer: float | Tensor | None = None,
) -> LossOutput:
    """`cross_entropy` from hidden states `[..., H]` and the output matrix `[V, H]`; logits exist a tile at a time.

    The other arguments are those of `Objective.fused_loss`.
    """
    checks.logits_and_tokens("hidden", hidden, tokens)
    head = make_head(hidden, weight, bias, 1.0, logit_scale, softcap)
    rows, chosen = _selected(tokens, mask, head.vocabulary_size)
    flat = hidden.reshape(-1, hidden.shape[-1])
    kept = kept_from_hidden(
        flat if len(rows) == len(flat) else flat[rows],
        head,
        chosen,
        rows=rows,
        at_ids=None,
        max_tokens=1,
        dropped_mass=0.0,
        chunk_size=chunk_size,
        backward="dense",
    )
    return _loss(kept, normalizer)


def _selected(tokens: Tensor, mask: Tensor | None, vocabulary_size: int) -> tuple[Tensor, Tensor]:
    """Flat positions `[M]` of the selected tokens, and the tokens `[M]`."""
    rows, flat = checks.selected_rows(mask, tokens), tokens.reshape(-1).long()
    checks.tokens_in_vocabulary(flat, rows, vocabulary_size)
    return rows, flat[rows]


def _loss(kept: Kept, normalizer: float | Tensor | None) -> LossOutput:
    if normalizer is not None and float(normalizer) <= 0:
        raise ValueError(f"normalizer: needs a positive number, got {float(normalizer)}")
    surprise = -kept.log_probs[:, 0]
    loss = surprise.sum() / (max(len(surprise), 1) if normalizer is None else normalizer)
    # Of each row the right token is kept, and the most likely one beside it where that is another.
    right = (kept.ids[:, 1:] < 0).all(-1)
    metrics = count(surprise) | {"accuracy": mean(right.to(surprise.dtype)), "entropy": mean(kept.entropy)}
    return LossOutput(loss, metrics)
