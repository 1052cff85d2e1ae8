"""What is minimised on one micro-batch, from hidden states where the model allows it: TROLL, clipping, likelihood."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import troll
from service.jobs.spec import ResolvedHyperparameters
from troll import LossOutput, SparseLogProbs
from workers.rollouts.precision import autocast
from workers.rollouts.top_log_probs import sparse_rows
from workers.training import distributed
from workers.training.batch import MicroBatch
from workers.training.conversations import TokenBatch
from workers.training.errors import non_finite
from workers.training.policy import Policy, Readable

DUAL_CLIP = 10.0
"""As in the paper's comparison of TROLL with clipping."""


@torch.no_grad()
def old_policy(policy: Policy, batch: MicroBatch, hyperparameters: ResolvedHyperparameters) -> SparseLogProbs:
    """The old policy's distributions at the N response tokens: the trainer's before its updates, or the sampler's."""
    options = _sparsity(hyperparameters)
    if hyperparameters.old_policy == "sampler":
        # What the sampler reports is at the sampling temperature already.
        del options["temperature"]
        return sparse_rows(batch.rollouts, policy.vocabulary_size, **options).to(policy.device)
    if policy.output is None or batch.allowed is not None:
        return troll.sparsify(_logits(policy, batch), batch.tokens, **options)
    hidden, weight, bias = _output(policy, batch)
    return troll.fused_sparsify(hidden, weight, batch.tokens, bias=bias, **asdict(policy.transform), **options)


def loss(
    policy: Policy,
    batch: MicroBatch,
    old: SparseLogProbs,
    hyperparameters: ResolvedHyperparameters,
    normalizer: float,
) -> LossOutput:
    """The loss of a micro-batch, its tokens' sum divided by ``normalizer``."""
    options = _options(hyperparameters) | {
        "temperature": hyperparameters.temperature,
        "aggregation": hyperparameters.aggregation,
        "normalizer": normalizer,
        "sequence_ids": batch.sequence_ids,
    }
    clip = hyperparameters.objective == "clip"
    if policy.output is None or batch.allowed is not None:
        from_logits = troll.clip_loss if clip else troll.troll_loss
        return from_logits(_logits(policy, batch), old, batch.tokens, batch.advantages, **options)
    from_hidden = troll.fused_clip_loss if clip else troll.fused_troll_loss
    hidden, weight, bias = _output(policy, batch)
    options |= asdict(policy.transform)
    if not clip:
        # Autograd casts no sparse gradient, and ranks sum up dense ones.
        options["sparse_weight_grad"] = policy.tied and weight is policy.output.weight and distributed.size() == 1
    return from_hidden(hidden, weight, old, batch.tokens, batch.advantages, bias=bias, **options)


def cross_entropy(policy: Policy, batch: TokenBatch, normalizer: float | None = None) -> LossOutput:
    """The negative log-likelihood of a micro-batch's tokens, divided by ``normalizer`` or by their own number."""
    if policy.output is None:
        return troll.cross_entropy(_logits(policy, batch), batch.tokens, normalizer=normalizer)
    hidden, weight, bias = _output(policy, batch)
    return troll.fused_cross_entropy(
        hidden, weight, batch.tokens, bias=bias, normalizer=normalizer, **asdict(policy.transform)
    )


def _options(hyperparameters: ResolvedHyperparameters) -> dict[str, Any]:
    """What the job's objective alone asks for."""
    h = hyperparameters
    if h.objective == "clip":
        return {"clip_low": h.clip_low, "clip_high": h.clip_high, "dual_clip": DUAL_CLIP}
    return {"kl_bound": h.kl_bound, "alpha": h.alpha} | _sparsity(h)


def _sparsity(hyperparameters: ResolvedHyperparameters) -> dict[str, Any]:
    h = hyperparameters
    # Clipping needs the sampled token's log-probability alone.
    kept = 1 if h.objective == "clip" else h.max_tokens_kept
    return {"max_tokens": kept, "dropped_mass": h.dropped_mass, "temperature": h.temperature}


def _output(policy: Policy, batch: Readable) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states ``[N, H]``, output matrix ``[V, H]`` and bias, in the dtype the output layer computes in."""
    assert policy.output is not None
    with autocast(policy.device):
        hidden = policy.hidden(batch)
    if not bool(hidden.isfinite().all()):
        raise non_finite("loss")
    dtype = torch.bfloat16 if policy.device.type == "cuda" else hidden.dtype
    return hidden.to(dtype), policy.output.weight.to(dtype), policy.output.bias


def _logits(policy: Policy, batch: Readable) -> Tensor:
    logits = policy.logits(batch)
    if bool(logits.isnan().any()):
        raise non_finite("loss")
    # The policy is what was sampled from: the model among the tokens that the grammar allowed.
    allowed = batch.allowed if isinstance(batch, MicroBatch) else None
    return logits if allowed is None else allowed.forbid(logits)
