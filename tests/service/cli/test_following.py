"""What the bar shows of a metrics event."""

from typing import Any

import pytest

from service.cli.following import _is_worth_a_line, _numbers


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"train_mean_reward": 0.5, "troll": {"kl_after": 0.01}}, {"reward": "0.500", "KL": "0.0100"}),
        ({"train_mean_reward": None, "full_valid_mean_reward": 0.25, "troll": {}}, {"reward": "0.250"}),
        ({"train_loss": 1.5, "full_valid_loss": None, "troll": {"lr": 1e-5}}, {"loss": "1.500"}),
        ({"train_loss": 1.5, "full_valid_loss": 0.0}, {"loss": "1.500", "validation loss": "0.000"}),
    ],
)
def test_the_numbers_are_those_of_the_method(data: dict[str, Any], shown: dict[str, str]) -> None:
    assert _numbers(data) == shown


@pytest.mark.parametrize(
    ("data", "worth"),
    [({"step": 10}, True), ({"step": 3}, False), ({"step": 3, "full_valid_loss": 1.0}, True)],
)
def test_a_log_gets_tenth_steps_and_evaluations(data: dict[str, Any], worth: bool) -> None:
    assert _is_worth_a_line(data) is worth
