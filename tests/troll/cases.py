"""Random rows the tests of the objective share."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# vocabulary, sharpness of the old logits, how far the new ones moved, max_tokens
SHAPES = [
    (8, 1.0, 0.1, 8),
    (40, 3.0, 1.0, 40),
    (40, 3.0, 1.0, 6),
    (200, 6.0, 2.0, 16),
    (200, 12.0, 6.0, 64),
    (7, 2.0, 1.0, 1),
]


@dataclass(frozen=True)
class Case:
    """N rows: numpy arrays for the oracle, tensors of the same values for the package."""

    new: np.ndarray
    old: np.ndarray
    tokens: np.ndarray
    advantages: np.ndarray

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """New logits (a leaf that wants its gradient), old logits, tokens, advantages."""
        new = torch.tensor(self.new, dtype=dtype, requires_grad=True)
        old, advantages = torch.tensor(self.old, dtype=dtype), torch.tensor(self.advantages, dtype=dtype)
        return new, old, torch.tensor(self.tokens), advantages


def make_case(
    rows: int, vocabulary: int, sharp: float, moved: float, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Case:
    """Logits rounded to `dtype`, so that both sides see the same numbers; tokens sampled from the old policy."""
    rng = np.random.default_rng(seed)
    old = rng.normal(size=(rows, vocabulary)) * sharp
    new = old + rng.normal(size=(rows, vocabulary)) * moved
    old, new = (torch.tensor(x, dtype=dtype).double().numpy() for x in (old, new))
    tokens = (old + rng.gumbel(size=old.shape)).argmax(-1)
    return Case(new, old, tokens, torch.tensor(rng.normal(size=rows), dtype=dtype).double().numpy())


def relative_error(got: Tensor | np.ndarray, want: np.ndarray) -> float:
    """Euclidean distance over the wanted length."""
    return float(np.linalg.norm(np.asarray(got, dtype=np.float64) - want) / np.linalg.norm(want))


def gradient_of(leaf: Tensor) -> Tensor:
    """What a backward pass left in `leaf`."""
    assert leaf.grad is not None
    return leaf.grad
