"""PPO's clipping, and GSPO's with `ratio="sequence"` (whose authors clip at 3e-4 and 4e-4)."""

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
        free, clipped = -ratio * advantages, -ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages
        loss, cut = torch.maximum(free, clipped), clipped > free
        if self.dual_clip is not None:
            ceiling = torch.where(advantages < 0, -self.dual_clip * advantages, torch.inf)
            loss, cut = torch.minimum(loss, ceiling), cut | (loss > ceiling)
        return loss, cut
