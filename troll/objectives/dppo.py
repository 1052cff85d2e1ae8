"""DPPO (arXiv 2602.04879): no gradient from tokens that have left a region and would be taken further out."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from troll import checks
from troll.objectives.surrogate import Surrogate

Divergence = Literal["tv", "kl"]


@dataclass(frozen=True, kw_only=True)
class Dppo(Surrogate):
    """`-r A`, without the tokens that have left the region and whose update would take them further out.

    The divergence is that of the two-outcome distributions "the sampled token, or another".
    """

    divergence: Divergence = "tv"
    """Total variation `|p - q|`, or `KL(q || p)`."""
    threshold: float = 0.2
    """Its authors' is 0.2 for `"tv"` and 0.05 for `"kl"`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("divergence", self.divergence, get_args(Divergence))
        checks.positive("threshold", self.threshold)

    def rule(self, ratio: Tensor, advantages: Tensor, new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        new, old = new.detach(), old.detach()
        if self.divergence == "tv":
            distance = (new.exp() - old.exp()).abs()
        else:
            rest = 1 - old.exp()
            distance = old.exp() * (old - new) + rest * (_log_of_rest(old) - _log_of_rest(new))
        outward = torch.where(advantages > 0, new > old, new < old)
        cut = (distance > self.threshold) & outward
        return torch.where(cut, 0.0, -ratio * advantages), cut


def _log_of_rest(log_probs: Tensor) -> Tensor:
    """`log(1 - p)`, finite also where p rounds to 1."""
    return torch.log1p(-log_probs.exp()).clamp(min=math.log(torch.finfo(log_probs.dtype).tiny))
