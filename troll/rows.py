"""Sparse rows of log-probabilities, as a value: what of the old policy is kept until the update.

A row over a vocabulary of V tokens keeps K slots. Slot 0 always holds the sampled token, the following slots the most
likely other tokens in falling order; a slot that is not needed has id -1. Every token left out has one and the same
probability, the tail, so that a row still sums to 1 over the whole vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

Tail = Literal["constant", "mass"]
"""What the tokens left out get: one small probability each, or the mass that was left out, spread evenly."""


@dataclass(frozen=True)
class SparseLogProbs:
    """Sparse log-probabilities of rows with leading shape `[...]`; indexing works on the leading shape."""

    ids: Tensor
    """`[..., K]` int32 token ids; slot 0 is the sampled token, -1 marks an empty slot."""
    log_probs: Tensor
    """`[..., K]` log-probabilities, normalised together with the tail; -inf in empty slots."""
    tail_log_prob: Tensor
    """`[...]` log-probability of *each* token left out."""
    kept_mass: Tensor
    """`[...]` mass of the kept tokens before normalisation."""
    token_log_probs: Tensor
    """`[...]` log-probability of the sampled token in the whole row (the full softmax)."""
    vocabulary_size: int

    @property
    def shape(self) -> torch.Size:
        """The leading shape."""
        return self.kept_mass.shape

    @property
    def device(self) -> torch.device:
        return self.ids.device

    def _map(self, function: Callable[[Tensor], Tensor]) -> "SparseLogProbs":
        tensors = {name: function(getattr(self, name)) for name in TENSORS}
        return SparseLogProbs(**tensors, vocabulary_size=self.vocabulary_size)

    def __getitem__(self, index: Any) -> "SparseLogProbs":
        """Rows chosen by a slice, an integer, a boolean mask or an index tensor over the leading shape."""
        return self._map(lambda tensor: tensor[index])

    def __len__(self) -> int:
        return len(self.kept_mass)

    def select(self, rows: Tensor) -> "SparseLogProbs":
        """Rows `rows` (int64 `[M]`) of the flattened leading shape."""
        return self.reshape(-1)._map(lambda tensor: tensor.index_select(0, rows))

    def reshape(self, *leading: int) -> "SparseLogProbs":
        """The same rows under another leading shape."""
        depth = self.kept_mass.dim()
        return self._map(lambda tensor: tensor.reshape(*leading, *tensor.shape[depth:]))

    def to(self, *args: Any, **kwargs: Any) -> "SparseLogProbs":
        """Moved to a device (`torch.Tensor.to`'s device and `non_blocking`; the dtypes stay)."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def dense(self) -> Tensor:
        """Log-probabilities `[..., V]`, for small vocabularies."""
        kept = self.ids >= 0
        dense = self.tail_log_prob.unsqueeze(-1).repeat(*[1] * len(self.shape), self.vocabulary_size + 1)
        # Empty slots are written to one column too many, which is cut off.
        dense.scatter_(-1, torch.where(kept, self.ids, self.vocabulary_size).long(), self.log_probs)
        return dense[..., :-1]

    @staticmethod
    def cat(parts: Sequence["SparseLogProbs"]) -> "SparseLogProbs":
        """Parts joined along the first leading dimension; parts with fewer slots are padded with empty ones."""
        slots = max(part.ids.shape[-1] for part in parts)
        vocabulary_sizes = {part.vocabulary_size for part in parts}
        if len(vocabulary_sizes) != 1:
            raise ValueError(f"parts: vocabulary sizes differ: {sorted(vocabulary_sizes)}")
        wide = [part.pad_slots(slots) for part in parts]
        joined = {name: torch.cat([getattr(part, name) for part in wide]) for name in TENSORS}
        return SparseLogProbs(**joined, vocabulary_size=vocabulary_sizes.pop())

    def pad_slots(self, slots: int) -> "SparseLogProbs":
        """The same rows with empty slots added up to `slots` of them."""
        extra = (0, slots - self.ids.shape[-1])
        ids = torch.nn.functional.pad(self.ids, extra, value=-1)
        log_probs = torch.nn.functional.pad(self.log_probs, extra, value=-torch.inf)
        return SparseLogProbs(
            ids, log_probs, self.tail_log_prob, self.kept_mass, self.token_log_probs, self.vocabulary_size
        )


TENSORS = [field.name for field in fields(SparseLogProbs) if field.name != "vocabulary_size"]
