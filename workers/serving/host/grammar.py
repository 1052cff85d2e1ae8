"""Holding an answer to a JSON schema: which tokens may come next, by llguidance."""

import threading
from typing import Any

import llguidance
import llguidance.hf
import llguidance.torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workers.bounded import grammars
from workers.serving.host.engine import Refused

PARAM = "response_format"


class Grammars:
    """Makes constraints for one tokenizer, for several threads at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int) -> None:
        self._tokenizer, self._vocabulary_size = tokenizer, vocabulary_size
        self._closes = tokenizer.get_vocab().get("</think>")
        self._lock = threading.Lock()
        self._known: Any = None

    def constraint(self, schema: dict[str, Any], *, reasons: bool) -> "Constraint":
        """A constraint that begins at once, or behind the reasoning when the model is in it. Raises ``Refused``."""
        with self._lock:
            if self._known is None:
                try:
                    self._known = llguidance.hf.from_tokenizer(self._tokenizer, n_vocab=self._vocabulary_size)
                except Exception as error:
                    raise Refused(f"This model's tokenizer cannot be held to a schema: {error}", PARAM) from error
        try:
            matcher = grammars.compile(schema, self._known)
        except grammars.Unsupported as error:
            raise Refused(f"This JSON schema is not supported: {error}", PARAM, "invalid_json_schema") from error
        return Constraint(matcher, self._vocabulary_size, self._closes if reasons else None)


class Constraint:
    """What one choice may say next. ``begins_behind`` is the token that ends the reasoning before."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary_size: int, begins_behind: int | None) -> None:
        self._matcher, self._vocabulary_size, self._begins_behind = matcher, vocabulary_size, begins_behind
        self._mask = llguidance.torch.allocate_token_bitmask(1, vocabulary_size)

    def copy(self) -> "Constraint":
        """One for another choice, from the beginning."""
        return Constraint(self._matcher.deep_copy(), self._vocabulary_size, self._begins_behind)

    @property
    def broken(self) -> str | None:
        """Why the answer cannot be held to the schema any further, if so."""
        if not self._matcher.is_error():
            return None
        return f"The answer could not be held to the JSON schema ({self._matcher.stop_reason()}). Make it simpler."

    def apply(self, logits: Tensor) -> None:
        """Forbid in ``logits`` ``[V]``, in place, what may not come next; nothing, once it is ``broken``."""
        if self._begins_behind is not None:
            return
        llguidance.torch.fill_next_token_bitmask(self._matcher, self._mask, 0)
        if not self._matcher.is_error():
            llguidance.torch.apply_token_bitmask_inplace(logits.unsqueeze(0), self._mask.to(logits.device))

    def advance(self, token: int) -> None:
        if self._begins_behind is None:
            self._matcher.consume_token(token)
        elif token == self._begins_behind:
            self._begins_behind = None
