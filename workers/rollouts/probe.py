"""After every push of weights: do the engine and the trainer still give the same tokens the same log-probabilities?

Weights that were pushed wrongly still produce fluent-looking numbers; only a comparison shows it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Tolerance:
    """How far log-probabilities may differ, in nats."""

    mean: float
    worst: float


FLOAT32 = Tolerance(mean=1e-4, worst=1e-3)
"""Both sides compute the same sums in another order: about 1e-6 apart for a small model, 1e-4 for a deep one."""
BFLOAT16 = Tolerance(mean=0.1, worst=1.0)
"""A bfloat16 has 8 significant bits: a logit between 16 and 32 is rounded by up to 1/16, and two such roundings alone
part two log-probabilities by 0.04 on average; the hidden states' own roundings come on top, and unlikely tokens part
furthest. Weights that are wrong part them by nats."""
_FLOAT32_IN_PARTS = Tolerance(mean=5e-3, worst=5e-2)
_ROUNDED_IN_PARTS = frozenset(
    {"apertus"}
)  # vLLM keeps its activation's two parameters in bfloat16, whatever it is asked


def tolerance_for(dtype: Literal["float32", "bfloat16"], model_type: str) -> Tolerance:
    """What a model of ``model_type`` (its configuration's) is held to when the engine computes in ``dtype``."""
    if dtype == "bfloat16":
        return BFLOAT16
    return _FLOAT32_IN_PARTS if model_type in _ROUNDED_IN_PARTS else FLOAT32


@dataclass(frozen=True)
class Difference:
    """Absolute differences of log-probabilities, in nats."""

    mean: float
    worst: float
    tokens: int


class WeightsOutOfSyncError(Exception):
    """The engine does not sample from the weights that are being trained."""

    def __init__(self, difference: Difference, tolerance: Tolerance, version: int | None) -> None:
        self.difference, self.tolerance, self.version = difference, tolerance, version
        after = "" if version is None else f" after push {version}"
        super().__init__(
            f"The rollout engine and the trainer disagree{after}: log-probabilities of {difference.tokens} probe "
            f"tokens differ by {difference.mean:.3g} nats on average and {difference.worst:.3g} at worst, where "
            f"{tolerance.mean:.3g} and {tolerance.worst:.3g} are allowed. Training would learn from answers of another "
            'model. Run the job with rollout_engine "transformers", and report the model and the versions of vllm, '
            "torch and transformers."
        )


def compare(
    engine_log_probs: Sequence[Sequence[float]],
    trainer_log_probs: Sequence[Sequence[float]],
    tolerance: Tolerance,
    version: int | None = None,
) -> Difference:
    """How far both sides are apart on the probe's tokens.

    Args:
        engine_log_probs: per probe sequence, the log-probability of each of its tokens from the second on.
        trainer_log_probs: the same, at the same temperature.
        version: which push is being checked, for the message.

    Raises:
        WeightsOutOfSyncError: beyond the tolerance, or not finite.
        ValueError: sequences of different lengths, or no tokens at all.
    """
    lengths = [[len(row) for row in side] for side in (engine_log_probs, trainer_log_probs)]
    if lengths[0] != lengths[1] or not sum(lengths[0]):
        raise ValueError(f"engine_log_probs, trainer_log_probs: tokens per sequence {lengths[0]} and {lengths[1]}")
    engine, trainer = (
        torch.tensor([value for row in side for value in row], dtype=torch.float64)
        for side in (engine_log_probs, trainer_log_probs)
    )
    apart = (engine - trainer).abs()
    difference = Difference(float(apart.mean()), float(apart.max()), len(apart))
    # Written so that NaN fails too.
    within = difference.mean <= tolerance.mean and difference.worst <= tolerance.worst
    if not (within and math.isfinite(difference.mean)):
        raise WeightsOutOfSyncError(difference, tolerance, version)
    return difference
