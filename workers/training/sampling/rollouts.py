"""A job's graded answers, from asking for them to having them."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from service.jobs.spec import RunSpec
from workers.data.prompts import Prompt
from workers.modeling import distributed, seeds
from workers.modeling.policy import Policy
from workers.rollouts.engine import RolloutEngine, Sampling
from workers.rollouts.grammar import Grammar
from workers.training.data import order
from workers.training.data.batch import Sample
from workers.training.reporting.clock import Clock
from workers.training.sampling import prefetched
from workers.training.sampling.collection import Collection, Grading
from workers.training.sampling.partial import PartialRollouts, sample
from workers.training.sampling.prefetched import Kept
from workers.training.sampling.sets import EvaluationSet
from workers.training.sampling.window import Window


class Rollouts:
    """A job's graded answers: those that steps learn from, ``group_size`` to each prompt, and those of evaluations.

    With ``max_staleness`` S the answers of S further steps at most are prefetched: they are begun S windows ahead of
    the step that learns from them, a window being the time in which a step is trained, and the last window before it
    samples them to their ends. Any other step's are sampled when they are asked for.
    """

    def __init__(
        self,
        spec: RunSpec,
        hyperparameters: ResolvedHyperparameters,
        engine: RolloutEngine,
        grading: Grading,
        prompts: Sequence[Prompt],
        grammar: Grammar | None,
        clock: Clock,
        policy: Policy,
    ) -> None:
        self.grading = grading
        self._seed, self._hyperparameters, self._engine = spec.job.seed, hyperparameters, engine
        self._prompts, self._grammar, self._clock = prompts, grammar, clock
        self._device, self._context_length = policy.device, policy.context_length
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self._window: Window | None = None
        self._prefetched: dict[int, PartialRollouts] = {}

    def prefetch(self, step: int) -> None:
        """While ``step`` is trained, sample for the steps after it, in another thread."""
        h = self._hyperparameters
        for later in range(step + 1, min(step + h.max_staleness, h.n_steps) + 1):
            if later not in self._prefetched:
                self._prefetched[later] = self._begin(later)
        windows = [(begun, self._piece(later - step)) for later, begun in self._prefetched.items()]
        work = partial(sample, self._engine, windows, h.temperature, self._grammar)
        self._window = Window(self._thread, work, self._device)

    def _begin(self, step: int, kept: Sequence[Sequence[Kept]] | None = None) -> PartialRollouts:
        """The answers of ``step``, none of them begun or as far as they were ``kept``."""
        h = self._hyperparameters
        collection = self._collection(step)
        rooms = [
            min(h.max_completion_tokens, self._context_length - len(prompt.token_ids)) for prompt in collection.prompts
        ]
        seed = seeds.derive(self._seed, "rollout", step)
        begun = PartialRollouts(collection, h.group_size, rooms, seed)
        if kept is not None:
            begun.restore(distributed.strided_shard(kept, self._engine.together), self.grading.reader)
        return begun

    def _piece(self, steps: int) -> int | None:
        """How many tokens a window samples of an answer that is needed in so many steps; None: the rest of it."""
        h = self._hyperparameters
        # No engine goes on with an answer in the middle of what a grammar holds it to.
        if steps == 1 or not h.partial_rollouts or self._grammar is not None:
            return None
        return math.ceil(h.max_completion_tokens / h.max_staleness)

    def take(self, step: int) -> list[list[Sample]]:
        """The answers of ``step``; waits for them. Raises as ``Collection`` does.

        Those that were sampled ahead stay for a checkpoint until ``release``.
        """
        begun = self._prefetched.get(step)
        collection = begun.collection if begun else self._collection(step)
        if begun is None:
            with self._clock("sampling"):
                options = self._options("rollout", step, self._hyperparameters.temperature)
                collection.sample(self._engine, self._hyperparameters.group_size, options)
        with self._clock("grading"):
            groups = collection.result()
        self._clock.seconds["grading_hidden"] += collection.grading_hidden
        return groups

    def release(self, step: int) -> None:
        """The answers of ``step`` are with whoever learns from them."""
        self._prefetched.pop(step, None)

    def size_of(self, step: int) -> int:
        """How many prompts ``step`` learns from; the last one may have fewer than the others."""
        return len(self._rows_of(step))

    def refill(self, step: int, number: int) -> list[list[Sample]]:
        """Answers to further prompts in refill ``number`` (from 1) of ``step``, by the model as it is."""
        collection = Collection(self._prompts_of_refill(step, number), self.grading, self._engine.together)
        h = self._hyperparameters
        with self._clock("sampling"):
            # Apart from those of every step, whose number is the seed's.
            options = self._options(f"refill {number}", step, h.temperature)
            collection.sample(self._engine, h.group_size, options)
        with self._clock("grading"):
            groups = collection.result()
        self._clock.seconds["grading_hidden"] += collection.grading_hidden
        return groups

    def evaluate(self, evaluated: EvaluationSet) -> list[list[Sample]]:
        """Graded answers of the model as it is."""
        return evaluate(evaluated, evaluated.prompts, self._engine, self._clock)

    def wait_until_sampled(self) -> None:
        """Wait until the engine is free for other weights. Raises what ended the sampling."""
        window, self._window = self._window, None
        if window is not None:
            with self._clock("sampling"):
                window.wait()
            self._clock.seconds["sampling_hidden"] += window.hidden

    def prefetched(self) -> dict[int, list[list[Kept]]]:
        """The answers of the steps to come, for a checkpoint; waits for those that are being graded.

        Without those that cannot be kept: the checkpoint is worth keeping without them, and what went wrong ends the
        run when the answers are needed.
        """
        kept = {}
        for step, begun in sorted(self._prefetched.items()):
            with suppress(Exception), self._clock("grading"):
                kept[step] = begun.kept()
        return kept

    def restore(self, folder: Path, step: int) -> None:
        """Have the answers of the steps after ``step`` be those that were written to ``folder``."""
        for later, kept in prefetched.read_ahead(folder, step, self._engine.version).items():
            self._prefetched[later] = self._begin(later, kept)

    def read(self, folder: Path, step: int) -> list[list[Sample]]:
        """The answers of ``step`` that were written to ``folder``, with those of its refills."""
        prompts, refills = self._prompts_of(step), 0
        while len(prompts) < prefetched.groups_in(folder):
            refills += 1
            prompts += self._prompts_of_refill(step, refills)
        return prefetched.read(folder, prompts, self.grading.reader, self._engine.version)

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.grading.close()

    def _collection(self, step: int) -> Collection:
        return Collection(self._prompts_of(step), self.grading, self._engine.together)

    def _options(self, purpose: str, step: int, temperature: float) -> Sampling:
        seed = seeds.derive(self._seed, purpose, step)
        return Sampling(temperature, self._hyperparameters.max_completion_tokens, seed, grammar=self._grammar)

    def _prompts_of(self, step: int) -> list[Prompt]:
        return [self._prompts[row] for row in self._rows_of(step)]

    def _rows_of(self, step: int) -> list[int]:
        h, number = self._hyperparameters, len(self._prompts)
        total = order.rows_in_all(number, h.batch_size, h.n_steps, h.n_epochs)
        return order.rows_of_step(step, self._seed, number, h.batch_size, total)

    def _prompts_of_refill(self, step: int, refill: int) -> list[Prompt]:
        """As many as a step has. Each refill goes through the rows in an order of its own, from step to step."""
        own = seeds.derive(self._seed, "refill", refill)
        rows = order.rows_of_step(step, own, len(self._prompts), self._hyperparameters.batch_size)
        return [self._prompts[row] for row in rows]


def evaluate(
    evaluated: EvaluationSet, prompts: Sequence[Prompt], engine: RolloutEngine, clock: Clock, first: int = 0
) -> list[list[Sample]]:
    """Graded answers to ``prompts`` of a set, the first of which is that at ``first`` in it."""
    with clock("eval"):
        collection = Collection(prompts, evaluated.grading, engine.together)
        collection.sample(engine, evaluated.samples, replace(evaluated.sampling, first=first))
        with clock("eval_grading"):
            groups = collection.result()
    clock.seconds["eval_grading_hidden"] += collection.grading_hidden
    return groups
