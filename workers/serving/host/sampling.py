"""Choosing the next token of each row from its logits. R rows, V vocabulary."""

import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from service.inference.wire import Sampling
from workers.modeling import seeds
from workers.rollouts.engine import NonFiniteLogitsError
from workers.rollouts.grammar import Constraint


class Chooser:
    """One choice's sampling: its settings, random numbers, and what it has said so far.

    Nothing depends on which other rows are in the batch, so a seed gives the same tokens among others as alone, but
    where two tokens are equally likely to the last bits.
    """

    def __init__(self, sampling: Sampling, number: int, constraint: Constraint | None = None) -> None:
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        self.logprobs = sampling.logprobs
        self._presence, self._frequency = sampling.presence_penalty, sampling.frequency_penalty
        self._bias = sampling.logit_bias
        self._biased: tuple[Tensor, Tensor] | None = None
        """Token ids and what is added to their logits, on the logits' device."""
        self._said: Counter[int] = Counter()
        self._random = random.Random(seeds.derive(sampling.seed, "choice", number))
        self._constraint = constraint

    @property
    def adjusts(self) -> bool:
        return bool(self._bias or self._constraint or ((self._presence or self._frequency) and self._said))

    def adjust(self, logits: Tensor) -> None:
        """Change one row's logits ``[V]`` in place."""
        if self._said and (self._presence or self._frequency):
            ids = torch.tensor(list(self._said), device=logits.device)
            counts = torch.tensor(list(self._said.values()), device=logits.device, dtype=logits.dtype)
            logits[ids] -= self._presence + self._frequency * counts
        if self._bias:
            if self._biased is None:
                ids = torch.tensor(list(self._bias), device=logits.device)
                self._biased = ids, torch.tensor(list(self._bias.values()), device=logits.device, dtype=logits.dtype)
            logits[self._biased[0]] += self._biased[1]
        if self._constraint is not None:
            self._constraint.apply(logits)

    @property
    def broken(self) -> str | None:
        """Why the answer cannot go on, if so."""
        return None if self._constraint is None else self._constraint.broken

    def draw(self) -> float:
        return self._random.random()

    def said(self, token: int) -> None:
        if self._presence or self._frequency:
            self._said[token] += 1
        if self._constraint is not None:
            self._constraint.advance(token)


def choose(logits: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """A token for each row of ``logits`` ``[R, V]``. Raises ``NonFiniteLogitsError``."""
    if bool(logits.isnan().any()):
        raise NonFiniteLogitsError("The model's logits are NaN.")
    if any(chooser.adjusts for chooser in choosers):
        logits = logits.clone()
        for row, chooser in enumerate(choosers):
            if chooser.adjusts:
                chooser.adjust(logits[row])
    tokens: list[int] = logits.argmax(-1).tolist()
    sampled = [row for row, chooser in enumerate(choosers) if chooser.temperature > 0]
    if sampled:
        drawn = _sample(logits[sampled], [choosers[row] for row in sampled])
        for row, token in zip(sampled, drawn, strict=True):
            tokens[row] = token
    for chooser, token in zip(choosers, tokens, strict=True):
        chooser.said(token)
    return tokens


def score(
    logits: Tensor, tokens: Sequence[int], choosers: Sequence[Chooser]
) -> dict[int, tuple[float, list[tuple[int, float]]]]:
    """For each row that wants it, its token's log-probability and the most likely tokens with theirs, by row."""
    rows = [row for row, chooser in enumerate(choosers) if chooser.logprobs is not None]
    if not rows:
        return {}
    log_probs = logits[rows].log_softmax(-1)
    chosen = log_probs.gather(-1, torch.tensor([tokens[row] for row in rows], device=logits.device)[:, None])
    most = max(choosers[row].logprobs or 0 for row in rows)
    top, ids = log_probs.topk(min(most, logits.shape[-1]), dim=-1)
    return {
        row: (value, list(zip(some_ids, some, strict=True))[: choosers[row].logprobs])
        for row, (value,), some_ids, some in zip(rows, chosen.tolist(), ids.tolist(), top.tolist(), strict=True)
    }


def _sample(logits: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """Each row's distribution inverted at a number drawn for it."""
    temperatures = torch.tensor([chooser.temperature for chooser in choosers], device=logits.device)
    probabilities = (logits / temperatures[:, None]).softmax(-1)
    for row, chooser in enumerate(choosers):
        if chooser.top_p < 1:
            _keep_nucleus(probabilities[row], chooser.top_p)
    # In float32 the running sum of a large vocabulary would lose its unlikely tokens.
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    draws = torch.tensor([chooser.draw() for chooser in choosers], dtype=torch.float64, device=logits.device)
    threshold = (draws * cumulative[:, -1])[:, None]
    tokens: list[int] = (
        torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=logits.shape[-1] - 1).tolist()
    )
    return tokens


def _keep_nucleus(probabilities: Tensor, top_p: float) -> None:
    """Set all but the most likely tokens, which together reach ``top_p``, to 0 in place; at least one is kept."""
    ordered, order = probabilities.sort(descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    outside[0] = False
    probabilities[order[outside]] = 0.0
