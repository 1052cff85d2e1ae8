"""What is shown of metrics events."""

import io
from typing import Any

import pytest
from rich.console import Console

from service.cli.curves import sparkline
from service.cli.following import Lines, _is_worth_a_line


def drawn(steps: list[dict[str, Any]], width: int = 100) -> list[list[str]]:
    lines, console = Lines(), Console(file=io.StringIO(), width=width)
    for step in steps:
        lines.take(step)
    console.print(lines.table(width))
    return [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_curves_are_those_of_the_method() -> None:
    reward = [
        {"train_mean_reward": n / 4, "full_valid_mean_reward": None, "troll": {"kl_after": 1.0}} for n in range(5)
    ]
    assert drawn(reward) == [["reward", "▁▃▅▆█", "1", "0", "to", "1"], ["KL", "▁▁▁▁▁", "1", "1", "to", "1"]]
    loss: list[dict[str, Any]] = [
        {"train_loss": 2.0, "full_valid_loss": 3.0},
        {"train_loss": 1.5, "full_valid_loss": None},
    ]
    assert drawn(loss) == [["loss", "█▁", "1.5", "1.5", "to", "2"], ["validation", "loss", "▁", "3", "3", "to", "3"]]


@pytest.mark.parametrize(("count", "width"), [(0, 10), (1, 10), (10, 10), (11, 10), (10_000, 42)])
def test_a_curve_keeps_to_its_width(count: int, width: int) -> None:
    assert min(count, 1) <= len(sparkline([float(n) for n in range(count)], width)) <= width


@pytest.mark.parametrize(
    ("data", "worth"),
    [({"step": 10}, True), ({"step": 3}, False), ({"step": 3, "full_valid_loss": 1.0}, True)],
)
def test_a_log_gets_tenth_steps_and_evaluations(data: dict[str, Any], worth: bool) -> None:
    assert _is_worth_a_line(data) is worth
