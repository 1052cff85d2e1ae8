"""SAPO (arXiv 2511.20347): a soft gate in the place of clipping."""

from dataclasses import dataclass

import torch
from torch import Tensor

from troll import checks
from troll.objectives.surrogate import Surrogate


@dataclass(frozen=True, kw_only=True)
class Sapo(Surrogate):
    """`-4 / t sigmoid(t (r - 1)) A`, whose gradient fades as the ratio leaves 1 and is that of `-r A` at 1.

    t is `temperature_pos` where `A > 0`, and `temperature_neg` elsewhere.
    """

    temperature_pos: float = 1.0
    temperature_neg: float = 1.05

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive("temperature_pos", self.temperature_pos)
        checks.positive("temperature_neg", self.temperature_neg)

    def rule(self, ratio: Tensor, advantages: Tensor, new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        sharpness = torch.full_like(ratio, self.temperature_neg).masked_fill(advantages > 0, self.temperature_pos)
        gate = 4 / sharpness * torch.sigmoid(sharpness * (ratio - 1))
        return -gate * advantages, torch.zeros_like(advantages, dtype=torch.bool)
