"""What an evaluation says beside its mean: how sure that is, and what several answers to a row can do.

n rows, k answers to each. Answers without a reward are left out, so that some rows may have fewer.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import torch

from service.graders.schemas import Grader
from service.jobs.metrics import ValidationStatistics
from workers.training.data.batch import Sample

RESAMPLES = 1000
CHUNK = 1 << 22
SEED = 0
"""Of the bootstrap: the same rewards have the same interval."""


def statistics(grader: Grader, groups: Sequence[Sequence[Sample]] | None) -> ValidationStatistics | None:
    """None where nothing was evaluated, or nothing has a reward."""
    rows = [[each for each in group if each.reward is not None] for group in groups or []]
    rows = [row for row in rows if row]
    if not rows:
        return None
    rewards = [[each.reward for each in row if each.reward is not None] for row in rows]
    low, high = interval([fmean(row) for row in rewards])
    full = grader.bounds().high
    most = max(map(len, rewards))
    sizes = sorted({1 << power for power in range(most.bit_length()) if 1 << power <= most} | {most})
    return ValidationStatistics(
        rows=len(rows),
        answers_per_row=most,
        reward_mean_low=low,
        reward_mean_high=high,
        best_at_k=fmean(map(max, rewards)),
        majority_at_k=fmean(map(majority, rows)),
        pass_at_k={str(k): pass_at(k, rewards, full) for k in sizes} if math.isfinite(full) else {},
    )


def interval(means: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of n rows' mean rewards, by a percentile bootstrap over rows."""
    values, number = torch.tensor(means, dtype=torch.float64), len(means)
    generator = torch.Generator().manual_seed(SEED)
    at_once = max(1, CHUNK // number)
    resampled = [
        values[torch.randint(number, (min(at_once, RESAMPLES - start), number), generator=generator)].mean(-1)
        for start in range(0, RESAMPLES, at_once)
    ]
    low, high = torch.cat(resampled).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def pass_at(k: int, rewards: Sequence[Sequence[float]], full: float) -> float | None:
    """The share of rows that k of their answers solve: one of them has the ``full`` reward.

    Unbiased, 1 - C(n - c, k) / C(n, k) of a row with c such answers among n (arXiv 2107.03374); None without such rows.
    """
    shares = []
    for row in rewards:
        wrong = sum(reward < full for reward in row)
        if len(row) >= k:
            shares.append(1 - math.comb(wrong, k) / math.comb(len(row), k))
    return fmean(shares) if shares else None


def majority(row: Sequence[Sample]) -> float:
    """The mean reward of a row's most frequent answer, by its text; of several, of the one that came first."""
    texts = [each.answer.text.strip() for each in row]
    chosen, _ = Counter(texts).most_common(1)[0]
    return fmean(
        each.reward for each, text in zip(row, texts, strict=True) if text == chosen and each.reward is not None
    )
