"""Holding an answer to a JSON schema: which tokens may come next, by llguidance."""

import json
from typing import Any

import llguidance
import llguidance.hf
import llguidance.torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workers.serving.host.engine import Refused

PARAM = "response_format"


class Grammars:
    """Makes constraints for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int) -> None:
        self._tokenizer, self._vocabulary_size = tokenizer, vocabulary_size
        self._closes = tokenizer.get_vocab().get("</think>")
        self._known: Any = None

    def constraint(self, schema: dict[str, Any], *, reasons: bool) -> "Constraint":
        """A constraint that begins at once, or behind the reasoning when the model is in it. Raises ``Refused``."""
        if self._known is None:
            try:
                self._known = llguidance.hf.from_tokenizer(self._tokenizer, n_vocab=self._vocabulary_size)
            except Exception as error:
                raise Refused(f"This model's tokenizer cannot be held to a schema: {error}", PARAM) from error
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        matcher = llguidance.LLMatcher(self._known, grammar)
        if matcher.is_error():
            raise Refused(f"This JSON schema is not supported: {matcher.get_error()}", PARAM, "invalid_json_schema")
        return Constraint(matcher, self._vocabulary_size, self._closes if reasons else None)


class Constraint:
    """What one choice may say next. ``begins_behind`` is the token that ends the reasoning before."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary_size: int, begins_behind: int | None) -> None:
        self._matcher, self._begins_behind = matcher, begins_behind
        self._mask = llguidance.torch.allocate_token_bitmask(1, vocabulary_size)

    def apply(self, logits: Tensor) -> None:
        """Forbid in ``logits`` ``[V]``, in place, what may not come next."""
        if self._begins_behind is not None:
            return
        llguidance.torch.fill_next_token_bitmask(self._matcher, self._mask, 0)
        llguidance.torch.apply_token_bitmask_inplace(logits.unsqueeze(0), self._mask.to(logits.device))

    def advance(self, token: int) -> None:
        if self._begins_behind is None:
            self._matcher.consume_token(token)
        elif token == self._begins_behind:
            self._begins_behind = None
