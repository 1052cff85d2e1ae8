"""What follows from the way a training child ended: a pure table."""

import signal
from dataclasses import dataclass
from enum import StrEnum

from service.jobs.states import Desired
from workers.wire import ExitCode, Failure


class Action(StrEnum):
    SUCCEED = "succeed"
    PAUSE = "pause"
    """Until its owner resumes it: as it was wanted, or for a reason that is said in ``message``."""
    CANCEL = "cancel"
    REQUEUE = "requeue"
    """Run again as soon as a worker is free; the attempt is no strike."""
    WAIT = "wait"
    """Run again later, and again, until what is missing is there; the attempt is no strike."""
    RETRY = "retry"
    """Run again after a delay; the attempt stays a strike."""
    FAIL = "fail"


@dataclass(frozen=True)
class Outcome:
    action: Action
    code: str = ""
    message: str = ""
    param: str | None = None


STRIKES_FOR_A_BUG = 2


def decide(
    *,
    exit_code: int | None,
    has_result: bool,
    desired: Desired,
    strikes: int,
    max_strikes: int,
    failure: Failure | None,
) -> Outcome:
    """The outcome of an attempt.

    ``exit_code`` is negative for a signal and None when the worker itself was lost. ``strikes`` counts attempts since
    the last new checkpoint, this one included. A job that ended well succeeds whatever else was wanted; apart from
    that a wish to cancel wins over any failure, and a wish to pause over any further attempt.
    """
    outcome = _by_exit_code(exit_code, has_result, strikes, max_strikes, failure)
    if outcome.action is Action.SUCCEED:
        return outcome
    if desired is Desired.CANCEL:
        return Outcome(Action.CANCEL)
    if desired is Desired.PAUSE and outcome.action in (Action.REQUEUE, Action.WAIT, Action.RETRY):
        return Outcome(Action.PAUSE)
    return outcome


def _by_exit_code(
    exit_code: int | None, has_result: bool, strikes: int, max_strikes: int, failure: Failure | None
) -> Outcome:
    if exit_code == ExitCode.DONE and has_result:
        return Outcome(Action.SUCCEED)
    if exit_code == ExitCode.STOPPED:
        return Outcome(Action.REQUEUE)
    if exit_code in (ExitCode.USER_ERROR, ExitCode.GRADER_ERROR):
        return _failed(failure, "job_failed", "The training process refused the job without saying why.")
    if exit_code == ExitCode.NO_ROOM:
        return Outcome(Action.WAIT, "disk_full", failure.message if failure else "The disk is full.")
    if exit_code == ExitCode.GRADER_AWAY:
        reason = failure.message if failure else "The grader does not answer."
        return Outcome(Action.PAUSE, "grader_unavailable", reason)
    if exit_code is None:
        return _again(strikes, max_strikes, None, "worker_lost", "The worker stopped answering")
    if exit_code == ExitCode.UNAVAILABLE:
        return _again(strikes, max_strikes, failure, "worker_unavailable", "The worker could not run the job")
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = " (often the machine is out of memory)" if -exit_code == signal.SIGKILL else ""
        return _again(strikes, max_strikes, failure, "worker_crashed", f"The training process ended by {name}{hint}")
    bug = f"The training process failed unexpectedly (exit code {exit_code})"
    return _again(strikes, min(STRIKES_FOR_A_BUG, max_strikes), failure, "internal_error", bug)


def _again(strikes: int, allowed: int, failure: Failure | None, code: str, reason: str) -> Outcome:
    if strikes < allowed:
        return Outcome(Action.RETRY, code, failure.message if failure else reason)
    times = f" {strikes} times without a new checkpoint" if strikes > 1 else ""
    return _failed(failure, code, f"{reason}{times}.")


def _failed(failure: Failure | None, code: str, message: str) -> Outcome:
    if failure is None:
        return Outcome(Action.FAIL, code, message)
    return Outcome(Action.FAIL, failure.code, failure.message, failure.param)
