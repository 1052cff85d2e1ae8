"""Advantages from rewards: group baselines, REINFORCE++ and generalised advantage estimation.

B sequences, T padded length; `group_ids` `[B]` says which prompt a sequence answers. Rewards count from the least of
their group, so that equal ones have an advantage of exactly 0 however large they are.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from troll import checks

_EPSILON = 1e-6


def grpo(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """`(r - mean) / (std + 1e-6)` within each group, `[B]`; the sample standard deviation, 0 in a group of one."""
    groups, counts = _groups(rewards, group_ids)
    centred = _centred(rewards, groups, counts)
    # In parts of the group's largest, whose squares neither overflow nor vanish.
    largest = _extremes(centred.abs(), groups, counts, "amax")
    parts = torch.where(largest[groups] > 0, centred / largest[groups], 0.0)
    squares = counts.new_zeros(len(counts)).index_add(0, groups, parts.square())
    deviation = (squares / (counts - 1).clamp(min=1)).sqrt()
    return parts / (deviation + _EPSILON / largest)[groups]


def dr_grpo(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """`r - mean` within each group, `[B]` (Dr. GRPO: no division by the deviation)."""
    return _centred(rewards, *_groups(rewards, group_ids))


def rloo(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """`r` minus the mean of the *other* sequences of its group, `[B]`; 0 in a group of one."""
    groups, counts = _groups(rewards, group_ids)
    size = counts[groups]
    centred = _centred(rewards, groups, counts)
    return torch.where(size > 1, centred * size / (size - 1).clamp(min=1), 0.0)


def maxrl(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """`(r - mean) / mean` within each group, `[B]` (maximum-likelihood RL, arXiv 2602.02710); 0 where the mean is 0.

    For rewards from 0 on. A group with a smaller one is counted from its least.
    """
    groups, counts = _groups(rewards, group_ids)
    above = rewards - _extremes(rewards, groups, counts, "amin").clamp(max=0)[groups]
    largest = _extremes(above, groups, counts, "amax")
    # In parts of the group's largest, whose sum neither overflows nor vanishes.
    parts = torch.where(largest[groups] > 0, above / largest[groups], 0.0)
    means = counts.new_zeros(len(counts)).index_add(0, groups, parts) / counts
    return torch.where(means[groups] > 0, _centred(parts, groups, counts) / means[groups], 0.0)


def reinforce_plus_plus_of_sequences(rewards: Tensor, lengths: Tensor) -> Tensor:
    """`reinforce_plus_plus` where sequences of `lengths` `[B]` tokens earn a reward at the end, undiscounted: `[B]`.

    All tokens of a sequence have the same advantage: its reward, whitened over the batch's tokens.
    """
    return _whitened(rewards, lengths)


def reinforce_plus_plus_baseline_of_sequences(rewards: Tensor, group_ids: Tensor, lengths: Tensor) -> Tensor:
    """`reinforce_plus_plus_baseline` for sequences of `lengths` `[B]` tokens, whose tokens all have the same: `[B]`."""
    return _whitened(dr_grpo(rewards, group_ids), lengths)


def reinforce_plus_plus(token_rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Discounted returns of token rewards `[B, T]`, whitened over the batch's selected tokens, `[B, T]`."""
    _tokens_and_mask("token_rewards", token_rewards, mask)
    returns, running = torch.zeros_like(token_rewards), torch.zeros_like(token_rewards[:, 0])
    for t in reversed(range(token_rewards.shape[1])):
        # Positions outside the mask (prompts, tool output, padding) carry the return over undiscounted.
        running = torch.where(mask[:, t] != 0, token_rewards[:, t] + gamma * running, running)
        returns[:, t] = running
    return whiten(returns, mask)


def reinforce_plus_plus_baseline(rewards: Tensor, group_ids: Tensor, mask: Tensor) -> Tensor:
    """`r - mean` within each group on every selected token, whitened over the batch's selected tokens, `[B, T]`."""
    centred = dr_grpo(rewards, group_ids)
    spread = centred.unsqueeze(-1).expand(mask.shape)
    return whiten(spread, mask)


def gae(
    token_rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation with a critic's `values`; all `[B, T]`.

    `A_t = d_t + gamma lam A_(t+1)` with `d_t = r_t + gamma V_(t+1) - V_t`. Nothing is earned after a sequence's last
    token: its next value is 0, also where the sequence was cut off there, since what it earned is for what it is.

    Positions outside the mask are stepped over: the next value and the running advantage are those of the next
    selected token, so several turns of one sequence are estimated as one.

    Returns advantages (not whitened) and returns, zero outside the mask.
    """
    _tokens_and_mask("token_rewards", token_rewards, mask)
    checks.same_shape("values", values, "token_rewards", token_rewards.shape)
    advantages = torch.zeros_like(token_rewards)
    following, running = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(token_rewards.shape[1])):
        chosen = mask[:, t] != 0
        surprise = token_rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(chosen, surprise + gamma * lam * running, running)
        following = torch.where(chosen, values[:, t], following)
        advantages[:, t] = torch.where(chosen, running, 0.0)
    return advantages, torch.where(mask != 0, advantages + values, 0.0)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """`[B, T]` values shifted and scaled to mean 0 and standard deviation 1 over the mask; zero outside it."""
    whitened, chosen = torch.zeros_like(values), values[mask != 0]
    whitened[mask != 0] = _whitened(chosen, torch.ones_like(chosen))
    return whitened


class Scored(NamedTuple):
    """B sequences, all of one step."""

    rewards: Tensor
    """`[B]`"""
    group_ids: Tensor
    """`[B]` integer, which prompt a sequence answers."""
    lengths: Tensor
    """`[B]` how many tokens it has."""


ESTIMATORS: dict[str, Callable[[Scored], Tensor]] = {
    "grpo": lambda of: grpo(of.rewards, of.group_ids),
    "dr_grpo": lambda of: dr_grpo(of.rewards, of.group_ids),
    "rloo": lambda of: rloo(of.rewards, of.group_ids),
    "reinforce_plus_plus": lambda of: reinforce_plus_plus_of_sequences(of.rewards, of.lengths),
    "reinforce_plus_plus_baseline": lambda of: reinforce_plus_plus_baseline_of_sequences(*of),
    "maxrl": lambda of: maxrl(of.rewards, of.group_ids),
}
"""Those that make an advantage for each sequence, `[B]`, by name. `gae` makes one for each token."""


def _whitened(values: Tensor, weights: Tensor) -> Tensor:
    """`[N]` values shifted and scaled to mean 0 and standard deviation 1, each counted `weights` `[N]` times."""
    weights = weights.to(values.dtype)
    number = weights.sum()
    if not number:
        return torch.zeros_like(values)
    centred = values - values.min()
    centred = centred - (weights * centred).sum() / number
    largest = centred.abs().max()
    if largest == 0:
        return torch.zeros_like(values)
    parts = centred / largest
    deviation = ((weights * parts.square()).sum() / (number - 1).clamp(min=1)).sqrt()
    return parts / torch.hypot(deviation, _EPSILON / largest)


def _groups(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Group number of each sequence `[B]`, and each group's size `[G]` in the rewards' dtype."""
    checks.floating("rewards", rewards)
    checks.integer("group_ids", group_ids)
    checks.same_shape("group_ids", group_ids, "rewards", rewards.shape)
    if rewards.dim() != 1:
        raise ValueError(f"rewards: needs one number per sequence, got shape {list(rewards.shape)}")
    checks.finite_rows("rewards", rewards, torch.arange(len(rewards), device=rewards.device))
    _, groups, counts = torch.unique(group_ids, return_inverse=True, return_counts=True)
    return groups, counts.to(rewards.dtype)


def _centred(rewards: Tensor, groups: Tensor, counts: Tensor) -> Tensor:
    """`r - mean` within each group, `[B]`."""
    above = rewards - _extremes(rewards, groups, counts, "amin")[groups]
    means = counts.new_zeros(len(counts)).index_add(0, groups, above) / counts
    return above - means[groups]


def _extremes(values: Tensor, groups: Tensor, counts: Tensor, which: Literal["amin", "amax"]) -> Tensor:
    """The least or the greatest value of each group, `[G]`."""
    return counts.new_zeros(len(counts)).scatter_reduce(0, groups, values, which, include_self=False)


def _tokens_and_mask(name: str, values: Tensor, mask: Tensor) -> None:
    checks.floating(name, values)
    if values.dim() != 2:
        raise ValueError(f"{name}: needs shape [B, T], got {list(values.shape)}")
    checks.same_shape("mask", mask, name, values.shape)
