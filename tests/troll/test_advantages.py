"""Advantage estimators against numbers computed by hand or by loops."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from troll import advantages

REWARDS = torch.tensor([1.0, 0.0, 3.0, 2.0, 5.0], dtype=torch.float64)
GROUPS = torch.tensor([7, 2, 7, 2, 9])
MASK = torch.ones(1, 3)


def test_grpo() -> None:
    root = 2**0.5
    expected = [-1 / (root + 1e-6), -1 / (root + 1e-6), 1 / (root + 1e-6), 1 / (root + 1e-6), 0.0]
    assert torch.allclose(advantages.grpo(REWARDS, GROUPS), torch.tensor(expected, dtype=torch.float64))


@settings(max_examples=2 * settings().max_examples)
@given(
    st.floats(-1e308, 1e308) | st.sampled_from([0.1, 0.3, 3.3e9, 1e-320]),
    st.integers(1, 200),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_equal_rewards_have_no_advantage_at_all(reward: float, size: int, dtype: torch.dtype) -> None:
    rewards = torch.tensor([reward, -reward, 0.7], dtype=torch.float64).clamp(-1e38, 1e38).to(dtype)
    rewards = rewards.repeat_interleave(torch.tensor([size, size + 1, 1]))
    groups = torch.tensor([4, 1, 9]).repeat_interleave(torch.tensor([size, size + 1, 1]))
    for estimator in (advantages.grpo, advantages.dr_grpo, advantages.rloo):
        assert torch.count_nonzero(estimator(rewards, groups)) == 0
    mask = torch.ones(len(rewards), 3)
    assert torch.count_nonzero(advantages.reinforce_plus_plus_baseline(rewards, groups, mask)) == 0
    alike = torch.full((size, 3), float(rewards[0]), dtype=dtype)
    assert torch.count_nonzero(advantages.whiten(alike, torch.ones(size, 3))) == 0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("estimator", [advantages.grpo, lambda rewards, _: advantages.whiten(rewards[None], MASK)[0]])
def test_large_rewards_are_told_apart_as_small_ones_are(scale: float, estimator: Any) -> None:
    got = estimator(torch.tensor([1.0, 2.0, 3.0]) * scale, torch.zeros(3, dtype=torch.long))
    expected = torch.tensor([-1.0, 0.0, 1.0]) if scale >= 1 else torch.tensor([-1.0, 0.0, 1.0]) * scale / 1e-6
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_dr_grpo() -> None:
    assert advantages.dr_grpo(REWARDS, GROUPS).tolist() == [-1.0, -1.0, 1.0, 1.0, 0.0]


def test_rloo_leaves_one_out() -> None:
    rewards, groups = torch.tensor([1.0, 2.0, 6.0, 4.0]), torch.tensor([0, 0, 0, 1])
    assert advantages.rloo(rewards, groups).tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 0.0])


def test_reinforce_plus_plus_whitens_discounted_returns() -> None:
    token_rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    returns = torch.tensor([0.25, 0.5, 1.0, 1.0, 2.0], dtype=torch.float64)
    expected = (returns - returns.mean()) / returns.std()
    got = advantages.reinforce_plus_plus(token_rewards, mask, gamma=0.5)
    assert torch.allclose(got[mask != 0], expected)
    assert got[1, 2] == 0


def test_reinforce_plus_plus_baseline() -> None:
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1], [0, 0]])
    centred = torch.tensor([-1.0, -1, -1, 1, 1, 1, 1], dtype=torch.float64)
    got = advantages.reinforce_plus_plus_baseline(REWARDS, GROUPS, mask)
    assert torch.allclose(got[mask != 0], (centred - centred.mean()) / centred.std())


def gae_by_loop(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    result = torch.zeros_like(rewards)
    for t in range(len(rewards)):
        for step in range(t, len(rewards)):
            following = values[step + 1] if step + 1 < len(rewards) else 0.0
            surprise = rewards[step] + gamma * following - values[step]
            result[t] += (gamma * lam) ** (step - t) * surprise
    return result


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.7), (1.0, 0.0)])
def test_gae_steps_over_gaps(gamma: float, lam: float) -> None:
    """Two turns with an observation between them, and padding, are estimated as one sequence without them."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 1, 8, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0]])
    chosen = mask[0] != 0
    expected = gae_by_loop(rewards[0, chosen], values[0, chosen], gamma, lam)
    got, returns = advantages.gae(rewards, values, mask, gamma, lam)
    assert torch.allclose(got[0, chosen], expected)
    assert torch.allclose(returns[0, chosen], expected + values[0, chosen])
    assert torch.count_nonzero(got[0, ~chosen]) == torch.count_nonzero(returns[0, ~chosen]) == 0


def test_gae_of_sequences_of_several_lengths_ends_with_each() -> None:
    """Whatever stands behind a sequence, it has earned nothing more."""
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    lengths = (5, 1, 3)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    got, returns = advantages.gae(rewards, values, mask, 0.9, 0.8)
    for row, length in enumerate(lengths):
        expected = gae_by_loop(rewards[row, :length], values[row, :length], 0.9, 0.8)
        assert torch.allclose(got[row, :length], expected, rtol=1e-12)
        assert torch.allclose(returns[row, :length], expected + values[row, :length], rtol=1e-12)
    undiscounted, _ = advantages.gae(rewards, values, mask, 1.0, 1.0)
    assert undiscounted[1, 0].item() == pytest.approx((rewards[1, 0] - values[1, 0]).item())


def test_whitening_nothing_is_zero() -> None:
    assert torch.count_nonzero(advantages.whiten(torch.ones(2, 2), torch.zeros(2, 2))) == 0


@pytest.mark.parametrize(
    ("rewards", "groups", "message"),
    [
        (REWARDS[:3], GROUPS, r"group_ids: shape \[5\] does not match rewards"),
        (REWARDS.long(), GROUPS, "rewards: needs a floating point dtype"),
        (REWARDS, GROUPS.double(), "group_ids: needs an integer dtype"),
        (REWARDS.view(5, 1), GROUPS.view(5, 1), "rewards: needs one number per sequence"),
        (REWARDS.index_fill(0, torch.tensor(3), torch.nan), GROUPS, "rewards: row 3 holds NaN"),
    ],
)
def test_errors_name_the_argument(rewards: Tensor, groups: Tensor, message: str) -> None:
    for estimator in (advantages.grpo, advantages.dr_grpo, advantages.rloo):
        with pytest.raises(ValueError, match=message):
            estimator(rewards, groups)


def test_errors_of_token_rewards() -> None:
    with pytest.raises(ValueError, match=r"token_rewards: needs shape \[B, T\]"):
        advantages.reinforce_plus_plus(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="values: shape"):
        advantages.gae(torch.zeros(2, 3), torch.zeros(2, 2), torch.ones(2, 3))


def test_maxrl_is_the_centred_reward_in_units_of_the_mean() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    groups = torch.tensor([1, 1, 1, 1, 5, 5])
    assert advantages.maxrl(rewards, groups).tolist() == [1.0, -1.0, -1.0, 1.0, 0.0, 0.0]
    rare = torch.tensor([1.0] + [0.0] * 7, dtype=torch.float64)
    assert advantages.maxrl(rare, torch.zeros(8, dtype=torch.long)).tolist() == pytest.approx([7.0] + [-1.0] * 7)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_maxrl_knows_no_unit(scale: float) -> None:
    rewards = torch.tensor([1.0, 3.0], dtype=torch.float64) * scale
    assert advantages.maxrl(rewards, torch.zeros(2, dtype=torch.long)).tolist() == pytest.approx([-0.5, 0.5])


def test_maxrl_counts_negative_rewards_from_the_least() -> None:
    rewards = torch.tensor([-1.0, 1.0, 3.0], dtype=torch.float64)
    assert advantages.maxrl(rewards, torch.zeros(3, dtype=torch.long)).tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "reinforce_plus_plus_baseline"])
def test_what_sequences_get_is_what_their_tokens_get(name: str) -> None:
    rewards = torch.tensor([1.0, 0.0, 3.0, 2.0, 5.0], dtype=torch.float64)
    lengths = torch.tensor([3, 1, 4, 2, 3])
    mask = (torch.arange(4) < lengths[:, None]).double()
    if name == "reinforce_plus_plus":
        at_the_end = torch.zeros(5, 4, dtype=torch.float64)
        at_the_end[torch.arange(5), lengths - 1] = rewards
        tokens = advantages.reinforce_plus_plus(at_the_end, mask)
    else:
        tokens = advantages.reinforce_plus_plus_baseline(rewards, GROUPS, mask)
    scored = advantages.Scored(rewards, GROUPS, lengths)
    expected = advantages.ESTIMATORS[name](scored)[:, None] * mask
    assert torch.allclose(tokens, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", advantages.ESTIMATORS)
def test_equal_rewards_of_a_step_have_no_advantage(name: str) -> None:
    lengths = torch.tensor([1, 5, 2, 2])
    for rewards in ([0.7] * 4, [0.0] * 4, [-3.0] * 4):
        scored = advantages.Scored(torch.tensor(rewards, dtype=torch.float64), torch.tensor([0, 0, 1, 1]), lengths)
        assert advantages.ESTIMATORS[name](scored).tolist() == [0.0] * 4
    nobody = advantages.Scored(torch.zeros(0, dtype=torch.float64), lengths[:0], lengths[:0])
    assert advantages.ESTIMATORS[name](nobody).tolist() == []
    silent = advantages.Scored(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.tensor([0, 0]))
    assert advantages.ESTIMATORS[name](silent).isfinite().all()
