"""Sampling and grading side by side: a group is graded while the engine goes on with the others.

Whatever came in while the last batch was graded is the next batch, so that a grader that gains by large batches gets
them, and a slow one is never waited for before sampling is over.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from contextlib import closing
from queue import Empty, SimpleQueue

from workers.graders import Grader
from workers.graders import Sample as GraderSample
from workers.rollouts.engine import Rollout, RolloutEngine, Sampling
from workers.training.answers import AnswerReader
from workers.training.batch import Sample
from workers.training.data import Prompt
from workers.training.errors import RunError
from workers.wire import ExitCode

MAX_UNGRADED = 0.5


class Collection:
    """The graded answers to some prompts, while they come in.

    ``sample`` runs the engine in the thread that calls it; grading runs in ``thread``. Of what is collected nothing
    depends on which of the two was faster.

    Args:
        thread: an executor of one thread, so that one batch at a time is graded.
    """

    def __init__(self, prompts: Sequence[Prompt], grader: Grader, reader: AnswerReader, thread: Executor) -> None:
        self._prompts, self._grader, self._reader = prompts, grader, reader
        self._waiting: SimpleQueue[tuple[int, list[Rollout]] | None] = SimpleQueue()
        self._complete = self._given_up = False
        self._waited = 0.0
        self.sampling_seconds = 0.0
        """How long the engine sampled."""
        self.grading_seconds = 0.0
        """How long the grader was at work."""
        self._graded = thread.submit(self._grade)

    @property
    def hidden_seconds(self) -> float:
        """How much of the grading nobody waited for."""
        return max(0.0, self.grading_seconds - self._waited)

    def sample(self, engine: RolloutEngine, samples: int, sampling: Sampling) -> None:
        """``samples`` answers to each prompt. Raises as the engine does; ``result`` says when the grader failed."""
        start = time.perf_counter()
        try:
            prompts = [prompt.token_ids for prompt in self._prompts]
            with closing(engine.stream(prompts, samples, sampling)) as groups:
                for group in groups:
                    if self._graded.done():
                        break
                    self._waiting.put(group)
        except BaseException:
            self._given_up = True
            raise
        finally:
            self._waiting.put(None)
            self.sampling_seconds = time.perf_counter() - start

    def result(self) -> list[list[Sample]]:
        """The answers with their grades, in the order of the prompts; waits for them.

        Raises ``RunError`` where the grader fails on too many, and whatever ended the grading.
        """
        start = time.perf_counter()
        try:
            return self._graded.result()
        finally:
            self._waited += time.perf_counter() - start

    def _grade(self) -> list[list[Sample]]:
        groups: dict[int, list[Sample]] = {}
        while batch := self._next_batch():
            start = time.perf_counter()
            numbers, rollouts = zip(*batch, strict=True)
            graded = grade(self._grader, self._reader, [self._prompts[i] for i in numbers], rollouts)
            groups |= zip(numbers, graded, strict=True)
            self.grading_seconds += time.perf_counter() - start
        if self._given_up:
            return []
        ordered = [groups[i] for i in range(len(self._prompts))]
        refuse_a_failing_grader(sample for group in ordered for sample in group)
        return ordered

    def _next_batch(self) -> list[tuple[int, list[Rollout]]]:
        """The groups that have come in, at least one; none when there are no more."""
        batch: list[tuple[int, list[Rollout]]] = []
        while not self._complete:
            try:
                group = self._waiting.get(block=not batch)
            except Empty:
                break
            if group is None:
                self._complete = True
            else:
                batch.append(group)
        return [] if self._given_up else batch


def grade(
    grader: Grader, reader: AnswerReader, prompts: Sequence[Prompt], groups: Sequence[Sequence[Rollout]]
) -> list[list[Sample]]:
    """The rollouts of each prompt with their grades."""
    pairs = [(prompt, rollout) for prompt, group in zip(prompts, groups, strict=True) for rollout in group]
    answers = reader.read([prompt.token_ids for prompt, _ in pairs], [rollout.token_ids for _, rollout in pairs])
    grades = grader.grade(
        [GraderSample(prompt.item, answer.text) for (prompt, _), answer in zip(pairs, answers, strict=True)]
    )
    samples = iter(
        Sample(prompt, rollout, answer, each)
        for (prompt, rollout), answer, each in zip(pairs, answers, grades, strict=True)
    )
    return [[next(samples) for _ in group] for group in groups]


def refuse_a_failing_grader(samples: Iterable[Sample]) -> None:
    """Raises ``RunError`` where the grader fails on too many.

    An answer that cannot be read is the model's fault and no reason to stop; everything else is the grader's.
    """
    grades = [sample.grade for sample in samples]
    reasons = Counter(
        f"{each.error}: {each.detail}" for each in grades if each.reward is None and not each.sample_at_fault
    )
    failed = reasons.total()
    if failed > MAX_UNGRADED * len(grades):
        reason = reasons.most_common(1)[0][0]
        message = f"The grader failed on {failed} of {len(grades)} samples, most often with {reason}"
        raise RunError("grader_failed", message, param="method.reinforcement.grader", exit_code=ExitCode.GRADER_ERROR)
