"""``python``: the number that a user's ``grade(sample, item)`` returns, computed in a jail."""

import math

from service.graders.definition import Fault
from service.graders.kinds.python import Python
from service.graders.settings import GraderSettings
from workers.graders import jail
from workers.graders.confinement import ensure_confined
from workers.graders.grading import Grade, GraderSample, SingleGrader, limited
from workers.graders.lanes import JAILED_BATCH, run_all

MAX_DETAIL = 2000
LOAD_SECONDS = 30.0


class PythonGrader(SingleGrader):
    """Raises ``JailError`` where no jail holds. Every sample is graded in a process of its own."""

    batch_size = JAILED_BATCH

    def __init__(self, definition: Python, settings: GraderSettings) -> None:
        ensure_confined(settings)
        self._name, self._source, self._settings = definition.name, definition.source, settings
        self._preload = jail.libraries_of(definition.source)

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        seconds = self._settings.jail_limits.seconds
        programs = [self._program(sample, seconds) for sample in samples]
        outcomes = run_all(programs, self._settings, self._preload)
        return [
            limited(_grade(outcome, seconds), self._name, "python_grader_runtime_error", raised=True)
            for outcome in outcomes
        ]

    def _program(self, sample: GraderSample, seconds: float) -> jail.Program:
        given = {"sample": sample.as_object(), "item": sample.item}
        return {"kind": "grade", "source": self._source, "seconds": seconds, **given}

    @staticmethod
    def fault(definition: Python, settings: GraderSettings) -> Fault | None:
        """Why the jail cannot load the source, with what its functions import.

        Raises ``JailError`` where no jail holds, or none had the time.
        """
        reason = _why_not_loaded(definition, settings)
        return None if reason is None else Fault("source", reason)


def _why_not_loaded(definition: Python, settings: GraderSettings) -> str | None:
    """Why the jail cannot load the source, with what its functions import; None when it can.

    Raises ``JailError`` where no jail holds, or none had the time.
    """
    ensure_confined(settings)
    seconds = min(settings.jail_limits.seconds, LOAD_SECONDS)
    with jail.Jail(settings) as opened:
        outcome = opened.run({"kind": "load", "source": definition.source, "seconds": seconds})
    line = next(outcome.lines(), {})
    if line.get("loaded") is True:
        return None
    if _only_waited(outcome, seconds):
        raise jail.JailError(f"the grader was not loaded: {outcome.why(seconds)}")
    return str(line.get("error", outcome.why(seconds))).strip()[:MAX_DETAIL]


def _grade(outcome: jail.Outcome | jail.JailError, seconds: float) -> Grade:
    if isinstance(outcome, jail.JailError):
        return Grade(None, error="python_grader_server_error", detail=str(outcome))
    lines = list(outcome.lines())
    if outcome.stopped is not None or not lines:
        detail = f"The grader gave no reward: {outcome.why(seconds)}."
        return _failed(detail, raised=not _only_waited(outcome, seconds))
    reward = lines[-1].get("reward")
    if isinstance(reward, int | float) and not isinstance(reward, bool) and math.isfinite(reward):
        return Grade(float(reward))
    return _failed(str(lines[-1].get("error", "The grader gave no reward.")), raised=True)


def _only_waited(outcome: jail.Outcome, seconds: float) -> bool:
    """Whether it hardly got to compute: the time went by for the machine's reasons and not for the code's."""
    return outcome.stopped == "time" and outcome.cpu_seconds < seconds / 2


def _failed(detail: str, *, raised: bool) -> Grade:
    return Grade(None, error="python_grader_runtime_error", detail=detail[:MAX_DETAIL], raised=raised)
