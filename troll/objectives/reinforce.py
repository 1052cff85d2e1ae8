"""REINFORCE: the policy gradient without a ratio, for answers of the policy that is trained."""

from dataclasses import dataclass

import torch
from torch import Tensor

from troll.objectives.surrogate import Surrogate


@dataclass(frozen=True, kw_only=True)
class Reinforce(Surrogate):
    """`-A log new(a)`. Nothing holds the policy near the old one."""

    def rule(self, ratio: Tensor, advantages: Tensor, new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        return -advantages * new, torch.zeros_like(new, dtype=torch.bool)
