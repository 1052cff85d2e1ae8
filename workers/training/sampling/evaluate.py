"""Graded answers to every validation row."""

from collections.abc import Sequence

from service.jobs.spec import ResolvedHyperparameters
from workers.data.prompts import Prompt
from workers.modeling import seeds
from workers.rollouts.engine import RolloutEngine, Sampling
from workers.rollouts.grammar import Grammar
from workers.training.data.batch import Sample
from workers.training.reporting.clock import Clock
from workers.training.sampling.collection import Collection, Grading


def evaluate(
    engine: RolloutEngine,
    grading: Grading,
    prompts: Sequence[Prompt],
    hyperparameters: ResolvedHyperparameters,
    *,
    seed: int,
    step: int,
    clock: Clock,
    grammar: Grammar | None = None,
) -> list[list[Sample]]:
    """``eval_samples`` graded answers to each prompt, by the model as it is after ``step`` steps.

    Answers are held to ``grammar``, if there is one.
    """
    sampling = Sampling(
        hyperparameters.eval_temperature,
        hyperparameters.max_completion_tokens,
        seeds.derive(seed, "evaluation", step),
        grammar=grammar,
    )
    with clock("eval"):
        collection = Collection(prompts, grading, engine.together)
        collection.sample(engine, hyperparameters.eval_samples, sampling)
        with clock("eval_grading"):
            groups = collection.result()
    clock.seconds["eval_grading_hidden"] += collection.hidden("grading")
    return groups
