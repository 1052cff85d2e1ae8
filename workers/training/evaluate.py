"""Graded answers to every validation row."""

from collections.abc import Sequence

from service.jobs.spec import ResolvedHyperparameters
from workers.graders import Grader
from workers.rollouts.engine import RolloutEngine, Sampling
from workers.training import seeds
from workers.training.answers import AnswerReader
from workers.training.batch import Sample, grade
from workers.training.clock import Clock
from workers.training.data import Prompt


def evaluate(
    engine: RolloutEngine,
    grader: Grader,
    reader: AnswerReader,
    prompts: Sequence[Prompt],
    hyperparameters: ResolvedHyperparameters,
    *,
    seed: int,
    step: int,
    clock: Clock,
) -> list[list[Sample]]:
    """``eval_samples`` graded answers to each prompt, by the model as it is after ``step`` steps."""
    sampling = Sampling(
        hyperparameters.eval_temperature, hyperparameters.max_completion_tokens, seeds.derive(seed, "evaluation", step)
    )
    with clock("eval"):
        groups = engine.generate([prompt.token_ids for prompt in prompts], hyperparameters.eval_samples, sampling)
        with clock("eval_grading"):
            return grade(grader, reader, prompts, groups)
