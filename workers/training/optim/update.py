"""One step's updates: mini-batches of prompt groups, the old policy's distributions first, then an update for each.

The old policy is read with the very micro-batches that the updates use, so that the first update of a step sees a ratio
of exactly 1 and a divergence of exactly 0.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from service.jobs.hyperparameters.shared import SharedHyperparameters
from troll import SparseLogProbs
from troll.metrics import Metric, combine
from workers.errors import non_finite
from workers.modeling import distributed, seeds
from workers.modeling.policy import Policy
from workers.modeling.sharding import full
from workers.training.data.batch import Allowed, MicroBatch, TrainingSample, mini_batches, normalizer
from workers.training.data.packing import idle, micro_batches
from workers.training.optim import mismatch, objective

MICRO_BATCH_TOKENS = 8192
MICRO_BATCH_LOGITS = 1 << 28

Numbers = dict[str, float]
Batched = TypeVar("Batched")


@dataclass(frozen=True)
class MiniBatch:
    """What one optimizer update is made of."""

    parts: list[MicroBatch]
    normalizer: float
    tokens: int
    """Response tokens of all ranks' parts."""


def make_optimizer(policy: Policy, hyperparameters: SharedHyperparameters) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [parameter for parameter in policy.model.parameters() if parameter.requires_grad],
        lr=hyperparameters.learning_rate,
        weight_decay=hyperparameters.weight_decay,
        fused=True,
    )


def plan(
    groups: Sequence[Sequence[TrainingSample]],
    policy: Policy,
    hyperparameters: ResolvedHyperparameters,
    allowed: Callable[[Sequence[TrainingSample]], Allowed] | None = None,
) -> list[MiniBatch]:
    """The step's mini-batches; those that no graded sample fell into are left out.

    ``allowed`` says what a grammar allowed in the place of the tokens of some answers, one after the other.
    """
    budget = token_budget(policy, whole_logits=allowed is not None)
    return [
        MiniBatch(
            own_micro_batches(samples, budget, policy, allowed),
            normalizer(samples, hyperparameters),
            sum(len(sample.rollout.token_ids) for sample in samples),
        )
        for samples in mini_batches(groups, hyperparameters.mini_batches)
        if samples
    ]


def token_budget(policy: Policy, *, whole_logits: bool = False) -> int:
    """Padded tokens that a micro-batch may have; fewer where logits are made of all of them."""
    if policy.lm_head is not None and not whole_logits:
        return MICRO_BATCH_TOKENS
    return min(MICRO_BATCH_TOKENS, MICRO_BATCH_LOGITS // policy.vocabulary_size)


def own_micro_batches(
    samples: Sequence[TrainingSample],
    budget: int,
    policy: Policy,
    allowed: Callable[[Sequence[TrainingSample]], Allowed] | None,
) -> list[MicroBatch]:
    """This rank's share of a mini-batch. All ranks get as many micro-batches, since they gather parameters together."""
    own = distributed.own_part(_inseparable(samples), lambda piece: sum(sample.tokens for sample in piece))
    mine = [sample for piece in own for sample in piece]
    parts = micro_batches(mine, budget, policy.device, policy.longest_shared, allowed)
    return parts + [idle(policy.device, allowed)] * (distributed.largest(len(parts)) - len(parts))


def _inseparable(samples: Sequence[TrainingSample]) -> list[list[TrainingSample]]:
    """What goes to one rank: all answers to a prompt, which is then read once, unless some rank would get none."""
    groups: dict[tuple[int, ...], list[TrainingSample]] = {}
    for sample in samples:
        groups.setdefault(tuple(sample.prompt_ids), []).append(sample)
    return list(groups.values()) if len(groups) >= distributed.size() else [[sample] for sample in samples]


def read_old_policy(
    policy: Policy, batches: Sequence[MiniBatch], hyperparameters: ResolvedHyperparameters
) -> list[list[SparseLogProbs]]:
    """The distributions of every micro-batch's response tokens under the policy that sampled them."""
    return [[objective.old_policy(policy, part, hyperparameters) for part in batch.parts] for batch in batches]


def correct_mismatch(
    batches: Sequence[MiniBatch],
    old: Sequence[Sequence[SparseLogProbs]],
    hyperparameters: ResolvedHyperparameters,
) -> tuple[list[MiniBatch], Numbers]:
    """Advantages weighted for what the sampler found more or less likely than the old policy, and how far they part."""
    if not batches:
        return [], {}
    h, corrected, every = hyperparameters, [], []
    for batch, parts in zip(batches, old, strict=True):
        weighted = []
        for part, rows in zip(batch.parts, parts, strict=True):
            ours, theirs = rows.token_log_probs, part.sampler_log_probs
            weights = mismatch.weights(ours, theirs, part.sequence_ids, h.mismatch_correction, h.mismatch_cap)
            weighted.append(replace(part, advantages=part.advantages * weights))
            every.append((ours, theirs, weights))
        corrected.append(replace(batch, parts=weighted))
    own = [torch.cat(column).cpu() for column in zip(*every, strict=True)]
    ours, theirs, weights = (torch.cat(column) for column in zip(*distributed.gather(own), strict=True))
    return corrected, mismatch.metrics(ours, theirs, weights)


def update_policy(
    policy: Policy,
    optimizer: torch.optim.AdamW,
    batches: Sequence[MiniBatch],
    old: Sequence[Sequence[SparseLogProbs]],
    hyperparameters: ResolvedHyperparameters,
    step: int,
) -> Numbers:
    """One optimizer update for each mini-batch; the objective's numbers over all of them."""
    rate = learning_rate(hyperparameters, step)
    reports: list[dict[str, Tensor]] = []
    norms: list[float] = []
    for batch, rows in in_epochs([*zip(batches, old, strict=True)], hyperparameters.epochs, step):
        for part, part_rows in zip(batch.parts, rows, strict=True):
            output = objective.loss(policy, part, part_rows, hyperparameters, batch.normalizer)
            check_finite("loss", output.loss.item())
            output.loss.backward()
            reports.append(output.metrics)
        norms.append(apply_gradients(policy, optimizer, rate, hyperparameters.max_grad_norm))
    numbers = combine_ranks(reports, objective.make(hyperparameters).metrics, updates=len(norms))
    if norms:
        numbers |= {"grad_norm": sum(norms) / len(norms), "grad_norm_max": max(norms)}
    return numbers | {"lr": rate}


def apply_gradients(policy: Policy, optimizer: torch.optim.AdamW, rate: float, max_grad_norm: float) -> float:
    """One optimizer update with the gradients, scaled down to ``max_grad_norm``; returns their norm before that.

    The gradients are gone then, and their memory with them.
    """
    norm = full(clip_grad_norm_(policy.model.parameters(), max_grad_norm)).item()
    check_finite("gradient", norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def in_epochs(batches: Sequence[Batched], epochs: int, step: int) -> Iterator[Batched]:
    """The step's mini-batches as they are, and then in another order in each further epoch."""
    yield from batches
    for epoch in range(1, epochs):
        generator = torch.Generator().manual_seed(seeds.derive(step, "epoch", epoch))
        yield from (batches[number] for number in torch.randperm(len(batches), generator=generator).tolist())


def learning_rate(hyperparameters: ResolvedHyperparameters, step: int) -> float:
    """Linear warm-up over the first ``warmup_steps`` steps that train the policy, then as ``schedule`` says.

    Steps count from 1. A falling rate would reach 0 in the step after the last.
    """
    h = hyperparameters
    first = h.critic_warmup_steps if h.advantage == "gae" else 0
    warm = first + h.warmup_steps
    if step <= warm:
        return h.learning_rate * min(1.0, (step - first) / h.warmup_steps)
    left = (h.n_steps + 1 - step) / (h.n_steps + 1 - warm)
    shares = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
    return h.learning_rate * shares[h.schedule]


def combine_ranks(reports: Sequence[dict[str, Tensor]], declared: Mapping[str, Metric], updates: int) -> Numbers:
    """Metrics of all ranks' micro-batches as those of all their tokens. Raises ``ValueError`` on undeclared ones."""
    if not reports:
        return {}
    # One transfer from the device for each micro-batch, not one for each number.
    own = [dict(zip(report, torch.stack([*report.values()]).tolist(), strict=True)) for report in reports]
    return combine(declared, [row for rank in distributed.gather(own) for row in rank], updates)


def check_finite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise non_finite(what)
