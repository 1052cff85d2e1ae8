"""Epochs over a step's answers, and how the learning rate goes."""

from typing import Any

import pytest

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from workers.training.optim import update


def rates(**asked: Any) -> list[float]:
    h = resolve(Hyperparameters(learning_rate=1.0, n_steps=8, **asked), training_rows=8)
    return [update.learning_rate(h, step) for step in range(1, 9)]


def test_a_rate_stays_where_nothing_else_is_said() -> None:
    assert rates() == [1.0] * 8
    assert rates(warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_falling_rate_would_reach_zero_behind_the_last_step(schedule: str, warmup: int) -> None:
    falling = [1.0, *rates(schedule=schedule, warmup_steps=warmup)[warmup:]]
    assert falling == sorted(falling, reverse=True)
    assert 0 < falling[-1] < falling[-2]


def test_the_shapes_are_the_usual_ones() -> None:
    assert rates(schedule="linear") == pytest.approx([1 - n / 9 for n in range(1, 9)])
    assert rates(schedule="cosine", warmup_steps=1)[4] == pytest.approx(0.5)


def test_a_warm_up_as_long_as_the_job_is_all_there_is() -> None:
    assert rates(schedule="cosine", warmup_steps=8) == [n / 8 for n in range(1, 9)]
    assert rates(schedule="linear", warmup_steps=100)[-1] == pytest.approx(0.08)


def test_each_epoch_has_all_mini_batches_in_an_order_of_its_own() -> None:
    batches = list("abcdefgh")
    told = "".join(update.in_epochs(batches, 3, step=5))
    epochs = [told[start : start + 8] for start in (0, 8, 16)]
    assert epochs[0] == "abcdefgh"
    assert [sorted(epoch) for epoch in epochs] == [batches] * 3
    assert len(set(epochs)) == 3
    assert told == "".join(update.in_epochs(batches, 3, step=5))
    assert told != "".join(update.in_epochs(batches, 3, step=6))


def test_the_rate_warms_up_when_the_critic_has() -> None:
    settings: dict[str, Any] = {"advantage": "gae", "critic_warmup_steps": 3, "warmup_steps": 2}
    assert rates(**settings)[3:] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert rates(**settings, schedule="linear")[5:] == pytest.approx([0.75, 0.5, 0.25])
