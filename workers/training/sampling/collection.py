"""Sampling and grading side by side: a group is graded while the engine goes on with the others.

Whatever came in while the last batch was graded is the next batch, so that a slow grader gets large ones and is never
waited for before sampling is over. Graders whose batches cost something by themselves get no smaller ones than pay off.
"""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from statistics import fmean
from threading import Lock

from workers.answers import AnswerReader
from workers.data.prompts import Prompt
from workers.errors import RunError
from workers.graders import Grader, GraderSample
from workers.modeling import distributed
from workers.rollouts.engine import Rollout, RolloutEngine, Sampling
from workers.training.data.batch import Sample
from workers.training.errors import grader_failed
from workers.training.sampling.patience import GraderAwayError, first_reason
from workers.wire import ExitCode

MAX_UNGRADED = 0.5


@dataclass(frozen=True)
class Grading:
    """What grades a job's answers, in one thread: a grader need not be safe for several."""

    grader: Grader
    reader: AnswerReader
    batch_size: int = 1
    """Samples that a batch has at least, as long as more are to come."""
    thread: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="grading"))

    def close(self) -> None:
        """Begin no further batch of prompts."""
        self.thread.shutdown(wait=False, cancel_futures=True)


class Collection:
    """The graded answers to some prompts, while they come in.

    ``sample`` has an engine answer all of them; whoever samples them otherwise tells ``add`` of each group and
    ``complete`` of the last. Of what is collected nothing depends on which was faster, engine or grader. Each of a
    job's ranks samples and grades its own share, ``together`` with those that share its engine.
    """

    def __init__(self, prompts: Sequence[Prompt], grading: Grading, together: int = 1) -> None:
        self.prompts = distributed.strided_shard(prompts, together)
        self.graded: dict[int, list[Sample]] = {}
        """This rank's groups that have been graded, by their prompts' places among ``prompts``."""
        self._together, self._grading = together, grading
        self._result: list[list[Sample]] | None = None
        self._waiting: list[tuple[int, list[Rollout]]] = []
        self._lock = Lock()
        self._last_batch: Future[None] | None = None
        self._failure: BaseException | None = None
        self._seconds = self._waited = 0.0

    @property
    def grading_hidden(self) -> float:
        """How many seconds of the grading nobody waited for."""
        return max(0.0, self._seconds - self._waited)

    def number(self, place: int) -> int:
        """The place among all ranks' prompts of this rank's prompt at ``place``."""
        return distributed.rank() // self._together + place * (distributed.size() // self._together)

    def sample(self, engine: RolloutEngine, samples: int, sampling: Sampling) -> None:
        """``samples`` answers to each prompt. Raises as the engine does; ``result`` says when the grader failed."""
        stride = distributed.size() // self._together
        sampling = replace(sampling, first=sampling.first + self.number(0), stride=stride)
        grades = distributed.rank() % self._together == 0
        try:
            prompts = [prompt.token_ids for prompt in self.prompts]
            with closing(engine.stream(prompts, samples, sampling)) as groups:
                for place, group in groups:
                    if self._failure is not None:
                        break
                    if grades:
                        self.add(place, group)
        except BaseException:
            self.give_up()
            raise
        self.complete()

    def add(self, place: int, group: list[Rollout]) -> None:
        """Have the answers to the prompt at ``place`` graded."""
        with self._lock:
            self._waiting.append((place, group))
        # Several collections share the thread, none of which may keep it while it waits for answers.
        self._grading.thread.submit(self._grade_batch)

    def complete(self) -> None:
        """All answers have been added."""
        self._last_batch = self._grading.thread.submit(self._grade_batch, last=True)

    def give_up(self) -> None:
        """Nobody asks for the answers there are."""
        with self._lock:
            self._waiting.clear()

    def result(self) -> list[list[Sample]]:
        """The answers of all ranks with their grades, in the order of the prompts; waits for them.

        Raises ``RunError`` where the grader fails on too many, and whatever ended the grading.
        """
        if self._result is None:
            groups = distributed.gather_strided(self._own_result(), self._together)
            refuse_a_failing_grader(sample for group in groups for sample in group)
            self._result = groups
        return self._result

    def _own_result(self) -> list[list[Sample]]:
        """This rank's share. Raises on every rank when one fails, so that all go on from the same place.

        Where all that failed gave up waiting for a grader, every rank raises ``GraderAwayError``.
        """
        own, failure = None, None
        try:
            start = time.perf_counter()
            own = self._graded_to_the_end()
            self._waited += time.perf_counter() - start
        except Exception as error:
            failure = error
        reason = str(failure) if isinstance(failure, GraderAwayError) else None
        failures = distributed.gather((failure is not None, reason))
        if failure is not None and reason is None:
            raise failure
        away = first_reason([reason for _, reason in failures])
        if away is not None:
            raise GraderAwayError(away) from failure
        if own is None or any(failed for failed, _ in failures):
            raise RuntimeError("Another process failed to sample or to grade its share.")
        return own

    def _graded_to_the_end(self) -> list[list[Sample]]:
        """Raises what ended the grading."""
        assert self._last_batch is not None, "asked for before all answers were added"
        self._last_batch.result()
        if self._failure is not None:
            raise self._failure
        # Of ranks that sample together only the first grades.
        return [self.graded[place] for place in range(len(self.prompts))] if self.graded else []

    def _grade_batch(self, *, last: bool = False) -> None:
        """Grade whatever has come in, if it is enough for a batch or the ``last`` one."""
        with self._lock:
            if not last and sum(len(rollouts) for _, rollouts in self._waiting) < self._grading.batch_size:
                return
            batch, self._waiting = self._waiting, []
        if not batch or self._failure is not None:
            return
        start = time.perf_counter()
        places, rollouts = zip(*batch, strict=True)
        try:
            graded = grade(self._grading, [self.prompts[place] for place in places], rollouts)
        except BaseException as error:
            self._failure = error
            return
        self.graded |= zip(places, graded, strict=True)
        self._seconds += time.perf_counter() - start


def grade(grading: Grading, prompts: Sequence[Prompt], groups: Sequence[Sequence[Rollout]]) -> list[list[Sample]]:
    """The rollouts of each prompt with their grades."""
    pairs = [(prompt, rollout) for prompt, group in zip(prompts, groups, strict=True) for rollout in group]
    answers = grading.reader.read(
        [prompt.token_ids for prompt, _ in pairs], [rollout.token_ids for _, rollout in pairs]
    )
    grades = grading.grader.grade(
        [GraderSample(prompt.item, answer.text) for (prompt, _), answer in zip(pairs, answers, strict=True)]
    )
    samples = iter(
        Sample(prompt, rollout, answer, each)
        for (prompt, rollout), answer, each in zip(pairs, answers, grades, strict=True)
    )
    return [[next(samples) for _ in group] for group in groups]


def staleness(groups: Sequence[Sequence[Sample]], version: int, bound: int) -> dict[str, float]:
    """How many pushes of weights the answers' first tokens are behind ``version``, in numbers for the metrics.

    Raises ``RunError`` where one is further behind than ``bound``.
    """
    behind = [version - sample.rollout.version for group in groups for sample in group]
    if max(behind) > bound:
        message = f"Answers sampled {max(behind)} steps ago were about to be trained on; max_staleness is {bound}."
        raise RunError("stale_rollouts", message, exit_code=ExitCode.BUG)
    return {
        "staleness_mean": fmean(behind),
        "staleness_max": float(max(behind)),
        "partial_rollout_fraction": fmean(sample.rollout.continued > 0 for group in groups for sample in group),
    }


def refuse_a_failing_grader(samples: Iterable[Sample]) -> None:
    """Raises ``RunError`` where the grader fails on too many.

    Answers that earn the least are no reason to stop; ``workers.training.sampling.rewards`` tells of them.
    """
    grades = [sample.grade for sample in samples]
    reasons = [f"{each.error}: {each.detail}" for each in grades if each.reward is None and not each.earns_least]
    if len(reasons) > MAX_UNGRADED * len(grades):
        raise grader_failed(len(grades), reasons)
