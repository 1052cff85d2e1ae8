"""The critic's loss against a loop over numbers."""

import pytest
import torch
from torch import Tensor

from troll.critic import value_loss

VALUES = torch.tensor([0.1, 0.9, -0.4, 0.5, 2.0], dtype=torch.float64)
OLD = torch.tensor([0.0, 0.2, 0.3, 0.5, 1.0], dtype=torch.float64)
RETURNS = torch.tensor([1.0, 1.0, 1.0, 0.0, -1.0], dtype=torch.float64)


def loss_by_loop(value: float, old: float, goal: float, reach: float) -> tuple[float, float]:
    """The loss of one token and its derivative."""
    held = min(max(value, old - reach), old + reach)
    plain, clipped = 0.5 * (value - goal) ** 2, 0.5 * (held - goal) ** 2
    if plain >= clipped:
        return plain, value - goal
    return clipped, 0.0


@pytest.mark.parametrize("reach", [0.05, 0.2, 0.5, 10.0])
def test_the_loss_and_its_gradient_are_those_of_a_loop(reach: float) -> None:
    values = VALUES.clone().requires_grad_()
    losses, cut = value_loss(values, OLD, RETURNS, reach)
    losses.sum().backward()
    numbers = zip(VALUES.tolist(), OLD.tolist(), RETURNS.tolist(), strict=True)
    expected = [loss_by_loop(*each, reach) for each in numbers]
    assert losses.tolist() == pytest.approx([loss for loss, _ in expected], rel=1e-12)
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([slope for _, slope in expected], rel=1e-12)
    assert cut.tolist() == [slope == 0 and loss > 0 for loss, slope in expected]


def test_only_a_value_that_has_moved_far_towards_its_return_is_left_alone() -> None:
    values = torch.tensor([0.8, -0.8, 0.1])
    _, cut = value_loss(values, torch.zeros(3), torch.ones(3), 0.5)
    assert cut.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("values", "old", "returns", "reach", "message"),
    [
        (VALUES.long(), OLD, RETURNS, 0.5, "values: needs a floating point dtype"),
        (VALUES, OLD[:2], RETURNS, 0.5, r"old_values: shape \[2\] does not match values"),
        (VALUES, OLD, RETURNS[:2], 0.5, r"returns: shape \[2\] does not match values"),
        (VALUES, OLD, RETURNS, 0.0, "clip_range: needs a positive number"),
    ],
)
def test_errors_name_the_argument(values: Tensor, old: Tensor, returns: Tensor, reach: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        value_loss(values, old, returns, reach)
