"""From one loss per token to one number: the four aggregation modes, each divided by a count over the whole batch.

M tokens (those the mask selects), flat; `segments` says which sequence each belongs to.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from troll import checks

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


@dataclass(frozen=True)
class Mode:
    """One way from a loss per token to one number: a sum, and the count over the whole batch that divides it."""

    per: Literal["token", "sequence", "position"]
    """What is counted; positions are those of all sequences padded to one length."""
    sums: Literal["tokens", "sequence means"] = "tokens"


AGGREGATIONS: dict[str, Mode] = {
    "token-mean": Mode(per="token"),
    "seq-mean-token-mean": Mode(per="sequence", sums="sequence means"),
    "seq-mean-token-sum": Mode(per="sequence"),
    "seq-mean-token-sum-norm": Mode(per="position"),
}


@dataclass(frozen=True)
class Segments:
    """Which sequence each of M selected tokens belongs to."""

    index: Tensor
    """`[M]` int64 in `[0, number)`."""
    number: int
    """How many sequences have at least one selected token."""
    length: int | None
    """The padded length T of `[B, T]` batches; None for packed tokens."""

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values` `[M]` over each sequence, `[number]`."""
        counts = torch.bincount(self.index, minlength=self.number)
        return values.new_zeros(self.number).index_add(0, self.index, values) / counts


def segments_of(rows: Tensor, shape: torch.Size, sequence_ids: Tensor | None) -> Segments:
    """Sequences of the selected flat positions `rows` of `[B, T]` batches, or of packed tokens with `sequence_ids`.

    Without `sequence_ids` a `[B, T]` batch has one sequence per row of the batch; packed tokens `[N]` are taken as one
    sequence each, which only the token-level modes can use (`need_sequences`).
    """
    if sequence_ids is not None:
        checks.integer("sequence_ids", sequence_ids)
        checks.same_shape("sequence_ids", sequence_ids, "tokens", shape)
        names = sequence_ids.reshape(-1)[rows]
    else:
        names = rows if len(shape) < 2 else rows // shape[-1]
    unique, index = torch.unique(names, return_inverse=True)
    return Segments(index, len(unique), shape[-1] if len(shape) > 1 else None)


def need_sequences(shape: torch.Size, sequence_ids: Tensor | None, reason: str) -> None:
    """Refuses packed tokens without `sequence_ids` where sequences matter."""
    if sequence_ids is None and len(shape) < 2:
        raise ValueError(f"sequence_ids: {reason} needs sequences: pass [B, T] shapes, or sequence_ids with [N] tokens")


def aggregate(
    values: Tensor, segments: Segments, mode: Aggregation, normalizer: float | Tensor | None = None
) -> Tensor:
    """One scalar from a loss per token.

    | mode                      | sum of                   | divided by, if `normalizer` is None |
    |---------------------------|--------------------------|-------------------------------------|
    | `token-mean`              | tokens                   | tokens                              |
    | `seq-mean-token-mean`     | means over each sequence | sequences                           |
    | `seq-mean-token-sum`      | tokens                   | sequences                           |
    | `seq-mean-token-sum-norm` | tokens                   | sequences x padded length           |

    Args:
        values: `[M]` losses of the selected tokens.
        normalizer: the divisor for the whole batch. With the same one given to every part (micro-batches, data
            parallel ranks), the parts' losses and gradients add up to those of one large batch. A sequence must then
            lie in one part.
    """
    checks.one_of("aggregation", mode, get_args(Aggregation))
    total = segments.mean(values).sum() if AGGREGATIONS[mode].sums == "sequence means" else values.sum()
    return total / _divisor(len(values), segments, mode, normalizer)


def _divisor(tokens: int, segments: Segments, mode: str, normalizer: float | Tensor | None) -> float | Tensor:
    if normalizer is not None:
        if float(normalizer) <= 0:
            raise ValueError(f"normalizer: needs a positive number, got {float(normalizer)}")
        return normalizer
    if segments.length is None and AGGREGATIONS[mode].per == "position":
        raise ValueError(f"normalizer: {mode} needs one for packed tokens (sequences x longest length)")
    return max(divisor(mode, tokens, segments.number, segments.length or 0), 1)


def divisor(mode: str, tokens: int, sequences: int, length: int) -> int:
    """What a batch of so many tokens in sequences padded to `length` is divided by."""
    return {"token": tokens, "sequence": sequences, "position": sequences * length}[AGGREGATIONS[mode].per]
