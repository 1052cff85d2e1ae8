"""PPO's critic at work: what it expects becomes advantages of tokens, and what was earned is what it learns from.

All of a step's updates are made of the values before them. N response tokens of a micro-batch, T of a rank's share of
a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from troll import LossOutput, advantages
from troll.critic import value_loss
from troll.metrics import LOSS, MEAN, SUM, Metric
from workers.errors import non_finite
from workers.modeling import distributed, sharding
from workers.modeling.critic import values_of
from workers.modeling.policy import Policy
from workers.training.data.batch import MicroBatch
from workers.training.optim.update import (
    MiniBatch,
    Numbers,
    apply_gradients,
    check_finite,
    combine_ranks,
    in_epochs,
)

METRICS: dict[str, Metric] = {"tokens": SUM, "value_loss": LOSS, "value_clipped": MEAN}


@dataclass(frozen=True)
class Critic:
    model: Policy
    """See ``workers.modeling.critic``."""
    optimizer: torch.optim.AdamW


class Estimates(NamedTuple):
    """Of T tokens, ``[T]`` float64 on the CPU."""

    advantages: Tensor
    returns: Tensor
    values: Tensor


@torch.no_grad()
def estimate(
    critic: Critic, batches: Sequence[MiniBatch], hyperparameters: ResolvedHyperparameters
) -> tuple[list[MiniBatch], Numbers]:
    """The mini-batches with values, returns, and advantages that are whitened over all of the step's tokens."""
    if not batches:
        return [], {}
    parts = [part for batch in batches for part in batch.parts]
    found = [values_of(critic.model, part) for part in parts]
    sharding.reshard(critic.model.model)
    own = _estimate(parts, torch.cat(found).double().cpu(), hyperparameters)
    ranks = distributed.gather(own)
    every = Estimates(*(torch.cat(column) for column in zip(*ranks, strict=True)))
    whitened = advantages.whiten(every.advantages.unsqueeze(0), torch.ones(1, len(every.advantages)))[0]
    before = sum(len(rank.advantages) for rank in ranks[: distributed.rank()])
    columns = (whitened[before : before + len(own.advantages)], own.returns, own.values)
    pieces = zip(*(column.split([len(part.tokens) for part in parts]) for column in columns), strict=True)
    told = [_with_estimates(part, Estimates(*piece)) for part, piece in zip(parts, pieces, strict=True)]
    rest = iter(told)
    return [replace(batch, parts=[next(rest) for _ in batch.parts]) for batch in batches], _numbers(every)


def _estimate(parts: Sequence[MicroBatch], values: Tensor, h: ResolvedHyperparameters) -> Estimates:
    """GAE of a rank's answers, all at once: an answer earns its reward with its last token."""
    lengths = torch.tensor([len(sample.rollout.token_ids) for part in parts for sample in part.samples])
    if not len(lengths):
        return Estimates(values, values, values)
    rewards = torch.tensor([sample.reward for part in parts for sample in part.samples], dtype=torch.float64)
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)
    of_tokens, of_values = (torch.zeros(mask.shape, dtype=torch.float64) for _ in range(2))
    of_values[mask] = values
    costs = [part.kl_costs for part in parts if part.kl_costs is not None]
    if costs:
        of_tokens[mask] = -torch.cat(costs).cpu()
    of_tokens[torch.arange(len(lengths)), lengths - 1] += rewards
    found, returns = advantages.gae(of_tokens, of_values, mask, h.gae_gamma, h.gae_lambda)
    return Estimates(found[mask], returns[mask], values)


def _with_estimates(part: MicroBatch, piece: Estimates) -> MicroBatch:
    found, returns, values = (column.float().to(part.tokens.device) for column in piece)
    return replace(part, advantages=found, returns=returns, values=values)


def _numbers(every: Estimates) -> Numbers:
    """How good the values were; where all returns are the same, there is no variance to explain."""
    numbers = {"value_mean": every.values.mean().item(), "return_mean": every.returns.mean().item()}
    variance = every.returns.var(correction=0).item()
    if variance > 0:
        left = (every.returns - every.values).var(correction=0).item()
        numbers["explained_variance"] = 1 - left / variance
    return numbers


def critic_loss(critic: Critic, part: MicroBatch, hyperparameters: ResolvedHyperparameters, tokens: int) -> LossOutput:
    """The critic's loss of a micro-batch: the mean over ``tokens``, those of the whole mini-batch."""
    assert part.values is not None
    assert part.returns is not None
    values = values_of(critic.model, part)
    if not bool(values.isfinite().all()):
        raise non_finite("loss")
    losses, cut = value_loss(values, part.values, part.returns, hyperparameters.value_clip)
    total, number = losses.sum() / tokens, torch.tensor(float(len(losses)), device=losses.device)
    told = {"tokens": number, "value_loss": total.detach(), "value_clipped": cut.sum() / number.clamp(min=1)}
    return LossOutput(total, told)


def update_critic(
    critic: Critic, batches: Sequence[MiniBatch], hyperparameters: ResolvedHyperparameters, step: int
) -> Numbers:
    """One update of the critic for each mini-batch, in the policy's order; its numbers over all of them."""
    h, reports, norms = hyperparameters, [], []
    for batch in in_epochs(batches, h.epochs, step):
        for part in batch.parts:
            output = critic_loss(critic, part, h, batch.tokens)
            check_finite("loss", output.loss.item())
            output.loss.backward()
            reports.append(output.metrics)
        norms.append(apply_gradients(critic.model, critic.optimizer, h.critic_learning_rate, h.max_grad_norm))
    numbers = combine_ranks(reports, METRICS, updates=len(norms))
    return numbers | ({"critic_grad_norm": sum(norms) / len(norms)} if norms else {})
