"""Sampling and grading side by side: a group is graded while the engine goes on with the others.

Whatever came in while the last batch was graded is the next batch, so that a slow grader gets large ones and is never
waited for before sampling is over. Graders whose batches cost something by themselves get no smaller ones than pay off.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from queue import Empty, SimpleQueue
from statistics import fmean
from typing import Literal

import torch

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

    ``sample`` runs the engine in the thread that calls it, ``sample_in`` in another. Of what is collected nothing
    depends on which was faster, engine or grader. Each of a job's ranks samples and grades its own share, ``together``
    with those that share its engine.
    """

    def __init__(self, prompts: Sequence[Prompt], grading: Grading, together: int = 1) -> None:
        self._together = together
        self._prompts, self._grading = distributed.strided_shard(prompts, together), grading
        self._result: list[list[Sample]] | None = None
        self._waiting: SimpleQueue[tuple[int, list[Rollout]] | None] = SimpleQueue()
        self._complete = self._given_up = False
        self._seconds = {"sampling": 0.0, "grading": 0.0}
        self._waited = {"sampling": 0.0, "grading": 0.0}
        self._sampled: Future[None] | None = None
        self._graded = grading.thread.submit(self._grade)

    def hidden(self, work: Literal["sampling", "grading"]) -> float:
        """How many seconds of the work nobody waited for."""
        return max(0.0, self._seconds[work] - self._waited[work])

    def sample(self, engine: RolloutEngine, samples: int, sampling: Sampling) -> None:
        """``samples`` answers to each prompt. Raises as the engine does; ``result`` says when the grader failed."""
        start = time.perf_counter()
        together = self._together
        first = sampling.first + distributed.rank() // together
        sampling = replace(sampling, first=first, stride=distributed.size() // together)
        grades = distributed.rank() % together == 0
        try:
            prompts = [prompt.token_ids for prompt in self._prompts]
            with closing(engine.stream(prompts, samples, sampling)) as groups:
                for group in groups:
                    if grades and self._graded.done():
                        break
                    if grades:
                        self._waiting.put(group)
        except BaseException:
            self._given_up = True
            raise
        finally:
            self._waiting.put(None)
            self._seconds["sampling"] = time.perf_counter() - start
            if self._sampled is None:
                self._waited["sampling"] = self._seconds["sampling"]

    def sample_in(
        self, thread: Executor, engine: RolloutEngine, samples: int, sampling: Sampling, device: torch.device
    ) -> None:
        """Begin to ``sample`` in ``thread``, on a stream of its own where ``device`` is a GPU."""
        # Whatever the engine's weights come from was queued on this thread's stream, and has to be there first.
        pushed = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

        def begin() -> None:
            if pushed is None:
                return self.sample(engine, samples, sampling)
            with torch.cuda.device(device), torch.cuda.stream(_sampling_stream(device)):
                torch.cuda.current_stream().wait_event(pushed)
                self.sample(engine, samples, sampling)
                torch.cuda.current_stream().synchronize()
            return None

        self._sampled = thread.submit(begin)

    def wait_until_sampled(self) -> None:
        """Wait until the engine is free. Raises what ``sample`` raised."""
        if self._sampled is not None:
            with self._waiting_for("sampling"):
                self._sampled.result()

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
            self.wait_until_sampled()
            with self._waiting_for("grading"):
                own = self._graded.result()
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

    @contextmanager
    def _waiting_for(self, work: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited[work] += time.perf_counter() - start

    def _grade(self) -> list[list[Sample]]:
        groups: dict[int, list[Sample]] = {}
        while batch := self._next_batch():
            start = time.perf_counter()
            numbers, rollouts = zip(*batch, strict=True)
            graded = grade(self._grading, [self._prompts[i] for i in numbers], rollouts)
            groups |= zip(numbers, graded, strict=True)
            self._seconds["grading"] += time.perf_counter() - start
        if self._given_up:
            return []
        # Of ranks that sample together only the first grades.
        return [groups[i] for i in range(len(self._prompts))] if groups else []

    def _next_batch(self) -> list[tuple[int, list[Rollout]]]:
        """The groups that have come in, ``batch_size`` samples at least if there are so many; none at the end."""
        batch: list[tuple[int, list[Rollout]]] = []
        while not self._complete:
            enough = sum(len(rollouts) for _, rollouts in batch) >= self._grading.batch_size
            try:
                group = self._waiting.get(block=not enough)
            except Empty:
                break
            if group is None:
                self._complete = True
            else:
                batch.append(group)
        return [] if self._given_up else batch


@cache
def _sampling_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all steps: memory that torch keeps for a stream serves no other."""
    return torch.cuda.Stream(device)


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
    """How many pushes of weights the answers are behind ``version``, in numbers for the metrics.

    Raises ``RunError`` where one is further behind than ``bound``.
    """
    behind = [version - sample.rollout.version for group in groups for sample in group]
    if max(behind) > bound:
        message = f"Answers sampled {max(behind)} steps ago were about to be trained on; max_staleness is {bound}."
        raise RunError("stale_rollouts", message, exit_code=ExitCode.BUG)
    return {"staleness_mean": fmean(behind), "staleness_max": float(max(behind))}


def refuse_a_failing_grader(samples: Iterable[Sample]) -> None:
    """Raises ``RunError`` where the grader fails on too many.

    Answers that earn the least are no reason to stop; ``workers.training.sampling.rewards`` tells of them.
    """
    grades = [sample.grade for sample in samples]
    reasons = [f"{each.error}: {each.detail}" for each in grades if each.reward is None and not each.earns_least]
    if len(reasons) > MAX_UNGRADED * len(grades):
        raise grader_failed(len(grades), reasons)
