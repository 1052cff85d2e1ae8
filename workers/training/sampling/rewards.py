"""What an answer earns that its grader could not grade, and what is said of it.

An answer at fault earns the least reward that the grader gives, so that none is better than a wrong one. Where it was
not the answer that failed but a jail, a judge, a scoring service or a row, it has no reward and is left out.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from service.graders.schemas import Grader
from workers.graders import Grade
from workers.training.data.batch import Sample
from workers.training.errors import grader_failed
from workers.training.processes.channel import Channel
from workers.training.sampling.collection import MAX_UNGRADED

MAX_KINDS = 10
"""Kinds of failures that a run tells of in words; all are counted in the metrics."""


@dataclass
class Rewards:
    """What ``grader`` gave in a run so far, and which of its failures were told."""

    grader: Grader
    channel: Channel
    given: float | None = None
    """The least reward that it gave; None before the first."""
    told: set[str] = field(default_factory=set)

    def settle(self, groups: Sequence[Sequence[Sample]]) -> list[list[Sample]]:
        """The samples with what those earn that are at fault. Tells each new kind of failure.

        Raises ``RunError`` where the grader's code has failed on most and never gave a reward before.
        """
        grades = [sample.grade for group in groups for sample in group]
        known = [] if self.given is None else [self.given]
        self.given = min([*known, *(each.reward for each in grades if each.reward is not None)], default=None)
        self._refuse_code_that_never_works(grades)
        failed = [each for each in grades if each.reward is None]
        if not failed:
            return [list(group) for group in groups]
        least = self.grader.least_reward(self.given)
        for key, kind in _kinds(failed):
            if key not in self.told and len(self.told) < MAX_KINDS:
                self.told.add(key)
                self.channel.say(_in_words(kind, len(grades), least), level="warn", key=key)
        return [[replace(sample, least=least) for sample in group] for group in groups]

    def _refuse_code_that_never_works(self, grades: Sequence[Grade]) -> None:
        raised = [each for each in grades if each.raised and each.reward is None]
        if self.given is None and len(raised) > MAX_UNGRADED * len(grades):
            raise grader_failed(len(grades), [f"{each.error}: {each.detail}" for each in raised])


def _kinds(failed: Sequence[Grade]) -> Iterator[tuple[str, list[Grade]]]:
    """The failures of each kind under a key: the same flag, and details that end alike."""
    kinds: dict[str, list[Grade]] = {}
    for each in failed:
        about = (each.detail or "").strip().split("\n")[-1].split(":")[0]
        number = zlib.crc32(about.encode(errors="replace"))
        kinds.setdefault(f"ungraded-{each.error}-{number:08x}", []).append(each)
    yield from kinds.items()


def _in_words(kind: list[Grade], answers: int, least: float) -> str:
    first = kind[0]
    many = f"{len(kind)} of {answers} answers ({first.error})"
    if not first.earns_least:
        return f"There is no reward for {many}, which are left out. The first time: {first.detail}"
    cause = "The grader raised an error on" if first.raised else "The grader could not read"
    return (
        f"{cause} {many}; such answers earn the least that it gives, which is {least:g}. The first time: {first.detail}"
    )
