"""From rollouts to what an update works on: graded groups, their advantages, and token-budgeted micro-batches.

G samples of a group, B sequences, T padded length, N response tokens of a micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from service.jobs.spec import ResolvedHyperparameters
from troll import advantages
from workers.graders import Grade
from workers.rollouts.engine import Rollout
from workers.training.answers import Answer
from workers.training.data import Prompt

ADVANTAGES = {"grpo": advantages.grpo, "dr_grpo": advantages.dr_grpo, "rloo": advantages.rloo}


@dataclass(frozen=True)
class Sample:
    """One answer and what its grader said of it."""

    prompt: Prompt
    rollout: Rollout
    answer: Answer
    grade: Grade

    @property
    def reward(self) -> float | None:
        """An answer that cannot be graded through its own fault earns 0; a grader that failed says nothing, None."""
        at_fault = self.grade.reward is None and self.grade.sample_at_fault
        return 0.0 if at_fault else self.grade.reward


@dataclass(frozen=True)
class Trained:
    """A sample with a reward, ready to be trained on."""

    prompt_ids: list[int]
    rollout: Rollout
    advantage: float

    @property
    def tokens(self) -> int:
        """Tokens the model reads: the last one sampled is only predicted."""
        return len(self.prompt_ids) + len(self.rollout.token_ids) - 1


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that go through the model together, padded on the right, and their N response tokens, packed."""

    input_ids: Tensor
    """``[B, T]``"""
    positions: Tensor
    """``[N]`` flat indices into ``[B, T]`` of the positions that predict the response tokens."""
    tokens: Tensor
    """``[N]`` the response tokens."""
    advantages: Tensor
    """``[N]``"""
    sequence_ids: Tensor
    """``[N]`` which of the B sequences a token belongs to."""
    sampler_log_probs: Tensor
    """``[N]`` what the rollout engine gave the tokens."""
    rollouts: list[Rollout]
    """The B answers, in the order of their rows."""


def trainable(groups: Sequence[Sequence[Sample]], name: str) -> list[list[Trained]]:
    """Each group's samples with their advantages. Samples without a reward are no part of their group."""
    graded = [
        (number, sample, sample.reward)
        for number, group in enumerate(groups)
        for sample in group
        if sample.reward is not None
    ]
    rewards = torch.tensor([reward for _, _, reward in graded], dtype=torch.float64)
    values = ADVANTAGES[name](rewards, torch.tensor([number for number, _, _ in graded], dtype=torch.long))
    trained: list[list[Trained]] = [[] for _ in groups]
    for (number, sample, _), advantage in zip(graded, values.tolist(), strict=True):
        trained[number].append(Trained(sample.prompt.token_ids, sample.rollout, advantage))
    return trained


def mini_batches(groups: Sequence[Sequence[Trained]], number: int) -> list[list[Trained]]:
    """The groups in ``number`` parts of nearly equal size; a prompt's samples stay together."""
    bounds = [len(groups) * part // number for part in range(number + 1)]
    return [[sample for group in groups[start:end] for sample in group] for start, end in pairwise(bounds)]


def micro_batches(samples: Sequence[Trained], budget: int, device: torch.device) -> list[MicroBatch]:
    """The samples, by length, in micro-batches of at most ``budget`` padded tokens (at least one sample each)."""
    parts: list[list[Trained]] = []
    for sample in sorted(samples, key=lambda sample: sample.tokens):
        # Sorted by length, so the newest sample is the longest of its part.
        if parts and (len(parts[-1]) + 1) * sample.tokens <= budget:
            parts[-1].append(sample)
        else:
            parts.append([sample])
    return [_collate(part, device) for part in parts]


def _collate(samples: list[Trained], device: torch.device) -> MicroBatch:
    width = max(sample.tokens for sample in samples)
    input_ids = torch.zeros(len(samples), width, dtype=torch.long)
    positions: list[int] = []
    tokens: list[int] = []
    spread: list[float] = []
    log_probs: list[float] = []
    owners: list[int] = []
    for row, sample in enumerate(samples):
        ids = (sample.prompt_ids + sample.rollout.token_ids)[: sample.tokens]
        input_ids[row, : sample.tokens] = torch.tensor(ids)
        first, count = row * width + len(sample.prompt_ids) - 1, len(sample.rollout.token_ids)
        positions += range(first, first + count)
        tokens += sample.rollout.token_ids
        spread += [sample.advantage] * count
        log_probs += sample.rollout.log_probs
        owners += [row] * count
    return MicroBatch(
        input_ids.to(device),
        torch.tensor(positions, device=device),
        torch.tensor(tokens, device=device),
        torch.tensor(spread, dtype=torch.float32, device=device),
        torch.tensor(owners, device=device),
        torch.tensor(log_probs, dtype=torch.float32, device=device),
        [sample.rollout for sample in samples],
    )


def normalizer(samples: Sequence[Trained], hyperparameters: ResolvedHyperparameters) -> float:
    """What the summed loss of a mini-batch is divided by, whatever micro-batches or processes it is split into."""
    match hyperparameters.aggregation:
        case "token-mean":
            return sum(len(sample.rollout.token_ids) for sample in samples)
        case "seq-mean-token-sum-norm":
            return len(samples) * hyperparameters.max_completion_tokens
        case _:
            return len(samples)
