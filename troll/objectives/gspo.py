"""GSPO (arXiv 2507.18071): clipping by the length-normalised ratio of the whole sequence."""

from dataclasses import dataclass

from torch import Tensor

from troll import checks
from troll.objectives.base import Ratio
from troll.objectives.clip import clipped
from troll.objectives.surrogate import Surrogate


@dataclass(frozen=True, kw_only=True)
class Gspo(Surrogate):
    """`-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)`, s the geometric mean of the sequence's token ratios."""

    ratio: Ratio = "sequence"
    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative("clip_low", self.clip_low)
        checks.not_negative("clip_high", self.clip_high)
        if self.ratio != "sequence":
            raise ValueError("ratio: GSPO is the objective of the sequence's ratio; Clip is that of the token's")

    def rule(self, ratio: Tensor, advantages: Tensor, new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        return clipped(ratio, advantages, self.clip_low, self.clip_high)
