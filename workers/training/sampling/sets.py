"""What a job is evaluated on: its validation file, and its validation sets beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.graders.schemas import Grader
from service.graders.settings import GraderSettings
from service.jobs.methods.reinforcement import Reinforcement
from service.jobs.validation import ValidationSet
from workers import graders
from workers.answers import AnswerReader
from workers.data.prompts import Prompt
from workers.modeling import seeds
from workers.rollouts.engine import Rollout, Sampling
from workers.rollouts.grammar import Grammar
from workers.training.data.batch import Sample
from workers.training.processes.channel import Channel
from workers.training.sampling.collection import Grading
from workers.training.sampling.patience import Patient
from workers.training.sampling.rewards import Rewards


@dataclass(frozen=True)
class EvaluationSet:
    """Prompts, how they are answered and how answers are graded: the same at every evaluation.

    With the same random numbers every time, evaluations differ by what was learned and less by luck.
    """

    name: str
    """Empty for the validation file."""
    grader: Grader
    prompts: Sequence[Prompt]
    grading: Grading
    samples: int
    """Answers to each prompt."""
    sampling: Sampling

    def settle(self, groups: Sequence[Sequence[Sample]], channel: Channel, *, first: bool) -> list[list[Sample]]:
        """The samples with what those earn that are at fault, by what was given in this evaluation alone.

        Raises ``RunError`` where it is the ``first`` evaluation, and the grader's code fails on most and never gives a
        reward.
        """
        # Of a grader that tells no least reward 0 is the least or more than that.
        return Rewards(self.grader, channel, given=None if first else 0.0).settle(groups)


def without_tokens(groups: Sequence[Sequence[Sample]]) -> list[list[Sample]]:
    """Graded samples of which nothing is kept of their tokens but how many there are.

    An evaluation asks no more of them, and has them all in memory at a time: a token takes 70 bytes otherwise, and the
    most likely ones beside it half a kilobyte.
    """
    return [[replace(sample, rollout=_counted(sample.rollout)) for sample in group] for group in groups]


def _counted(rollout: Rollout) -> Rollout:
    return replace(rollout, token_ids=[0] * len(rollout.token_ids), log_probs=[], top=None)


def grading_by(grader: Grader, settings: GraderSettings, reader: AnswerReader, channel: Channel) -> Grading:
    """What grades by ``grader``. Raises as its kind does."""
    return Grading(Patient(graders.build(grader, settings), channel), reader, graders.batch_size(grader))


def of_validation_file(
    seed: int, method: Reinforcement, prompts: Sequence[Prompt], grading: Grading, grammar: Grammar | None
) -> EvaluationSet:
    h = method.hyperparameters
    own = seeds.derive(seed, "evaluation", 0)
    sampling = Sampling(h.eval_temperature, h.max_completion_tokens, own, grammar=grammar, top=False)
    return EvaluationSet("", method.grader, prompts, grading, h.eval_samples, sampling)


def of_validation_set(
    seed: int,
    declared: ValidationSet,
    grader: Grader,
    prompts: Sequence[Prompt],
    grading: Grading,
    grammar: Grammar | None,
) -> EvaluationSet:
    # By its name, so that a set's numbers do not depend on what else is evaluated.
    own = seeds.derive(seed, f"evaluation of {declared.name}", 0)
    sampling = Sampling(
        declared.temperature,
        declared.max_completion_tokens,
        own,
        grammar=grammar,
        top_p=declared.top_p,
        top=False,
    )
    return EvaluationSet(declared.name, grader, prompts, grading, declared.samples_per_row, sampling)
