"""What a critic minimises: PPO's clipped squared error. Its values become advantages in `troll.advantages.gae`."""

import torch
from torch import Tensor

from troll import checks


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """Loss per token, differentiable in `values`, and which tokens' gradients the clipping cut; all `[...]`.

    `max((v - R)^2, (w - R)^2) / 2`, where `w` is `v` held within `clip_range` of the old value: a value that has moved
    that far towards its return is left alone.

    Args:
        old_values: before the updates that are made of these returns.
        returns: see `troll.advantages.gae`.

    Raises:
        ValueError: names the argument that does not fit.
    """
    checks.floating("values", values)
    checks.same_shape("old_values", old_values, "values", values.shape)
    checks.same_shape("returns", returns, "values", values.shape)
    checks.positive("clip_range", clip_range)
    old, goal = old_values.detach(), returns.detach()
    held = values.clamp(old - clip_range, old + clip_range)
    plain, clipped = (values - goal).square(), (held - goal).square()
    return torch.maximum(plain, clipped) / 2, clipped > plain
