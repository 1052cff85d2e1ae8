"""What a model's tokens are called, and which of them mean something here."""

from transformers import PreTrainedTokenizerBase

from service.inference.wire import TokenLogprob
from workers.serving.host.engine import Token

WORD_BEGINS = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's space, which decoding drops from the front of a text."""


class Vocabulary:
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        ids = tokenizer.get_vocab()
        self.think_opens: int | None = ids.get("<think>")
        self.think_closes: int | None = ids.get("</think>")
        self._names: dict[int, str] = {}

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
