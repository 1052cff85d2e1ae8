"""Rows on their way through a transformers model, for rollouts and for chats.

They may leave a batch and join another between any two tokens.

Rows are padded on the left to one length. R rows, T padded length, V vocabulary.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class Decoder:
    """One batch: its cache, or all its tokens where the model keeps no cache that transformers knows.

    Args:
        last_position: of the model's context; rows may run past it when nobody reads any more what they say.
    """

    def __init__(self, model: PreTrainedModel, last_position: int | None = None) -> None:
        self._model, self._last_position = model, last_position
        self._accepted = set(inspect.signature(model.forward).parameters)
        self._cache: Cache | None = None
        self._ids: Tensor
        self._mask: Tensor  # [R, T], 0 where a row is padded
        self._padded = False

    @property
    def shape(self) -> tuple[int, int]:
        """R and T."""
        return self._mask.shape[0], self._mask.shape[1]

    @property
    def joinable(self) -> bool:
        """Whether rows of other lengths can join: plain attention can skip padding, a sliding window or a state not."""
        return self._cache is not None and all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Begin with ``prompts``; the logits ``[R, V]`` that follow each."""
        longest, device = max(map(len, prompts)), self._model.device
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        self._padded = not bool(mask.all())
        self._ids, self._mask = ids.to(device), mask.to(device)
        return self._read()

    def step(self, tokens: Tensor) -> Tensor:
        """Append ``tokens`` ``[R]``; the logits ``[R, V]`` that follow."""
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        if self._cache is None:
            self._ids = torch.cat([self._ids, tokens.unsqueeze(-1)], -1)
            return self._read()
        return self._forward(tokens.unsqueeze(-1), self._mask.sum(-1, keepdim=True) - 1)

    def keep(self, rows: Tensor) -> None:
        """Go on with the rows that ``rows`` names, which may repeat."""
        self._mask = self._mask[rows]
        if self._cache is None:
            self._ids = self._ids[rows]
        else:
            self._cache.reorder_cache(rows)

    def trim(self) -> None:
        """Drop the columns that are padding in every row, where rows can join."""
        if self.joinable:
            # The first column that is no padding in some row.
            self._cut(int(self._mask.any(0).int().argmax()))
            self._padded = not bool(self._mask.all())

    def split(self, rows: Tensor) -> "Decoder":
        """The rows that ``rows`` names, as a batch of their own; this one still has them. It is ``joinable``."""
        assert self._cache is not None
        other = copy.copy(self)
        other._mask, other._cache = self._mask[rows], copy.copy(self._cache)
        other._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer in other._cache.layers:
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        other.trim()
        return other

    def join(self, other: "Decoder") -> None:
        """Take the rows of ``other`` behind one's own; both are ``joinable``."""
        assert self._cache is not None
        assert other._cache is not None
        length = max(self.shape[1], other.shape[1])
        for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            mine.keys = torch.cat([_padded(mine.keys, length), _padded(theirs.keys, length)])
            mine.values = torch.cat([_padded(mine.values, length), _padded(theirs.values, length)])
        masks = (torch.nn.functional.pad(mask, (length - mask.shape[1], 0)) for mask in (self._mask, other._mask))
        self._mask = torch.cat(list(masks))
        self._padded = not bool(self._mask.all())

    def _cut(self, columns: int) -> None:
        """Drop leading columns that are padding in every row."""
        if columns == 0:
            return
        assert self._cache is not None
        self._mask = self._mask[:, columns:]
        for layer in self._cache.layers:
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys, layer.values = layer.keys[:, :, columns:], layer.values[:, :, columns:]

    def _read(self) -> Tensor:
        return self._forward(self._ids, (self._mask.cumsum(-1) - 1).clamp(min=0))

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        arguments: dict[str, Any] = {
            "position_ids": positions if self._last_position is None else positions.clamp(max=self._last_position),
            "attention_mask": self._mask if self._padded else None,
            "logits_to_keep": 1,
            "use_cache": True,
            "past_key_values": self._cache,
        }
        output = self._model(ids, **{name: value for name, value in arguments.items() if name in self._accepted})
        cache = getattr(output, "past_key_values", None)
        self._cache = cache if isinstance(cache, Cache) else None
        logits: Tensor = output.logits
        return logits[:, -1]


def _padded(states: Tensor | None, length: int) -> Tensor:
    """Keys or values ``[R, heads, T, size]`` with zeros on the left, which the mask hides."""
    assert states is not None
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))
