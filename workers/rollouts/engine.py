"""What the training loop asks of a rollout engine: token ids in, sampled token ids and their log-probabilities out.

Text never passes through here: what was sampled is what is trained on, token by token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    # Without torch, so that a process can know what may go wrong before it has imported everything.
    from workers.rollouts.top_log_probs import TopLogProbs


@dataclass(frozen=True)
class Sampling:
    """How to sample. The same prompts, weights and ``Sampling`` give the same rollouts."""

    temperature: float
    """0 is greedy."""
    max_tokens: int
    """Most tokens of one answer, the end-of-sequence token included."""
    seed: int


@dataclass(frozen=True)
class Rollout:
    """One sampled answer of n tokens."""

    token_ids: list[int]
    """``[n]``; ends with the end-of-sequence token when ``finish_reason`` is ``"stop"``."""
    log_probs: list[float]
    """``[n]`` log-probability of each sampled token at the sampling temperature (at 1 when sampling is greedy)."""
    finish_reason: Literal["stop", "length"]
    top: "TopLogProbs | None" = None
    """The most likely tokens of each position, where the engine was asked for them."""
    version: int = 0
    """How often weights had been pushed to the engine when it sampled this."""


class NonFiniteLogits(Exception):
    """The model's logits are NaN or infinite: its weights are beyond repair."""


class RolloutEngine(Protocol):
    def generate(self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling) -> list[list[Rollout]]:
        """``samples`` rollouts of each prompt, in the order of the prompts.

        Raises ``NonFiniteLogits``.
        """
        ...
