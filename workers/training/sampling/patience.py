"""Waiting for a judge or a scoring service that does not answer: for minutes, as for a database, and not for ever.

Samples whose grades say that their server was away are graded again, each time a little later. As long as others get
grades meanwhile, the server is slow and not away. When patience is over the job is paused instead of failed.
"""

import time
from collections.abc import Sequence

from workers.graders import Grade, Grader, GraderSample
from workers.training.processes.channel import Channel

PATIENCE_SECONDS = 300.0
FIRST_DELAY, LONGEST_DELAY = 2.0, 30.0
LOOK_SECONDS = 0.2


class GraderAwayError(Exception):
    """Patience is over, or the run was asked to stop meanwhile. The message says what does not answer."""


class Patient:
    """A grader that waits for its servers, and after it has once given up waits no more."""

    def __init__(self, grader: Grader, channel: Channel) -> None:
        self._grader, self._channel = grader, channel
        self._gave_up: GraderAwayError | None = None

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        """Raises ``GraderAwayError``."""
        if self._gave_up is not None:
            raise self._gave_up
        grades = self._grader.grade(samples)
        began = since = time.monotonic()
        delay, told = FIRST_DELAY, False
        while left := [index for index, grade in enumerate(grades) if grade.away]:
            reason = grades[left[0]].detail or "The grader does not answer."
            if not told:
                self._tell_away(reason)
                told = True
            if time.monotonic() - since > PATIENCE_SECONDS or not self._wait(delay):
                self._gave_up = GraderAwayError(reason)
                raise self._gave_up
            delay = min(2 * delay, LONGEST_DELAY)
            again = self._grader.grade([samples[index] for index in left])
            for index, grade in zip(left, again, strict=True):
                # In a formula one judge may have answered while another was away: its tokens were used all the same.
                grades[index] = grade.after(grades[index])
            if any(not grade.away for grade in again):
                since, delay = time.monotonic(), FIRST_DELAY
        if told:
            seconds = time.monotonic() - began
            self._channel.say(f"The grader answers again after {seconds:.0f} seconds", data={"seconds": seconds})
        return grades

    def _wait(self, seconds: float) -> bool:
        """Whether it could be waited so long without being asked to stop."""
        deadline = time.monotonic() + seconds
        while not self._channel.stopping and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
        return not self._channel.stopping

    def _tell_away(self, reason: str) -> None:
        self._channel.say(
            f"{reason.rstrip('.')}. It is asked again for {PATIENCE_SECONDS / 60:.0f} minutes before the job is paused",
            level="warn",
        )


def first_reason(failures: Sequence[str | None]) -> str | None:
    """Why one of several ranks gave up."""
    return next((reason for reason in failures if reason is not None), None)
