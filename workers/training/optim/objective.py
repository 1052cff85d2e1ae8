"""What is minimised on one micro-batch, from hidden states where the model allows it: an objective, or likelihood."""

from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

import troll
from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from troll import OBJECTIVES, LossOutput, Objective, SparseLogProbs
from workers.errors import non_finite
from workers.modeling import distributed, lora
from workers.modeling.policy import Policy
from workers.modeling.precision import autocast
from workers.modeling.rows import Readable, Rows
from workers.rollouts.top_log_probs import sparse_rows
from workers.training.data.batch import MicroBatch

HYPERPARAMETER_OF_OPTION = {
    "max_tokens": "max_tokens_kept",
    "divergence": "dppo_divergence",
    "threshold": "dppo_threshold",
    "temperature_pos": "sapo_temperature_pos",
    "temperature_neg": "sapo_temperature_neg",
}
"""The hyperparameters that set an option of another name."""


def make(hyperparameters: ResolvedHyperparameters) -> Objective[Any]:
    """The job's objective; each of its options is the hyperparameter of that name, where there is one."""
    kind = OBJECTIVES[hyperparameters.objective]
    names = {field.name for field in fields(kind)}
    asked = {name: HYPERPARAMETER_OF_OPTION.get(name, name) for name in names}
    return kind(**{name: getattr(hyperparameters, own) for name, own in asked.items() if hasattr(hyperparameters, own)})


@torch.no_grad()
def old_policy(policy: Policy, batch: MicroBatch, hyperparameters: ResolvedHyperparameters) -> SparseLogProbs:
    """The old policy's distributions at the N response tokens: the trainer's before its updates, or the sampler's."""
    objective = make(hyperparameters)
    if hyperparameters.old_policy == "sampler":
        # What the sampler reports is at the sampling temperature already.
        return sparse_rows(batch.rollouts, policy.vocabulary_size, **objective.sparsity).to(policy.device)
    return _read(policy, batch, objective)


@torch.no_grad()
def reference_log_probs(reference: Policy, batch: MicroBatch, hyperparameters: ResolvedHyperparameters) -> Tensor:
    """Log-probabilities ``[N]`` of the response tokens under ``reference`` without its adapter, if it has one."""
    with lora.switched_off(reference.model):
        return _read(reference, batch, make(hyperparameters)).token_log_probs


def _read(policy: Policy, batch: MicroBatch, objective: Objective[Any]) -> SparseLogProbs:
    options: dict[str, Any] = {"temperature": objective.temperature, **objective.sparsity}
    # Compiled layers round otherwise where nothing is kept for a backward pass, and the first update of a step is to
    # find these very numbers.
    if policy.lm_head is None or batch.allowed is not None:
        with torch.set_grad_enabled(policy.compiled):
            logits = _logits(policy, batch)
        return troll.sparsify(logits.detach(), batch.tokens, **options)
    with torch.set_grad_enabled(policy.compiled):
        hidden, weight, bias = _lm_head_inputs(policy, batch)
    return troll.fused_sparsify(hidden.detach(), weight, batch.tokens, bias=bias, **asdict(policy.transform), **options)


def loss(
    policy: Policy,
    batch: MicroBatch,
    old: SparseLogProbs,
    hyperparameters: ResolvedHyperparameters,
    normalizer: float,
) -> LossOutput:
    """The loss of a micro-batch, its tokens' sum divided by ``normalizer``."""
    objective = make(hyperparameters)
    options: dict[str, Any] = {"normalizer": normalizer, "sequence_ids": batch.sequence_ids}
    if batch.reference_log_probs is not None and hyperparameters.kl_in == "loss":
        coefficient, estimator = hyperparameters.kl_coefficient, hyperparameters.kl_estimator
        options["reference"] = troll.Reference(batch.reference_log_probs, coefficient, estimator)
    if policy.lm_head is None or batch.allowed is not None:
        return objective.loss(_logits(policy, batch), old, batch.tokens, batch.advantages, **options)
    hidden, weight, bias = _lm_head_inputs(policy, batch)
    options |= asdict(policy.transform) | {"bias": bias}
    # Autograd casts no sparse gradient, and ranks sum up dense ones.
    options["sparse_weight_grad"] = policy.tied and weight is policy.lm_head.weight and distributed.size() == 1
    return objective.fused_loss(hidden, weight, old, batch.tokens, batch.advantages, **options)


def cross_entropy(policy: Policy, batch: Rows, normalizer: float | None = None) -> LossOutput:
    """The negative log-likelihood of a micro-batch's tokens, divided by ``normalizer`` or by their own number."""
    if policy.lm_head is None:
        return troll.cross_entropy(_logits(policy, batch), batch.tokens, normalizer=normalizer)
    hidden, weight, bias = _lm_head_inputs(policy, batch)
    return troll.fused_cross_entropy(
        hidden, weight, batch.tokens, bias=bias, normalizer=normalizer, **asdict(policy.transform)
    )


def _lm_head_inputs(policy: Policy, batch: Readable) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states ``[N, H]``, output matrix ``[V, H]`` and bias, in the dtype the output layer computes in."""
    assert policy.lm_head is not None
    with autocast(policy.device):
        hidden = policy.hidden(batch)
    if not bool(hidden.isfinite().all()):
        raise non_finite("loss")
    dtype = torch.bfloat16 if policy.device.type == "cuda" else hidden.dtype
    return hidden.to(dtype), policy.lm_head.weight.to(dtype), policy.lm_head.bias


def _logits(policy: Policy, batch: Readable) -> Tensor:
    logits = policy.logits(batch)
    if bool(logits.isnan().any()):
        raise non_finite("loss")
    # The policy is what was sampled from: the model among the tokens that the grammar allowed.
    allowed = batch.allowed if isinstance(batch, MicroBatch) else None
    return logits if allowed is None else allowed.forbid(logits)
