"""The reference, which the policy is to stay close to: the job's base model, frozen.

Where adapters are trained it is the same model without them, and no copy. Its KL divergence counts in the loss of every
update (``objective.loss``), or here in the reward: each token takes its share, before advantages are made of rewards.

N response tokens of a micro-batch.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from troll import SparseLogProbs
from troll.reference import reference_kl
from workers.modeling import distributed, policy, sharding
from workers.modeling.policy import Policy
from workers.training.data.batch import MicroBatch, TrainingSample, estimate
from workers.training.optim import objective
from workers.training.optim.update import MiniBatch, Numbers


def load(folder: Path, trained: Policy) -> Policy:
    """The base model in ``folder``, of which ``trained`` came. Raises as ``policy.load`` does."""
    if trained.adapter is not None:
        return trained
    # In float32 like the policy, so that their divergence is 0 before the first update.
    frozen = policy.load(folder, trained.device)
    frozen.model.requires_grad_(requires_grad=False)
    if distributed.size() > 1:
        sharding.shard(frozen)
    return frozen


def read(reference: Policy, batches: Sequence[MiniBatch], hyperparameters: ResolvedHyperparameters) -> list[MiniBatch]:
    """The mini-batches with the reference's log-probabilities."""
    read = [
        replace(batch, parts=[_read(reference, part, hyperparameters) for part in batch.parts]) for batch in batches
    ]
    sharding.reshard(reference.model)
    return read


def _read(reference: Policy, part: MicroBatch, h: ResolvedHyperparameters) -> MicroBatch:
    return replace(part, reference_log_probs=objective.reference_log_probs(reference, part, h))


def take_from_rewards(
    batches: Sequence[MiniBatch],
    old: Sequence[Sequence[SparseLogProbs]],
    groups: Sequence[Sequence[TrainingSample]],
    hyperparameters: ResolvedHyperparameters,
) -> tuple[list[MiniBatch], Numbers]:
    """The mini-batches with what the divergence of the old policy costs each token, and advantages of what is left.

    Estimators that compare answers take all of an answer's costs from its reward; a critic sees each token's.
    """
    h, costly, total, count = hyperparameters, [], 0.0, 0
    for batch, rows in zip(batches, old, strict=True):
        parts = []
        for part, row in zip(batch.parts, rows, strict=True):
            assert part.reference_log_probs is not None
            kl = reference_kl(row.token_log_probs.double(), part.reference_log_probs.double(), h.kl_estimator)
            parts.append(replace(part, kl_costs=h.kl_coefficient * kl))
            total, count = total + kl.sum().item(), count + len(kl)
        costly.append(replace(batch, parts=parts))
    totals, counts = zip(*distributed.gather((total, count)), strict=True)
    numbers = {"reference_kl": sum(totals) / sum(counts)} if sum(counts) else {}
    return (costly if h.advantage == "gae" else _compared_anew(costly, groups, h)), numbers


def _compared_anew(
    batches: Sequence[MiniBatch], groups: Sequence[Sequence[TrainingSample]], h: ResolvedHyperparameters
) -> list[MiniBatch]:
    own = {number: cost for batch in batches for part in batch.parts for number, cost in _costs_of_answers(part)}
    costs = {number: cost for rank in distributed.gather(own) for number, cost in rank.items()}
    every = [(group_id, sample) for group_id, group in enumerate(groups) for sample in group]
    rewards = [sample.reward - costs[sample.number] for _, sample in every]
    advantages = estimate(rewards, [group_id for group_id, _ in every], [sample.rollout for _, sample in every], h)
    known = {sample.number: advantage for (_, sample), advantage in zip(every, advantages, strict=True)}
    return [replace(batch, parts=[_with_advantages(part, known) for part in batch.parts]) for batch in batches]


def _costs_of_answers(part: MicroBatch) -> list[tuple[int, float]]:
    assert part.kl_costs is not None
    sums = part.kl_costs.new_zeros(len(part.samples)).index_add(0, part.sequence_ids, part.kl_costs)
    return [(sample.number, cost) for sample, cost in zip(part.samples, sums.tolist(), strict=True)]


def _with_advantages(part: MicroBatch, known: dict[int, float]) -> MicroBatch:
    of_answers: Tensor = torch.tensor([known[sample.number] for sample in part.samples], dtype=torch.float32)
    return replace(part, advantages=of_answers.to(part.tokens.device)[part.sequence_ids])
