"""What an evaluation says beside its mean: how sure that is, and what several answers to a row can do.

n rows, k answers to each. Answers without a reward are left out, so that some rows may have fewer.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
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
    full = grader.bounds().high
    most = max(map(len, rewards))
    means, best, majorities = [fmean(row) for row in rewards], [max(row) for row in rewards], [*map(majority, rows)]
    (mean_low, mean_high), (best_low, best_high), (low, high) = map(interval, (means, best, majorities))
    sizes = sorted({1 << power for power in range(most.bit_length()) if 1 << power <= most} | {most})
    solved = {str(k): passing(k, rewards, full) for k in sizes} if math.isfinite(full) else {}
    between = {k: interval(shares) for k, shares in solved.items()}
    return ValidationStatistics(
        rows=len(rows),
        answers_per_row=most,
        mean_at_k=fmean(means),
        reward_mean_low=mean_low,
        reward_mean_high=mean_high,
        best_at_k=fmean(best),
        best_at_k_low=best_low,
        best_at_k_high=best_high,
        majority_at_k=fmean(majorities),
        majority_at_k_low=low,
        majority_at_k_high=high,
        pass_at_k={k: fmean(shares) for k, shares in solved.items()},
        pass_at_k_low={k: low for k, (low, _) in between.items()},
        pass_at_k_high={k: high for k, (_, high) in between.items()},
    )


def checkpoint_metrics(sets: Mapping[str, ValidationStatistics | None]) -> dict[str, float | None]:
    """What a checkpoint tells of the sets that were evaluated, by the names that curves have."""
    told: dict[str, float | None] = {}
    for name, found in sets.items():
        if found is not None:
            single = {each: getattr(found, each) for each in ("mean_at_k", "majority_at_k", "best_at_k")}
            several = {f"pass_at_k.{k}": share for k, share in found.pass_at_k.items()}
            told |= {f"validation_sets.{name}.{each}": value for each, value in (single | several).items()}
    return told


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of n rows' values, by a percentile bootstrap over rows."""
    known, number = torch.tensor(values, dtype=torch.float64), len(values)
    generator = torch.Generator().manual_seed(SEED)
    at_once = max(1, CHUNK // number)
    resampled = [
        known[torch.randint(number, (min(at_once, RESAMPLES - start), number), generator=generator)].mean(-1)
        for start in range(0, RESAMPLES, at_once)
    ]
    low, high = torch.cat(resampled).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def passing(k: int, rewards: Sequence[Sequence[float]], full: float) -> list[float]:
    """How probably k of each row's answers solve it: one of them has the ``full`` reward.

    Unbiased, 1 - C(n - c, k) / C(n, k) of a row with c such answers among n (arXiv 2107.03374). Rows of fewer than k
    answers are left out.
    """
    shares = []
    for row in rewards:
        wrong = sum(reward < full for reward in row)
        if len(row) >= k:
            shares.append(1 - math.comb(wrong, k) / math.comb(len(row), k))
    return shares


def majority(row: Sequence[Sample]) -> float:
    """The mean reward of a row's most frequent answer; of several, of the one that came first.

    Answers are the same where the grader read the same out of them, or has read nothing and their texts are the same.
    """
    texts = [each.answer.text.strip() if each.grade.extracted is None else each.grade.extracted for each in row]
    chosen, _ = Counter(texts).most_common(1)[0]
    return fmean(
        each.reward for each, text in zip(row, texts, strict=True) if text == chosen and each.reward is not None
    )
