"""A job's metrics, as the commands that draw or compare them read them, and as a line of a terminal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai import OpenAI

POINTS = 2000
"""Most points that the service gives."""
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Chart:
    """What is drawn together: metrics by name, and what they are called in it."""

    title: str
    lines: dict[str, str]


CHARTS = (
    Chart("Reward", {"train_mean_reward": "training", "full_valid_mean_reward": "validation"}),
    Chart(
        "KL divergence to the sampling policy, nats",
        {"troll.kl_before": "before projection", "troll.kl_after": "after"},
    ),
    Chart("Share of tokens held back", {"troll.fraction_projected": "projected", "troll.fraction_clipped": "clipped"}),
    Chart("Entropy, nats", {"troll.entropy": "entropy"}),
    Chart("Tokens of an answer", {"completion_tokens_mean": "training", "valid_completion_tokens_mean": "validation"}),
    Chart("Share of answers cut short", {"completions.clipped_ratio": "cut"}),
    Chart("Loss", {"train_loss": "training", "valid_loss": "validation", "troll.policy_loss": "policy"}),
    Chart("Accuracy of tokens", {"train_mean_token_accuracy": "training", "valid_mean_token_accuracy": "validation"}),
    Chart("Gradient norm", {"troll.grad_norm": "mean", "troll.grad_norm_max": "largest"}),
    Chart("Mismatch of sampler and trainer, KL", {"troll.mismatch_kl_k3": "k3"}),
    Chart(
        "Seconds of a step",
        {
            "timing.step.full_iteration": "all",
            "timing.step.sampling": "sampling",
            "timing.step.grading": "grading",
            "timing.step.training": "training",
            "timing.step.eval": "evaluation",
        },
    ),
)


@dataclass(frozen=True)
class Curves:
    """Columns of equal length."""

    step: list[float]
    values: dict[str, list[float | None]]

    def points(self, name: str) -> list[tuple[float, float]]:
        """Step and number, where there is one."""
        return [(step, value) for step, value in zip(self.step, self.values[name], strict=True) if value is not None]


def read(client: "OpenAI", job_id: str, names: Sequence[str], points: int = POINTS) -> Curves:
    """Metrics of a job, in at most so many points, each the mean of the steps that it stands for."""
    found: Any = client.get(
        f"/fine_tuning/jobs/{job_id}/metrics",
        cast_to=object,
        options={"params": {"names": list(names), "points": points}},
    )
    return Curves(found["step"], found["values"])


def sparkline(values: Sequence[float], width: int) -> str:
    """``values`` as at most ``width`` blocks, each the mean of as many, between the least and the greatest of them."""
    per = max(1, math.ceil(len(values) / width))
    parts = [values[first : first + per] for first in range(0, len(values), per)]
    means = [sum(part) / len(part) for part in parts]
    low = min(means, default=0.0)
    span = max(means, default=0.0) - low or 1.0
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] for mean in means)
