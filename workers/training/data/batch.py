"""From rollouts to what an update works on: graded groups, their advantages, mini-batches of them.

B answers, N response tokens of a micro-batch, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from troll import advantages, aggregation
from workers.answers import Answer
from workers.data.prompts import Prompt
from workers.graders import Grade
from workers.modeling.rows import Rows
from workers.rollouts.engine import Rollout
from workers.rollouts.grammar import forbid


@dataclass(frozen=True)
class Sample:
    """One answer and what its grader said of it."""

    prompt: Prompt
    rollout: Rollout
    answer: Answer
    grade: Grade
    least: float = 0.0
    """What it earns where it cannot be graded through its own fault; ``workers.training.sampling.rewards`` finds it."""

    @property
    def reward(self) -> float | None:
        """None where not the answer but what grades it failed."""
        return self.least if self.grade.earns_least else self.grade.reward


@dataclass(frozen=True)
class TrainingSample:
    """A sample with a reward, ready to be trained on."""

    prompt_ids: list[int]
    rollout: Rollout
    advantage: float
    """0 until a critic's values are known, where there is one."""
    reward: float = 0.0
    """Less what it loses for its length."""
    number: int = 0
    """Which of the step's samples it is."""

    @property
    def tokens(self) -> int:
        """Tokens the model reads: the last one sampled is only predicted."""
        return len(self.prompt_ids) + self.own_tokens

    @property
    def own_tokens(self) -> int:
        """Those of them that are the answer's."""
        return len(self.rollout.token_ids) - 1


@dataclass(frozen=True)
class Allowed:
    """For each of N response tokens, which tokens a grammar allowed in its place. U masks that differ, W words each."""

    masks: Tensor
    """``[U, W]`` int32, on the CPU; a bit is a token."""
    rows: Tensor
    """``[N]`` which of the masks is a token's."""

    @classmethod
    def of(cls, masks: Tensor) -> "Allowed":
        """Those of masks ``[N, W]``, of which many are the same."""
        distinct, rows = masks.unique(dim=0, return_inverse=True)
        return cls(distinct, rows)

    def forbid(self, logits: Tensor) -> Tensor:
        """``logits`` ``[N, V]`` with -inf for what was not allowed; differentiable."""
        return forbid(logits, self.masks[self.rows])


@dataclass(frozen=True, kw_only=True)
class MicroBatch(Rows):
    """B answers that go through the model together, and their N response tokens, answer by answer."""

    advantages: Tensor
    """``[N]``"""
    sampler_log_probs: Tensor
    """``[N]`` what the rollout engine gave the tokens."""
    samples: list[TrainingSample]
    """The B answers."""
    allowed: Allowed | None = None
    """What might have been said in the place of each response token, where answers are held to a grammar."""
    reference_log_probs: Tensor | None = None
    """``[N]`` what the reference gave the tokens, where there is one."""
    kl_costs: Tensor | None = None
    """``[N]`` float64, what each token takes from its answer's reward, where the KL to the reference counts there."""
    values: Tensor | None = None
    """``[N]`` the critic's before the step's updates, where there is one."""
    returns: Tensor | None = None
    """``[N]`` what they should have been."""

    @property
    def rollouts(self) -> list[Rollout]:
        return [sample.rollout for sample in self.samples]


def trainable(
    groups: Sequence[Sequence[Sample]], hyperparameters: ResolvedHyperparameters
) -> list[list[TrainingSample]]:
    """Each group's samples with their advantages. Samples without a reward are no part of their group."""
    h = hyperparameters
    graded = [
        (number, sample, reward)
        for number, group in enumerate(groups)
        for sample in group
        if (reward := earned(sample, h)) is not None
    ]
    rollouts = [sample.rollout for _, sample, _ in graded]
    values = estimate([reward for _, _, reward in graded], [number for number, _, _ in graded], rollouts, h)
    trained: list[list[TrainingSample]] = [[] for _ in groups]
    for place, ((number, sample, reward), advantage) in enumerate(zip(graded, values, strict=True)):
        if not (h.mask_truncated and sample.rollout.finish_reason == "length"):
            trained[number].append(TrainingSample(sample.prompt.token_ids, sample.rollout, advantage, reward, place))
    return trained


def estimate(
    rewards: Sequence[float],
    group_ids: Sequence[int],
    rollouts: Sequence[Rollout],
    hyperparameters: ResolvedHyperparameters,
) -> list[float]:
    """The advantage of each of a step's answers, by what it earned and which group it is of; 0 with a critic."""
    if hyperparameters.advantage == "gae":
        return [0.0] * len(rewards)
    scored = advantages.Scored(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(group_ids, dtype=torch.long),
        torch.tensor([len(rollout.token_ids) for rollout in rollouts], dtype=torch.long),
    )
    values: list[float] = advantages.ESTIMATORS[hyperparameters.advantage](scored).tolist()
    return values


def earned(sample: Sample, hyperparameters: ResolvedHyperparameters) -> float | None:
    """The reward of a sample less what it loses for its length; None where it has none."""
    return None if sample.reward is None else sample.reward - overlong(len(sample.rollout.token_ids), hyperparameters)


def overlong(length: int, hyperparameters: ResolvedHyperparameters) -> float:
    """What an answer of so many tokens loses of its reward for its length (DAPO, arXiv 2503.14476, eq. 13)."""
    h = hyperparameters
    if not h.overlong_buffer:
        return 0.0
    beyond = length - (h.max_completion_tokens - h.overlong_buffer)
    return h.overlong_penalty * min(1.0, max(0.0, beyond / h.overlong_buffer))


def mini_batches(groups: Sequence[Sequence[TrainingSample]], number: int) -> list[list[TrainingSample]]:
    """The groups in ``number`` parts of nearly equal size; a prompt's samples stay together."""
    bounds = [len(groups) * part // number for part in range(number + 1)]
    return [[sample for group in groups[start:end] for sample in group] for start, end in pairwise(bounds)]


def normalizer(samples: Sequence[TrainingSample], hyperparameters: ResolvedHyperparameters) -> float:
    """What the summed loss of a mini-batch is divided by, whatever micro-batches or processes it is split into."""
    tokens = sum(len(sample.rollout.token_ids) for sample in samples)
    return aggregation.divisor(hyperparameters.aggregation, tokens, len(samples), hyperparameters.max_completion_tokens)
