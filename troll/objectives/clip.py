"""PPO's clipping."""

from dataclasses import dataclass

import torch
from torch import Tensor

from troll import checks
from troll.objectives.surrogate import Surrogate


@dataclass(frozen=True, kw_only=True)
class Clip(Surrogate):
    """`-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`, for `A < 0` at most `-dual_clip A`."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    """Bounds the loss of tokens with negative advantage at this multiple of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative("clip_low", self.clip_low)
        checks.not_negative("clip_high", self.clip_high)
        if self.dual_clip is not None and not (checks.finite("dual_clip", self.dual_clip) and self.dual_clip > 1):
            raise ValueError(f"dual_clip: needs a number above 1, got {self.dual_clip}")

    def rule(self, ratio: Tensor, advantages: Tensor, new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        loss, cut = clipped(ratio, advantages, self.clip_low, self.clip_high)
        if self.dual_clip is not None:
            ceiling = torch.where(advantages < 0, -self.dual_clip * advantages, torch.inf)
            loss, cut = torch.minimum(loss, ceiling), cut | (loss > ceiling)
        return loss, cut


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """`-min(r A, clip(r, 1 - low, 1 + high) A)` `[M]`, and where clipping cut it."""
    free, bounded = -ratio * advantages, -ratio.clamp(1 - low, 1 + high) * advantages
    return torch.maximum(free, bounded), bounded > free
