"""CISPO (arXiv 2506.13585): the policy gradient, its importance weight bounded and not differentiated."""

from dataclasses import dataclass

from torch import Tensor

from troll import checks
from troll.objectives.surrogate import Surrogate


@dataclass(frozen=True, kw_only=True)
class Cispo(Surrogate):
    """`-stop_grad(min(r, 1 + clip_high)) A log new(a)`. No token is left out, and no weight bounded from below."""

    clip_high: float = 4.0
    """The largest weight is one more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative("clip_high", self.clip_high)

    def rule(self, ratio: Tensor, advantages: Tensor, new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        weight = ratio.detach()
        return -weight.clamp(max=1 + self.clip_high) * advantages * new, weight > 1 + self.clip_high
