"""Metrics of parts of a batch become those of the whole by what they are declared as, whatever they are called."""

import math

import pytest
import torch

import troll
from tests.troll.cases import make_case
from troll.metrics import LOSS, MAX, MEAN, MIN, SUM, Metric, combine

PARTS = [
    {"tokens": 3.0, "share": 1.0, "odd_max": 4.0, "beta": 0.5},
    {"tokens": 1.0, "share": 0.0, "odd_max": 2.0, "beta": 9.0},
]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [(MEAN, 3.5), (SUM, 6.0), (MIN, 2.0), (MAX, 4.0), (LOSS, 3.0), (Metric("mean", ("tokens", "share")), 4.0)],
)
def test_the_declaration_decides_and_not_the_name(metric: Metric, expected: float) -> None:
    declared = {"tokens": SUM, "share": MEAN, "beta": MEAN, "odd_max": metric}
    assert combine(declared, PARTS, updates=2)["odd_max"] == expected


def test_an_undeclared_metric_is_an_error() -> None:
    with pytest.raises(ValueError, match="metrics: odd_max, beta: not declared"):
        combine({"tokens": SUM, "share": MEAN}, PARTS)


@pytest.mark.parametrize("metric", [MEAN, MIN, MAX])
def test_a_part_without_tokens_says_nothing(metric: Metric) -> None:
    """What a rank with nothing to do reports: zeros, which are no least or greatest values."""
    declared = {"tokens": SUM, "level": metric}
    idle = {"tokens": 0.0, "level": 0.0}
    for sign in (1.0, -1.0):
        assert combine(declared, [idle, {"tokens": 2.0, "level": sign * 3.0}])["level"] == sign * 3.0


def test_what_has_no_value_is_left_out() -> None:
    declared = {"tokens": SUM, "level": MEAN, "least": MIN, "part": Metric("mean", ("tokens", "level")), "loss": LOSS}
    idle = {"tokens": 0.0, "level": 0.0, "least": 0.0, "part": 0.0, "loss": 0.0}
    assert combine(declared, [idle]) == {"tokens": 0.0, "loss": 0.0}
    assert combine(declared, [idle | {"tokens": 1.0}]).keys() == declared.keys() - {"part"}
    assert combine(declared, []) == {}


def test_metrics_of_micro_batches_are_those_of_one_batch() -> None:
    new, old_logits, tokens, advantages = make_case(12, 30, 2.0, 1.0).tensors()
    objective = troll.Troll(kl_bound=0.5, entropy_coefficient=0.1)
    old = troll.sparsify(old_logits, tokens)
    mask = torch.ones(12)
    mask[7:9] = 0

    def numbers(part: slice) -> dict[str, float]:
        out = objective.loss(new[part], old[part], tokens[part], advantages[part], mask[part], normalizer=10)
        return {name: value.item() for name, value in out.metrics.items()}

    whole = combine(objective.metrics, [numbers(slice(None))])
    parts = combine(objective.metrics, [numbers(slice(a, b)) for a, b in ((0, 5), (5, 7), (7, 9), (9, 12))])
    assert 0 < whole["fraction_projected"] < 1
    assert parts == pytest.approx(whole)
    assert all(math.isfinite(value) for value in whole.values())
