"""How the metrics of parts of a batch (micro-batches, ranks) become those of the whole: each is declared with it.

An objective declares its metrics beside its formula (`Objective.metrics`). One that was not declared is an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

Row = Mapping[str, float]
"""The metrics of one part, by name; `tokens` is among them."""


@dataclass(frozen=True)
class Metric:
    """The declaration of a metric."""

    reduction: Literal["mean", "sum", "min", "max", "loss"]
    """`"loss"` is for summands of a loss that was divided by a count over an update's whole batch: the parts of an
    update add up, and the metric is the mean over the updates."""
    weights: tuple[str, ...] = ("tokens",)
    """What a mean weighs a part by: the product of these metrics of it."""


MEAN, SUM, MIN, MAX, LOSS = Metric("mean"), Metric("sum"), Metric("min"), Metric("max"), Metric("loss")


def combine(declared: Mapping[str, Metric], parts: Sequence[Row], updates: int = 1) -> dict[str, float]:
    """The metrics of all parts together, which `updates` updates were made of.

    Parts without a token have nothing to say. What is left without a value, such as a mean of no tokens, is left out.

    Raises:
        ValueError: names the metrics that were not declared.
    """
    names = list(dict.fromkeys(name for part in parts for name in part))
    undeclared = [name for name in names if name not in declared]
    if undeclared:
        raise ValueError(
            f"metrics: {', '.join(undeclared)}: not declared, so nothing says how parts become a whole; "
            "name each in `metrics` of the objective, with its reduction"
        )
    seen = [part for part in parts if part["tokens"]]
    combined = {name: _reduce(declared[name], name, [part for part in seen if name in part], updates) for name in names}
    return {name: value for name, value in combined.items() if value is not None}


def _reduce(metric: Metric, name: str, parts: Sequence[Row], updates: int) -> float | None:
    values = [part[name] for part in parts]
    match metric.reduction:
        case "sum":
            return float(sum(values))
        case "loss":
            return sum(values) / updates
        case "min":
            return min(values, default=None)
        case "max":
            return max(values, default=None)
        case "mean":
            weights = [prod(part[weight] for weight in metric.weights) for part in parts]
            total = sum(weights)
            return sum(v * w for v, w in zip(values, weights, strict=True)) / total if total else None
