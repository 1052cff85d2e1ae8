"""A job's graded answers, from asking for them to having them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from service.jobs.spec import RunSpec
from workers.data.prompts import Prompt
from workers.modeling import seeds
from workers.rollouts.engine import RolloutEngine, Sampling
from workers.rollouts.grammar import Grammar
from workers.training.data import order
from workers.training.data.batch import Sample
from workers.training.reporting.clock import Clock
from workers.training.sampling import prefetched
from workers.training.sampling.collection import Collection, Grading
from workers.training.sampling.sets import EvaluationSet


class Rollouts:
    """A job's graded answers: those that steps learn from, ``group_size`` to each prompt, and those of evaluations.

    The answers of one step at most are prefetched: sampled and graded while the step before is trained, or brought
    along by a checkpoint. Any other step's are sampled when they are asked for.
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
        device: torch.device,
    ) -> None:
        self.grading = grading
        self._seed, self._hyperparameters, self._engine = spec.job.seed, hyperparameters, engine
        self._prompts, self._grammar, self._clock, self._device = prompts, grammar, clock, device
        self._sampling = ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self._prefetched: Collection | None = None
        self._restored: list[list[Sample]] | None = None

    def prefetch(self, step: int) -> None:
        """Sample the answers of ``step`` from now on, in another thread."""
        h = self._hyperparameters
        options = self._options("rollout", step, h.temperature)
        self._prefetched = self._collection(step)
        self._prefetched.sample_in(self._sampling, self._engine, h.group_size, options, self._device)

    def take(self, step: int) -> list[list[Sample]]:
        """The answers of ``step``; waits for them. Raises as ``Collection`` does."""
        if self._restored is not None:
            groups, self._restored = self._restored, None
            return groups
        collection, self._prefetched = self._prefetched, None
        with self._clock("sampling"):
            if collection is None:
                collection = self._collection(step)
                options = self._options("rollout", step, self._hyperparameters.temperature)
                collection.sample(self._engine, self._hyperparameters.group_size, options)
            collection.wait_until_sampled()
        with self._clock("grading"):
            groups = collection.result()
        self._clock.seconds["sampling_hidden"] += collection.hidden("sampling")
        self._clock.seconds["grading_hidden"] += collection.hidden("grading")
        return groups

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
        self._clock.seconds["grading_hidden"] += collection.hidden("grading")
        return groups

    def evaluate(self, evaluated: EvaluationSet) -> list[list[Sample]]:
        """Graded answers of the model as it is."""
        return evaluate(evaluated, evaluated.prompts, self._engine, self._clock)

    def wait_until_sampled(self) -> None:
        """Wait until the engine is free for other weights."""
        if self._prefetched is not None:
            with self._clock("sampling"):
                self._prefetched.wait_until_sampled()

    def prefetched(self) -> list[list[Sample]] | None:
        """The prefetched answers, for a checkpoint; waits for them. None where there are none that can be kept."""
        if self._prefetched is None:
            return None
        # The checkpoint is worth keeping without them; what went wrong ends the run when the answers are needed.
        with suppress(Exception), self._clock("grading"):
            return self._prefetched.result()
        return None

    def restore(self, folder: Path, step: int) -> None:
        """Have the answers of ``step`` be those that were written to ``folder``."""
        self._restored = self.read(folder, step)

    def read(self, folder: Path, step: int) -> list[list[Sample]]:
        """The answers of ``step`` that were written to ``folder``, with those of its refills."""
        prompts, refills = self._prompts_of(step), 0
        while len(prompts) < prefetched.groups_in(folder):
            refills += 1
            prompts += self._prompts_of_refill(step, refills)
        return prefetched.read(folder, prompts, self.grading.reader, self._engine.version)

    def close(self) -> None:
        """Begin nothing more."""
        self._sampling.shutdown(wait=False, cancel_futures=True)
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
    clock.seconds["eval_grading_hidden"] += collection.hidden("grading")
    return groups
