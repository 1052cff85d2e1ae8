"""From tokens to text while they come: whole characters only, and nothing that a stop string may yet cut off."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 5
"""Tokens of the text before that are decoded along, for tokenizers whose spaces depend on what comes before."""


class Detokenizer:
    """Decodes one text token by token; the parts together are what decoding all tokens at once gives.

    Args:
        before: tokens of a text that this one continues.
        special: whether special tokens are part of the text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = (), *, special: bool = False
    ) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._ids = list(before[-CONTEXT:])
        self._begin, self._said = 0, len(self._ids)

    def push(self, token: int) -> str:
        """The text that is certain now that ``token`` is known."""
        self._ids.append(token)
        text = self._new()
        if not text or text.endswith(REPLACEMENT):
            # Perhaps a part of a character whose rest is still to come.
            return ""
        self._begin, self._said = self._said, len(self._ids)
        return text

    def flush(self) -> str:
        """What is left, when no token follows."""
        text = self._new()
        self._begin = self._said = len(self._ids)
        return text

    def _new(self) -> str:
        said = self._decode(self._ids[self._begin : self._said])
        return self._decode(self._ids[self._begin :])[len(said) :]

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=not self._special, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class Scanner:
    """Holds text back that may be the beginning of one of ``marks``, until that is known."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = marks
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text in front of any mark, and the mark that ends it, if one did; what follows it is kept for later."""
        self._held += text
        found = [(self._held.find(mark), -len(mark), mark) for mark in self._marks if mark in self._held]
        if found:
            # Of marks that begin at the same place, the longest.
            position, _, mark = min(found)
            before, self._held = self._held[:position], self._held[position + len(mark) :]
            return before, mark
        split = len(self._held) - self._beginning()
        before, self._held = self._held[:split], self._held[split:]
        return before, None

    def flush(self) -> str:
        """What was held back, when no text follows."""
        held, self._held = self._held, ""
        return held

    def _beginning(self) -> int:
        """How many characters at the end of the held text may be the beginning of a mark."""
        longest = min(len(self._held), max((len(mark) for mark in self._marks), default=0))
        for length in range(longest, 0, -1):
            end = self._held[-length:]
            if any(mark.startswith(end) for mark in self._marks):
                return length
        return 0
