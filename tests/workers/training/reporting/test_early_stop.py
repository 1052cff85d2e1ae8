"""When evaluations say that training is over."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from service.jobs.spec import RunSpec
from tests.workers.training.test_reinforcement import Killed, attempt, result_of, weights
from tests.workers.training.tiny import Recorder
from workers import wire
from workers.training.reporting import early_stop
from workers.wire import ExitCode

MakeSpec = Callable[..., RunSpec]
Execute = Callable[..., tuple[int, Recorder]]


def hyperparameters(**asked: Any) -> ResolvedHyperparameters:
    return resolve(Hyperparameters(**asked), training_rows=8)


def stops_after(rewards: list[float | None], **asked: Any) -> int | None:
    """Which of the evaluations after the first, the base model's, is the last."""
    h, known = hyperparameters(**asked), early_stop.Lasting()
    for number, reward in enumerate(rewards):
        known["valid_reward_mean"] = reward
        known |= early_stop.checkpoint_metrics(known, h)
        if number and early_stop.reason(known, h):
            return number
    return None


@pytest.mark.parametrize(
    ("rewards", "asked", "last"),
    [
        ([0.9, 0.1, 0.5, 0.7], {"target_reward": 0.5}, 2),
        ([0.0, -0.2, -0.1], {"target_reward": -0.1}, 2),
        ([0.0, None, 0.4], {"target_reward": 0.5}, None),
        ([0.5, 0.5, 0.6, 0.6, 0.55, 0.7], {"early_stopping_patience": 2}, 4),
        ([0.5, 0.4, 0.6, 0.5, 0.7, 0.6], {"early_stopping_patience": 2}, None),
        ([0.5, 0.55, 0.59, 0.7], {"early_stopping_patience": 2, "early_stopping_threshold": 0.1}, 2),
        # Small gains add up: each is measured against the last one that was enough.
        ([0.5, 0.55, 0.61, 0.66, 0.72], {"early_stopping_patience": 2, "early_stopping_threshold": 0.1}, None),
        ([0.5, None, None, 0.9], {"early_stopping_patience": 2}, 2),
        ([None, 0.1, 0.1], {"early_stopping_patience": 1}, 2),
        ([0.5, 0.5, 0.5, 0.5], {}, None),
    ],
)
def test_training_ends_at_a_target_or_a_plateau(
    rewards: list[float | None], asked: dict[str, Any], last: int | None
) -> None:
    assert stops_after(rewards, **asked) == last


@pytest.mark.parametrize("settings", [{}, {"max_staleness": 1}], ids=["on policy", "one step ahead"])
def test_a_job_that_stops_early_succeeds_with_the_model_of_that_step(
    make_spec: MakeSpec, execute: Execute, settings: dict[str, Any]
) -> None:
    asked = {"n_steps": 6, "eval_interval": 2, "learning_rate": 1e-9, "early_stopping_patience": 1} | settings
    asked |= {"early_stopping_threshold": 1.0}
    spec = make_spec(**asked)
    code, whole = execute(spec)
    assert (code, list(whole.metrics()), result_of(whole).step) == (ExitCode.DONE, [0, 1, 2], 2)
    (told,) = (line for line in whole.lines if isinstance(line, wire.Event) and line.key == "stopped-early")
    assert told.message.startswith("Stopped early at step 2 of 6: the validation reward has not risen by more than 1")
    # Killed before it could tell its result, it stops at the same place.
    code, again = execute(attempt(spec, 2, whole.checkpoints()))
    assert (code, again.metrics(), result_of(again).step) == (ExitCode.DONE, {}, 2)
    left, right = (weights(result_of(each).model_path) for each in (whole, again))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_what_is_known_of_the_plateau_is_resumed(make_spec: MakeSpec, execute: Execute) -> None:
    asked = {"n_steps": 5, "eval_interval": 1, "early_stopping_patience": 2, "early_stopping_threshold": 1.0}

    def kill(line: wire.Line) -> None:
        if isinstance(line, wire.Checkpoint):
            raise Killed

    spec, first = make_spec(**asked), Recorder(kill)
    with pytest.raises(Killed):
        execute(spec, first)
    _, second = execute(attempt(spec, 2, first.checkpoints()))
    assert result_of(second).step == 2
