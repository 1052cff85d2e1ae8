"""The TROLL objective: the projected policy's ratio, and the pull of the network back to its projection.

Per token `loss = -A pi(a) / old(a) + alpha KL(new || stop_grad(pi))`, where `pi` is the new policy projected onto the
trust region around the old one. Nothing is clipped. Inside the region `pi` is the new policy and the second term is
exactly zero, in value and in gradient.

M selected tokens, K slots of a sparse row, U slots of an aligned pair (`troll.sparse`).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from troll import checks
from troll.aggregation import Aggregation
from troll.batch import (
    Batch,
    LossOutput,
    Ratio,
    Reduction,
    count,
    importance,
    mean,
    mean_and_max,
    select_batch,
    side_terms,
)
from troll.fused import kept_from_hidden, make_head
from troll.gradient import Backward
from troll.logits import kept_from_logits
from troll.reference import Reference
from troll.rows import SparseLogProbs
from troll.sparse import Kept, Tail
from troll.terms import Terms, sparse_entropy, token_terms

Support = Literal["union", "old"]


@dataclass(frozen=True)
class Region:
    """The options of the objective itself; `troll_loss` documents them."""

    kl_bound: float
    alpha: float
    default_prob: float
    support: Support
    tail: Tail

    def __post_init__(self) -> None:
        checks.positive("kl_bound", self.kl_bound)
        checks.not_negative("alpha", self.alpha)
        checks.one_of("support", self.support, ("union", "old"))


def troll_loss(
    logits: Tensor,
    old: SparseLogProbs,
    tokens: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    kl_bound: float = 0.05,
    alpha: float = 1.0,
    max_tokens: int = 64,
    dropped_mass: float = 1e-5,
    default_prob: float = 1e-12,
    temperature: float = 1.0,
    ratio: Ratio = "token",
    aggregation: Aggregation = "token-mean",
    normalizer: float | Tensor | None = None,
    sequence_ids: Tensor | None = None,
    support: Support = "union",
    tail: Tail = "constant",
    reference: Reference | None = None,
    entropy_coefficient: float = 0.0,
) -> LossOutput:
    """The TROLL loss from logits.

    Args:
        logits: `[..., V]` of the current policy, before the temperature.
        old: the sampling policy's rows, leading shape `[...]`, from `sparsify` with the same sparsity options.
        tokens: `[...]` integer, the sampled tokens.
        advantages: `[...]`, or `[B]` for `[B, T]` tokens.
        mask: `[...]`, zero leaves a token out. Such rows are not read at all.
        kl_bound: the trust region's size in nats.
        alpha: weight of the regression term.
        ratio: `"token"`, or `"sequence"` for the length-normalised sequence ratio (GSPO).
        aggregation: see `troll.aggregation.aggregate`.
        normalizer: the divisor over the whole batch; this call's own count without it.
        sequence_ids: `[...]` integer, which sequence each token belongs to, for packed tokens `[N]`.
        support: `"union"` of both policies' top tokens (the paper's), or the `"old"` policy's only.
        tail: what tokens left out get: `default_prob` each, or with `"mass"` their true mass spread evenly.
        reference: a policy to add a KL penalty towards.
        entropy_coefficient: weight of an entropy bonus, on the entropy of the sparse rows.

    Raises:
        ValueError: names the argument that does not fit and, where rows are at fault, the first of them.
    """
    checks.logits_and_tokens("logits", logits, tokens)
    vocabulary_size = logits.shape[-1]
    checks.sparsity(max_tokens, dropped_mass, default_prob, temperature, vocabulary_size, tail)
    region = Region(kl_bound, alpha, default_prob, support, tail)
    reduction = Reduction(ratio, aggregation, normalizer, sequence_ids, reference, entropy_coefficient)
    batch = select_batch(tokens, advantages, mask, vocabulary_size, reduction)
    chosen = select_old(old, tokens, batch, vocabulary_size)
    kept = kept_from_logits(
        logits.reshape(-1, vocabulary_size),
        batch.rows,
        batch.tokens,
        at_ids=chosen.ids.long() if support == "old" else None,
        max_tokens=max_tokens,
        dropped_mass=dropped_mass,
        temperature=temperature,
    )
    return loss_from_kept(kept, chosen, batch, region, reduction)


def fused_troll_loss(
    hidden: Tensor,
    weight: Tensor,
    old: SparseLogProbs,
    tokens: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
    backward: Backward = "auto",
    sparse_weight_grad: bool = False,
    kl_bound: float = 0.05,
    alpha: float = 1.0,
    max_tokens: int = 64,
    dropped_mass: float = 1e-5,
    default_prob: float = 1e-12,
    temperature: float = 1.0,
    ratio: Ratio = "token",
    aggregation: Aggregation = "token-mean",
    normalizer: float | Tensor | None = None,
    sequence_ids: Tensor | None = None,
    support: Support = "union",
    tail: Tail = "constant",
    reference: Reference | None = None,
    entropy_coefficient: float = 0.0,
) -> LossOutput:
    """`troll_loss` from hidden states and the output matrix; logits exist a tile at a time.

    `logits = softcap(logit_scale * (hidden @ weight.T + bias))`. The other arguments are `troll_loss`'s.

    Args:
        hidden: `[..., H]` last hidden states.
        weight: `[V, H]` output matrix, tied to the embedding or not. One that needs no gradient costs none.
        bias: `[V]`
        softcap: `cap tanh(logits / cap)`, as in Gemma 2.
        chunk_size: how many tokens to read against the vocabulary at a time; 1,024 without it.
        backward: `"sparse"` writes the gradient on kept rows only, which is exact but for the remainder the module
            `troll.gradient` describes; `"dense"` adds the remainder everywhere; `"auto"` where it could be seen.
        sparse_weight_grad: give the weight's gradient as a sparse tensor of the rows it touches, unless a row needed
            the dense part. Autograd adds it in place to the dense one of an embedding that is tied to the weight, and
            a tensor `[V, H]` is saved; most optimizers take no sparse gradient of a weight that is not tied.
    """
    checks.logits_and_tokens("hidden", hidden, tokens)
    head = make_head(hidden, weight, bias, temperature, logit_scale, softcap)
    checks.sparsity(max_tokens, dropped_mass, default_prob, temperature, head.vocabulary_size, tail)
    checks.one_of("backward", backward, ("auto", "sparse", "dense"))
    region = Region(kl_bound, alpha, default_prob, support, tail)
    reduction = Reduction(ratio, aggregation, normalizer, sequence_ids, reference, entropy_coefficient)
    batch = select_batch(tokens, advantages, mask, head.vocabulary_size, reduction)
    chosen = select_old(old, tokens, batch, head.vocabulary_size)
    flat = hidden.reshape(-1, hidden.shape[-1])
    kept = kept_from_hidden(
        flat if len(batch.rows) == len(flat) else flat[batch.rows],
        head,
        batch.tokens,
        rows=batch.rows,
        at_ids=chosen.ids.long() if support == "old" else None,
        max_tokens=max_tokens,
        dropped_mass=dropped_mass,
        chunk_size=chunk_size,
        backward=backward,
        sparse_weight_grad=sparse_weight_grad,
    )
    return loss_from_kept(kept, chosen, batch, region, reduction)


def select_old(old: SparseLogProbs, tokens: Tensor, batch: Batch, vocabulary_size: int) -> SparseLogProbs:
    """The old policy's rows `[M]` of the selected tokens."""
    if old.vocabulary_size != vocabulary_size:
        raise ValueError(f"old: vocabulary of {old.vocabulary_size} does not match the model's {vocabulary_size}")
    checks.same_shape("old", old.kept_mass, "tokens", tokens.shape)
    chosen = old.select(batch.rows)
    checks.equal_rows("old", "tokens", chosen.ids[:, 0], batch.tokens, batch.rows)
    checks.finite_rows("old", chosen.log_probs.exp().sum(-1) + chosen.tail_log_prob.exp(), batch.rows)
    return chosen


def loss_from_kept(kept: Kept, old: SparseLogProbs, batch: Batch, region: Region, reduction: Reduction) -> LossOutput:
    """The objective on the kept entries `[M, K]` of the current policy, and the old policy's rows `[M]`."""
    terms = token_terms(kept.ids, kept.log_probs, old, region.kl_bound, region.default_prob, region.tail)
    weight = importance(terms.log_ratio, batch.segments, reduction.ratio)
    policy_loss = reduction.total(-batch.advantages * weight, batch.segments)
    regression_loss = region.alpha * reduction.total(terms.regression, batch.segments)

    def entropy() -> Tensor:
        return sparse_entropy(kept.ids, kept.log_probs, old.vocabulary_size, region.default_prob, region.tail)

    side_loss, side_metrics = side_terms(kept.log_probs[:, 0], entropy, batch, reduction)
    metrics = describe(terms, weight.detach(), kept, old) | side_metrics
    metrics |= {"policy_loss": policy_loss.detach(), "regression_loss": regression_loss.detach()}
    return LossOutput(policy_loss + regression_loss + side_loss, metrics)


def describe(terms: Terms, ratio: Tensor, kept: Kept, old: SparseLogProbs) -> dict[str, Tensor]:
    """Metrics of `[M]` tokens as detached scalars, zero where there is nothing to average."""
    metrics = count(ratio) | mean_and_max("ratio", ratio)
    metrics |= mean_and_max("kl_before", terms.kl_before) | mean_and_max("kl_after", terms.kl_after)
    metrics |= {"fraction_projected": mean(terms.active.to(ratio.dtype)), "beta": mean(terms.beta[terms.active])}
    metrics |= {"kept_mass": mean(terms.kept_mass), "kept_mass_old": mean(old.kept_mass)}
    metrics |= {"kept_tokens": mean((kept.ids >= 0).sum(-1).to(ratio.dtype)), "entropy": mean(kept.entropy)}
    return metrics
