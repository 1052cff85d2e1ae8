"""What a model's tokens are called, and which of them mean something here."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from service.inference.wire import TokenLogprob
from workers.answers import marks
from workers.serving.host.engine import Token
from workers.serving.host.parts import Declared, Marked, Parts, Plain

WORD_BEGINS = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's space, which decoding drops from the front of a text."""


class Vocabulary:
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._marks = marks(tokenizer)
        self._is_declared = getattr(tokenizer, "response_template", None) is not None
        self._names: dict[int, str] = {}

    def answer_to(self, prompt: Sequence[int]) -> Parts:
        """What tells thought and said apart in an answer to a chat whose prompt this is."""
        return (Declared if self._is_declared else Marked)(self.tokenizer, self._marks, prompt)

    def continuation_of(self, text: Sequence[int]) -> Parts:
        return Plain(self.tokenizer, text)

    def name(self, id: int) -> str:
        """The token's own text, with the replacement character where it is a part of one."""
        if id not in self._names:
            raw = self.tokenizer.convert_ids_to_tokens(id)
            text = str(self.tokenizer.decode([id], clean_up_tokenization_spaces=False))
            spaced = isinstance(raw, str) and raw.startswith(WORD_BEGINS) and not text.startswith(" ")
            self._names[id] = f" {text}" if spaced else text
        return self._names[id]

    def scored(self, token: Token, offset: int) -> TokenLogprob:
        top = [(self.name(id), logprob) for id, logprob in token.top]
        return TokenLogprob(token=self.name(token.id), logprob=token.logprob, top=top, offset=offset)
