"""Advantages from rewards: group baselines, REINFORCE++ and generalised advantage estimation.

B sequences, T padded length; `group_ids` `[B]` says which prompt a sequence answers. Rewards count from the least of
their group, so that equal ones have an advantage of exactly 0 however large they are.
"""

from collections.abc import Callable
from typing import Literal

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
    if not len(chosen):
        return whitened
    centred = chosen - chosen.min()
    centred = centred - centred.mean()
    largest = centred.abs().max()
    if largest > 0:
        parts = centred / largest
        deviation = (parts.square().sum() / max(len(chosen) - 1, 1)).sqrt()
        whitened[mask != 0] = parts / torch.hypot(deviation, _EPSILON / largest)
    return whitened


GROUP_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}
"""Those that make an advantage for each sequence, `[B]`, of rewards and `group_ids`, by name."""


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
