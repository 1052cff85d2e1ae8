"""Samples in rows of tokens: a prompt is read once for all its answers, and rows are filled with what fits.

A prompt and answers to it are a block (drawn in ``workers.modeling.rows``), and blocks of a few hundred tokens share
rows. Longer answers have a row each, where attention is plainly causal: a row's attention costs the square of its
length, whatever its mask leaves out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from workers.modeling import rows
from workers.modeling.rows import Block, Continuation
from workers.training.data.batch import Allowed, MicroBatch, TrainingSample

SHORT = 512
"""Rows up to this many tokens are filled: their attention costs little beside the rest of the model."""


class HasTokens(Protocol):
    @property
    def tokens(self) -> int:
        """How many tokens are read."""


Part = TypeVar("Part", bound=HasTokens)


@dataclass
class Answers:
    """Answers to one prompt that are read together."""

    samples: list[TrainingSample]
    tokens: int
    """Tokens that are read: the prompt's once, and of each answer all but the last, which is only predicted."""
    apart: int
    """Sum of the squared lengths of the samples, if each had a row of its own."""

    def takes(self, sample: TrainingSample, budget: int) -> bool:
        """Whether another answer belongs here: attention over the longer row must not cost more than it saves."""
        longer = self.tokens + sample.own_tokens
        return longer <= min(SHORT, budget) or (longer <= budget and longer**2 <= self.apart + sample.tokens**2)

    def add(self, sample: TrainingSample) -> None:
        self.samples.append(sample)
        self.tokens += sample.own_tokens
        self.apart += sample.tokens**2

    def block(self) -> Block:
        """The prompt and its answers as they are laid out, to learn every token of the answers."""
        continuations = []
        for sample in self.samples:
            ids = sample.rollout.token_ids
            continuations.append(Continuation(ids, range(len(ids))))
        return Block(self.samples[0].prompt_ids, continuations)


def micro_batches(
    samples: Sequence[TrainingSample],
    budget: int,
    device: torch.device,
    longest_shared: int = 0,
    allowed: Callable[[Sequence[TrainingSample]], Allowed] | None = None,
) -> list[MicroBatch]:
    """The samples in micro-batches of at most ``budget`` tokens, padding included (at least one sample each).

    Args:
        longest_shared: the longest sample that the model can read in one row with others; 0 gives each its own.
        allowed: what a grammar allowed in the place of the response tokens of some samples, one after the other.
    """
    share = max((sample.tokens for sample in samples), default=0) <= longest_shared
    blocks = list(_blocks(samples, budget if share else 0))
    return [_micro_batch(packed, device, allowed) for packed in filled(blocks, budget, share=share)]


def idle(device: torch.device, allowed: Callable[[Sequence[TrainingSample]], Allowed] | None = None) -> MicroBatch:
    """A token that nothing is learned from, for a rank that has nothing left to do while others have."""
    nothing = torch.zeros(0, device=device)
    # All ranks take the same way through the model.
    masks = allowed and allowed([])
    return MicroBatch(
        **vars(rows.idle(device)), advantages=nothing, sampler_log_probs=nothing, samples=[], allowed=masks
    )


def filled(blocks: Sequence[Part], budget: int, *, share: bool) -> list[list[list[Part]]]:
    """Micro-batches of rows of blocks: at most ``budget`` tokens each, padding included, or a single block.

    Where they ``share``, rows of short blocks are filled with what fits.
    """
    parts: list[list[list[Part]]] = []
    for block in sorted(blocks, key=lambda block: block.tokens, reverse=True):
        # Sorted by length, so the first block of a part is as wide as the part.
        width = parts[-1][0][0].tokens if parts else 0
        row = _row_with_room(parts[-1], block, width) if parts and share and width <= SHORT else None
        if row is not None:
            row.append(block)
        elif parts and (len(parts[-1]) + 1) * width <= budget:
            parts[-1].append([block])
        else:
            parts.append([[block]])
    return parts


def _blocks(samples: Sequence[TrainingSample], budget: int) -> Iterator[Answers]:
    groups: dict[tuple[int, ...], list[TrainingSample]] = {}
    for sample in samples:
        groups.setdefault(tuple(sample.prompt_ids), []).append(sample)
    for group in groups.values():
        block = None
        for sample in sorted(group, key=lambda sample: sample.tokens):
            if block is not None and block.takes(sample, budget):
                block.add(sample)
                continue
            if block is not None:
                yield block
            block = Answers([sample], sample.tokens, sample.tokens**2)
        if block is not None:
            yield block


def _row_with_room(packed: Sequence[list[Part]], block: Part, width: int) -> list[Part] | None:
    """The first row that the block fits into."""
    return next((row for row in packed if sum(other.tokens for other in row) + block.tokens <= width), None)


def _micro_batch(
    packed: Sequence[Sequence[Answers]],
    device: torch.device,
    allowed: Callable[[Sequence[TrainingSample]], Allowed] | None,
) -> MicroBatch:
    together = rows.collate([[answers.block() for answers in row] for row in packed], device)
    samples = [sample for row in packed for answers in row for sample in answers.samples]
    advantages = torch.tensor([sample.advantage for sample in samples], dtype=torch.float32, device=device)
    log_probs = torch.tensor([value for sample in samples for value in sample.rollout.log_probs], dtype=torch.float32)
    return MicroBatch(
        **vars(together),
        advantages=advantages[together.sequence_ids],
        sampler_log_probs=log_probs.to(device),
        samples=samples,
        allowed=allowed and allowed(samples),
    )
