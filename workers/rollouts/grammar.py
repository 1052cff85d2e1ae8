"""Holding answers to a JSON schema: which tokens may come next, by llguidance, for sampling and for training alike.

Where the model reasons first, the schema holds from where it begins to say something. N positions, V vocabulary, W =
V / 32 words of a mask, of which each bit is a token.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import llguidance
import llguidance.hf
import llguidance.torch
import numpy as np
import torch
from tokenizers import decoders
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workers.answers import Marks, TokenReader, marks
from workers.bounded import grammars

BITS = torch.arange(8, dtype=torch.uint8)


class UnconstrainableError(Exception):
    """A tokenizer whose models cannot be held to any schema; the message says why."""


class GrammarFailedError(Exception):
    """An answer that can be held to its schema no further."""


class Grammars:
    """Makes grammars for models of one tokenizer, for several threads at a time.

    Args:
        stop_ids: tokens that end an answer, any of which may follow what fits the schema.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int, stop_ids: Sequence[int]) -> None:
        self._tokenizer, self._vocabulary_size = tokenizer, vocabulary_size
        self._stop_ids = [token for token in stop_ids if token < vocabulary_size]
        self._marks = marks(tokenizer)
        self._lock = threading.Lock()
        self._known: llguidance.LLTokenizer | None = None

    def of(self, schema: dict[str, Any]) -> "Grammar":
        """Raises ``UnconstrainableError``, and ``grammars.UnsupportedSchemaError``."""
        with self._lock:
            if self._known is None:
                self._known = tokens_of(self._tokenizer, self._vocabulary_size, self._stop_ids)
        made = Grammar(schema, grammars.compile(schema, self._known), self._marks, self._vocabulary_size)
        first, mask = made.start([]), everything(1, self._vocabulary_size)
        first.fill(mask, 0)
        begins = set(unpacked(mask, self._vocabulary_size)[0].nonzero()[:, 0].tolist())
        # Where nothing fits, llguidance lets the unknown token pass.
        if first.broken is None and not begins - set(self._tokenizer.all_special_ids):
            raise grammars.UnsupportedSchemaError("no token of the model can begin what fits it")
        return made


def tokens_of(tokenizer: PreTrainedTokenizerBase, vocabulary_size: int, stop_ids: Sequence[int]) -> Any:
    """The tokenizer as llguidance has it. Raises ``UnconstrainableError``."""
    try:
        if _joins_only(tokenizer):
            known = llguidance.TokenizerWrapper(_Joined(tokenizer))
            return llguidance.LLTokenizer(known, n_vocab=vocabulary_size, eos_token=list(stop_ids))
        return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary_size, eos_token=list(stop_ids))
    except Exception as error:
        raise UnconstrainableError(f"This model's tokenizer cannot be held to a schema: {error}") from error


def _joins_only(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text is its tokens' names, one after the other, which llguidance does not read by itself."""
    decoder = tokenizer.backend_tokenizer.decoder
    return isinstance(decoder, decoders.Fuse)


class _Joined:
    """A tokenizer of tokens that are joined, as llguidance asks for one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_id, None
        names = {token: name for name, token in tokenizer.get_vocab().items()}
        self.tokens = [names.get(token, "").encode() for token in range(max(names) + 1)]
        self.special_token_ids = list(tokenizer.all_special_ids)

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


@dataclass(frozen=True, eq=False)
class Grammar:
    """A schema for models of one tokenizer."""

    schema: dict[str, Any]
    matcher: llguidance.LLMatcher
    """At the beginning."""
    marks: Marks
    vocabulary_size: int

    def start(self, prompt: Sequence[int]) -> "Constraint":
        """What an answer to ``prompt`` is held to, from its first token."""
        return Constraint(self.matcher.deep_copy(), TokenReader(self.marks, prompt))

    def begins_at_once(self, prompt: Sequence[int]) -> bool:
        """Whether the schema holds from the answer's first token."""
        return TokenReader(self.marks, prompt).says

    def masks(self, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Masks ``[N, W]`` of the tokens allowed for each token of ``answer``. Raises ``GrammarFailedError``."""
        constraint, masks = self.start(prompt), everything(len(answer), self.vocabulary_size)
        for place, token in enumerate(answer):
            constraint.fill(masks, place)
            check([constraint])
            constraint.advance(token)
        return masks


class Constraint:
    """What one answer may say next."""

    def __init__(self, matcher: llguidance.LLMatcher, reader: TokenReader) -> None:
        self.matcher, self._reader = matcher, reader

    @property
    def holds(self) -> bool:
        """Whether not every token may come next."""
        return self._reader.says

    @property
    def broken(self) -> str | None:
        """Why the answer cannot be held to the schema any further, if so."""
        if not self.matcher.is_error():
            return None
        return f"The answer could not be held to the JSON schema ({self.matcher.stop_reason()}). Make it simpler."

    def fill(self, masks: Tensor, row: int) -> None:
        """Write what may come next to row ``row`` of masks ``[N, W]`` that allow everything."""
        if self.holds:
            llguidance.torch.fill_next_token_bitmask(self.matcher, masks, row)

    def apply(self, logits: Tensor) -> None:
        """Forbid in ``logits`` ``[V]``, in place, what may not come next; nothing, once it is ``broken``."""
        if not self.holds:
            return
        mask = everything(1, len(logits))
        self.fill(mask, 0)
        if self.broken is None:
            logits.masked_fill_(~unpacked(mask.to(logits.device), len(logits))[0], -torch.inf)

    def advance(self, token: int) -> None:
        if self.holds:
            self.matcher.consume_token(token)
        self._reader.take(token)


class Constraints:
    """The constraints of the answers of a batch, whose masks are made on several processors.

    R rows of the batch, each of which is an answer by number.
    """

    def __init__(self, constraints: Sequence[Constraint], grammar: Grammar) -> None:
        self._constraints, self._vocabulary_size = constraints, grammar.vocabulary_size

    def mask(self, logits: Tensor, answers: Tensor, done: Tensor) -> Tensor:
        """``logits`` ``[R, V]`` without what the ``answers`` ``[R]`` may not say next.

        Of those that are ``done`` nothing is said any more. Raises ``GrammarFailedError``.
        """
        chosen = [self._constraints[answer] for answer in answers.tolist()]
        held = [
            (constraint.matcher, row)
            for row, (constraint, ended) in enumerate(zip(chosen, done.tolist(), strict=True))
            if constraint.holds and not ended
        ]
        if not held:
            return logits
        masks = everything(len(chosen), self._vocabulary_size)
        llguidance.torch.fill_next_token_bitmask_par(_executor(), held, masks)
        check([chosen[row] for _, row in held])
        return forbid(logits, masks)

    def advance(self, answers: Tensor, tokens: Tensor) -> None:
        """Take what the ``answers`` say next."""
        for answer, token in zip(answers.tolist(), tokens.tolist(), strict=True):
            self._constraints[answer].advance(token)


def check(constraints: Sequence[Constraint]) -> None:
    """Raises ``GrammarFailedError`` where one is."""
    for constraint in constraints:
        if constraint.broken is not None:
            raise GrammarFailedError(constraint.broken)


@cache
def _executor() -> llguidance.LLExecutor:
    return llguidance.LLExecutor()


def everything(rows: int, vocabulary_size: int) -> Tensor:
    """Masks ``[rows, W]`` that allow every token."""
    return torch.full((rows, (vocabulary_size + 31) // 32), -1, dtype=torch.int32)


def unpacked(masks: Tensor, vocabulary_size: int) -> Tensor:
    """Masks ``[N, W]`` as booleans ``[N, V]``."""
    octets = masks.contiguous().view(torch.uint8)  # [N, 4 W]
    if octets.device.type == "cpu":
        bits = torch.from_numpy(np.unpackbits(octets.numpy(), axis=-1, bitorder="little"))
    else:
        bits = (octets.unsqueeze(-1) >> BITS.to(octets.device) & 1).flatten(1)
    return bits.view(torch.bool)[:, :vocabulary_size]


def forbid(logits: Tensor, masks: Tensor) -> Tensor:
    """``logits`` ``[N, V]`` with -inf for what ``masks`` ``[N, W]`` do not allow; differentiable."""
    return logits.masked_fill(~unpacked(masks.to(logits.device), logits.shape[-1]), -torch.inf)
