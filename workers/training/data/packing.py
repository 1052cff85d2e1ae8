"""Samples in rows of tokens: a prompt is read once for all its answers, and rows are filled with what fits.

A block is a prompt and answers to it, one after the other; every answer goes on from the prompt's last position and
sees the prompt and itself. Blocks of a few hundred tokens share rows. Longer answers have a row each, where attention
is plainly causal: a row's attention costs the square of its length, whatever its mask leaves out.

R rows of width W, B answers, N response tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from workers.training.data.batch import Allowed, Layout, MicroBatch, TrainingSample

SHORT = 512
"""Rows up to this many tokens are filled: their attention costs little beside the rest of the model."""


class HasTokens(Protocol):
    @property
    def tokens(self) -> int:
        """How many tokens are read."""


Part = TypeVar("Part", bound=HasTokens)


@dataclass
class Block:
    """A prompt and answers to it."""

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
    return [_collate(rows, device, allowed) for rows in filled(blocks, budget, share=share)]


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


def _blocks(samples: Sequence[TrainingSample], budget: int) -> Iterator[Block]:
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
            block = Block([sample], sample.tokens, sample.tokens**2)
        if block is not None:
            yield block


def _row_with_room(rows: Sequence[list[Part]], block: Part, width: int) -> list[Part] | None:
    """The first row that the block fits into."""
    return next((row for row in rows if sum(other.tokens for other in row) + block.tokens <= width), None)


def _collate(
    rows: Sequence[Sequence[Block]],
    device: torch.device,
    allowed: Callable[[Sequence[TrainingSample]], Allowed] | None,
) -> MicroBatch:
    width = max(sum(block.tokens for block in row) for row in rows)
    ids, places, blocks, answers = (torch.full((len(rows), width), fill) for fill in (0, 0, -1, -1))
    positions: list[int] = []
    samples: list[TrainingSample] = []
    for number, row in enumerate(rows):
        tokens, steps, of_block, of_answer = _read(row, first_answer=len(samples))
        for tensor, values in ((ids, tokens), (places, steps), (blocks, of_block), (answers, of_answer)):
            tensor[number, : len(values)] = torch.tensor(values)
        positions += _predicting(row, number * width)
        samples += [sample for block in row for sample in block.samples]
    alone = len(samples) == len(rows)
    counts = torch.tensor([len(sample.rollout.token_ids) for sample in samples])
    owners = torch.arange(len(samples)).repeat_interleave(counts)
    advantages = torch.tensor([sample.advantage for sample in samples], dtype=torch.float32)
    log_probs = torch.tensor([value for sample in samples for value in sample.rollout.log_probs], dtype=torch.float32)
    return MicroBatch(
        ids.to(device),
        torch.tensor(positions, device=device),
        torch.tensor([token for sample in samples for token in sample.rollout.token_ids], device=device),
        advantages[owners].to(device),
        owners.to(device),
        log_probs.to(device),
        [sample.rollout for sample in samples],
        None if alone else Layout(places.to(device), blocks.to(device), answers.to(device)),
        allowed and allowed(samples),
    )


def _read(row: Sequence[Block], first_answer: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Of each token of a row its id, its position in its sample, the number of its block, and that of its answer."""
    ids: list[int] = []
    places: list[int] = []
    blocks: list[int] = []
    answers: list[int] = []
    for number, block in enumerate(row):
        prompt = block.samples[0].prompt_ids
        ids += prompt
        places += range(len(prompt))
        blocks += [number] * block.tokens
        answers += [-1] * len(prompt)
        for sample in block.samples:
            ids += sample.rollout.token_ids[:-1]
            places += range(len(prompt), sample.tokens)
            answers += [first_answer] * sample.own_tokens
            first_answer += 1
    return ids, places, blocks, answers


def _predicting(row: Sequence[Block], start: int) -> Iterator[int]:
    """Where in the row, which begins at ``start``, stand the tokens that response tokens follow on."""
    for block in row:
        last = start + len(block.samples[0].prompt_ids) - 1
        start = last + 1
        for sample in block.samples:
            yield last
            yield from range(start, start + sample.own_tokens)
            start += sample.own_tokens
