"""Rows of tokens: what goes through the model together.

A block is a prompt and continuations of it, one after the other, each of which goes on from the prompt's last position
and sees the prompt and itself. A row holds one block or several:

    tokens     p p p  a a  b b b  q q  c c     prompt p with answers a and b, prompt q with answer c
    positions  0 1 2  3 4  3 4 5  0 1  2 3     in its own sequence, as if nothing stood between
    blocks     0 0 0  0 0  0 0 0  1 1  1 1
    answers    - - -  0 0  1 1 1  - -  2 2     b sees p and b, neither a nor q

Of a continuation all tokens but the last are read: the last is only predicted.

R rows of width W, N predicted tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Continuation:
    """Tokens behind a prompt."""

    token_ids: Sequence[int]
    learned: Sequence[int]
    """Places in ``token_ids`` of those that are predicted, rising."""


@dataclass(frozen=True)
class Block:
    """A prompt, which may be empty, and continuations of it."""

    prompt_ids: Sequence[int]
    continuations: Sequence[Continuation]


@dataclass(frozen=True)
class Layout:
    """Which tokens of rows ``[R, W]`` belong together, where rows hold more than one continuation."""

    position_ids: Tensor
    """``[R, W]`` a token's position in its sequence."""
    blocks: Tensor
    """``[R, W]`` the number of a token's block in its row; -1 is padding."""
    answers: Tensor
    """``[R, W]`` the number of a token's continuation; -1 in prompts."""

    def attention_mask(self) -> Tensor:
        """``[R, 1, W, W]`` bool: a token sees what precedes it in its block, but no other continuation."""
        of_block, of_answer = self.blocks.unsqueeze(-1), self.answers.unsqueeze(-1)
        in_block = self.blocks.unsqueeze(1) == of_block
        in_answer = (self.answers.unsqueeze(1) == of_answer) | (self.answers.unsqueeze(1) < 0)
        return (in_block & in_answer).tril().unsqueeze(1)


class Readable(Protocol):
    """What the model reads of rows, whatever is learned from them."""

    @property
    def input_ids(self) -> Tensor:
        """``[R, W]``, padded on the right."""

    @property
    def positions(self) -> Tensor:
        """``[N]`` flat indices into ``[R, W]`` of the positions that predict the N tokens."""

    @property
    def layout(self) -> Layout | None:
        """What belongs together in rows; None where each is one sequence."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows padded on the right, and the N tokens that are predicted in them, packed."""

    input_ids: Tensor
    """``[R, W]``"""
    positions: Tensor
    """``[N]`` flat indices into ``[R, W]`` of the positions that predict the N tokens."""
    tokens: Tensor
    """``[N]`` the predicted tokens, continuation by continuation."""
    sequence_ids: Tensor
    """``[N]`` the number of the continuation that a token belongs to."""
    layout: Layout | None = None
    """None where every row is one prompt and one continuation."""


def collate(rows: Sequence[Sequence[Block]], device: torch.device) -> Rows:
    """The rows on ``device``, as wide as the widest of them."""
    written = [_write(row) for row in rows]
    width = max(len(row.token_ids) for row in written)
    ids, places, blocks, answers = (torch.full((len(rows), width), fill) for fill in (0, 0, -1, -1))
    positions: list[int] = []
    tokens: list[int] = []
    owners: list[int] = []
    continuations = 0
    for number, row in enumerate(written):
        end = len(row.token_ids)
        ids[number, :end] = torch.tensor(row.token_ids)
        places[number, :end] = torch.tensor(row.positions)
        blocks[number, :end] = torch.tensor(row.blocks)
        of_row = torch.tensor(row.answers)
        answers[number, :end] = torch.where(of_row < 0, of_row, of_row + continuations)
        positions += [number * width + place for place in row.predicting]
        tokens += row.predicted
        owners += [continuations + owner for owner in row.owners]
        continuations += row.continuations
    alone = continuations == len(rows)
    return Rows(
        input_ids=ids.to(device),
        positions=torch.tensor(positions, dtype=torch.long, device=device),
        tokens=torch.tensor(tokens, dtype=torch.long, device=device),
        sequence_ids=torch.tensor(owners, dtype=torch.long, device=device),
        layout=None if alone else Layout(places.to(device), blocks.to(device), answers.to(device)),
    )


def idle(device: torch.device) -> Rows:
    """A token that nothing is learned from, for a rank that has nothing left to do while others have."""
    nothing = torch.zeros(0, dtype=torch.long, device=device)
    return Rows(input_ids=nothing.new_zeros(1, 1), positions=nothing, tokens=nothing, sequence_ids=nothing)


@dataclass(frozen=True)
class _Written:
    """One row, token by token, and what is predicted in it."""

    token_ids: list[int]
    positions: list[int]
    blocks: list[int]
    answers: list[int]
    predicting: list[int]
    predicted: list[int]
    owners: list[int]
    continuations: int


def _write(row: Sequence[Block]) -> _Written:
    written = _Written([], [], [], [], [], [], [], sum(len(block.continuations) for block in row))
    numbers: Iterator[int] = iter(range(written.continuations))
    for of_block, block in enumerate(row):
        prompt, before = len(block.prompt_ids), len(written.token_ids)
        written.token_ids.extend(block.prompt_ids)
        written.positions.extend(range(prompt))
        written.answers.extend([-1] * prompt)
        for continuation in block.continuations:
            number, start = next(numbers), len(written.token_ids)
            read = len(continuation.token_ids) - 1
            written.token_ids.extend(continuation.token_ids[:read])
            written.positions.extend(range(prompt, prompt + read))
            written.answers.extend([number] * read)
            # The first token of a continuation is predicted from the end of the prompt.
            written.predicting.extend(
                start + place - 1 if place else before + prompt - 1 for place in continuation.learned
            )
            written.predicted.extend(continuation.token_ids[place] for place in continuation.learned)
            written.owners.extend([number] * len(continuation.learned))
        written.blocks.extend([of_block] * (len(written.token_ids) - before))
    return written
