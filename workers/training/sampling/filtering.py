"""Leaving out what nothing can be learned from: prompts whose answers all earned the same (DAPO, arXiv 2503.14476).

What is left out is replaced by further prompts, sampled in rounds from the model as it is. Which they are follows from
the job's seed and the step, so that a resumed run samples the same.
"""

from collections.abc import Callable, Sequence

from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from workers.training.data import batch
from workers.training.data.batch import Sample

Groups = list[list[Sample]]


def differs(group: Sequence[Sample], hyperparameters: ResolvedHyperparameters) -> bool:
    """Whether two answers to a prompt earned differently, what they lose for their length included."""
    return len({batch.earned(sample, hyperparameters) for sample in group} - {None}) > 1


def refilled(groups: Groups, hyperparameters: ResolvedHyperparameters, refill: Callable[[int], Groups]) -> Groups:
    """``groups`` and those of as many refills as it takes to have as many that differ, ``max_refills`` at most."""
    h, sampled = hyperparameters, list(groups)
    for number in range(1, h.max_refills + 1):
        if sum(differs(group, h) for group in sampled) >= len(groups):
            break
        sampled += refill(number)
    return sampled


def kept(sampled: Groups, most: int, hyperparameters: ResolvedHyperparameters) -> Groups:
    """The first ``most`` of ``sampled`` that differ; where none does, its first ``most``, which teach nothing."""
    differing = [group for group in sampled if differs(group, hyperparameters)]
    return (differing or sampled)[:most]


def numbers(sampled: Groups, of_step: int, hyperparameters: ResolvedHyperparameters) -> dict[str, float]:
    """For the metrics: the share of the sampled groups that do not differ, and how many refills there were."""
    same = sum(not differs(group, hyperparameters) for group in sampled)
    refills = -(-(len(sampled) - of_step) // hyperparameters.batch_size)
    return {"filtered_share": same / len(sampled), "refills": float(refills)}
