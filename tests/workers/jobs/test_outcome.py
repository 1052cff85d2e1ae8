"""The table of what follows from a child's end."""

import signal
from typing import Any

import pytest

from service.jobs.states import Desired
from workers.jobs.outcome import Action, Outcome, decide
from workers.wire import ExitCode, Failure

FAILURE = Failure(code="non_finite_loss", message="The loss is not finite.", param="learning_rate")


def outcome(exit_code: int | None, desired: Desired = Desired.RUN, strikes: int = 1, **changed: Any) -> Outcome:
    given: dict[str, Any] = {"has_result": False, "max_strikes": 3, "failure": None} | changed
    return decide(exit_code=exit_code, desired=desired, strikes=strikes, **given)


@pytest.mark.parametrize(
    ("exit_code", "strikes", "action"),
    [
        (ExitCode.STOPPED, 1, Action.REQUEUE),
        (ExitCode.USER_ERROR, 1, Action.FAIL),
        (ExitCode.GRADER_ERROR, 1, Action.FAIL),
        (ExitCode.UNAVAILABLE, 1, Action.RETRY),
        (ExitCode.UNAVAILABLE, 3, Action.FAIL),
        (ExitCode.NO_ROOM, 1, Action.WAIT),
        (ExitCode.NO_ROOM, 9, Action.WAIT),
        (ExitCode.GRADER_AWAY, 9, Action.PAUSE),
        (ExitCode.BUG, 1, Action.RETRY),
        (ExitCode.BUG, 2, Action.FAIL),
        (1, 1, Action.RETRY),
        (-signal.SIGKILL, 2, Action.RETRY),
        (-signal.SIGSEGV, 3, Action.FAIL),
        (None, 1, Action.RETRY),
        (None, 3, Action.FAIL),
    ],
)
def test_action_by_exit_code(exit_code: int | None, strikes: int, action: Action) -> None:
    assert outcome(exit_code, strikes=strikes).action is action


def test_done_with_a_result_succeeds_even_when_cancelled_meanwhile() -> None:
    assert outcome(ExitCode.DONE, Desired.CANCEL, has_result=True).action is Action.SUCCEED


def test_done_without_a_result_is_a_bug() -> None:
    assert outcome(ExitCode.DONE, strikes=2).code == "internal_error"


@pytest.mark.parametrize(
    "exit_code",
    [
        ExitCode.STOPPED,
        ExitCode.BUG,
        ExitCode.USER_ERROR,
        ExitCode.NO_ROOM,
        ExitCode.GRADER_AWAY,
        -signal.SIGKILL,
        None,
    ],
)
def test_a_wish_to_cancel_wins(exit_code: int | None) -> None:
    assert outcome(exit_code, Desired.CANCEL, strikes=3).action is Action.CANCEL


@pytest.mark.parametrize("exit_code", [ExitCode.STOPPED, ExitCode.BUG, ExitCode.NO_ROOM, -signal.SIGKILL, None])
def test_a_wish_to_pause_wins_over_another_attempt(exit_code: int | None) -> None:
    assert outcome(exit_code, Desired.PAUSE).action is Action.PAUSE


def test_a_wish_to_pause_does_not_hide_a_failure() -> None:
    assert outcome(ExitCode.USER_ERROR, Desired.PAUSE, failure=FAILURE).code == "non_finite_loss"


def test_the_childs_own_words_become_the_error() -> None:
    failed = outcome(ExitCode.USER_ERROR, failure=FAILURE)
    assert (failed.code, failed.message, failed.param) == (FAILURE.code, FAILURE.message, FAILURE.param)
