"""From the results of runs to numbers of cells, and differences to the baseline over the seeds that both have."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 10_000
LAST = 5
"""Steps at the end of a run."""
FEW = 5
"""With fewer seeds an interval is far too narrow."""
VERDICTS = ("ahead", "a tie", "behind", "ahead with every seed", "mixed", "behind with every seed")
Settings = tuple[float, tuple[tuple[str, Any], ...]]
"""Learning rate, and options that are not the objective's defaults."""


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its 95 % interval, which one pair does not have."""

    pairs: list[float]

    @property
    def mean(self) -> float:
        return fmean(self.pairs)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Percentiles of a bootstrap over the pairs. It lies between the smallest and the largest of them."""
        if len(self.pairs) < 2:
            return None
        if len(set(self.pairs)) == 1:
            return self.pairs[0], self.pairs[0]
        found = bootstrap(
            (np.array(self.pairs),), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        return float(found.low), float(found.high)

    @property
    def verdict(self) -> str:
        """One of ``VERDICTS``. Of few seeds only their signs are told: they agree by luck often enough."""
        if len(self.pairs) < FEW:
            every = all(each > 0 for each in self.pairs), all(each < 0 for each in self.pairs)
            return "ahead with every seed" if every[0] else "behind with every seed" if every[1] else "mixed"
        low, high = self.interval or (0.0, 0.0)
        return "ahead" if low > 0 else "behind" if high < 0 else "a tie"


@dataclass(frozen=True)
class Cell:
    """The runs of an objective with the same settings, by seed. A failed run has learned nothing that could be kept."""

    runs: dict[int, dict[str, Any]]

    @property
    def ended(self) -> dict[int, dict[str, Any]]:
        return {seed: run for seed, run in self.runs.items() if run["error"] is None}

    def success(self, how: str) -> float | None:
        """Mean over the runs that ended; None where none did."""
        return fmean(run["held_out"][how]["success"] for run in self.ended.values()) if self.ended else None

    @property
    def validation(self) -> float:
        """Mean validation reward after the last step, by which settings are chosen."""
        return fmean(run["steps"]["valid_reward"][-1] for run in self.ended.values())

    def mean(self, name: str, last: int | None = None) -> float | None:
        """Of a number of the steps, over all of them or the last ones, and over seeds."""
        values = [v for run in self.ended.values() for v in run["steps"][name][-(last or 0) :] if v is not None]
        return fmean(values) if values else None

    def steps_to(self, target: float) -> list[int | None]:
        return [reached(run["steps"], target) for run in self.ended.values()]

    def minus(self, other: "Cell") -> Difference | None:
        """Held-out success, sampled, less another cell's, seed by seed."""
        both = sorted(self.ended.keys() & other.ended.keys())
        success = [[cell.runs[seed]["held_out"]["sampled"]["success"] for cell in (self, other)] for seed in both]
        return Difference([mine - theirs for mine, theirs in success]) if both else None


def reached(steps: dict[str, list[Any]], target: float) -> int | None:
    """The first step at which the mean training reward of three steps reached the target; None where none did."""
    known = [(s, r) for s, r in zip(steps["step"], steps["train_reward"], strict=True) if r is not None]
    for number in range(2, len(known)):
        if fmean(reward for _, reward in known[number - 2 : number + 1]) >= target:
            return int(known[number][0])
    return None


def cells(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, dict[Settings, Cell]]]:
    """By task, estimator and condition, then by objective, then by settings."""
    runs: Any = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for run in results:
        settings = run["learning_rate"], tuple(sorted(run["setting"].items()))
        runs[run["task"], run["estimator"], run["condition"]][run["objective"]][settings][run["seed"]] = run
    return {
        where: {
            objective: {settings: Cell(dict(seeds)) for settings, seeds in by_settings.items()}
            for objective, by_settings in objectives.items()
        }
        for where, objectives in runs.items()
    }


def best(of_objective: dict[Settings, Cell]) -> tuple[Settings, Cell] | None:
    """The settings with the highest validation reward, among those with the most seeds."""
    most = max((len(cell.ended) for cell in of_objective.values()), default=0)
    full = {settings: cell for settings, cell in of_objective.items() if len(cell.ended) == most}
    return max(full.items(), key=lambda item: item[1].validation) if most else None
