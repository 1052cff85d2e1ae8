"""An answer to a chat, token by token, as text that is thought and text that is said: see ``workers.answers``."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from workers.answers import CONTENT, REASONING_FIELDS, Kind, Marks, TokenReader, text_of
from workers.serving.host.text import Detokenizer

Part = tuple[Kind, str]


class Parts(ABC):
    """Takes the tokens of one answer and gives its text in parts, as soon as it is certain what they are."""

    says: bool
    """Whether the token that was pushed last is said, as far as that is known."""

    @abstractmethod
    def push(self, token: int) -> list[Part]:
        """The text that is certain now that ``token`` is known."""

    @abstractmethod
    def flush(self) -> list[Part]:
        """What is left when no token follows."""


class Plain(Parts):
    """A text that continues the tokens ``before``: all of it is said."""

    says = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int]) -> None:
        self._detokenizer = Detokenizer(tokenizer, before)

    def push(self, token: int) -> list[Part]:
        return [("said", self._detokenizer.push(token))]

    def flush(self) -> list[Part]:
        return [("said", self._detokenizer.flush())]


class Marked(Parts):
    """Reasoning is between marks, each a token. White space behind a mark is dropped."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, marks: Marks, prompt: Sequence[int]) -> None:
        self._tokenizer, self._marks = tokenizer, marks
        self._reader = TokenReader(marks, prompt)
        self._detokenizer = Detokenizer(tokenizer)
        self.says = self._reader.says
        self._kind: Kind = "said" if self.says else "thought"
        self._at_start = not self.says
        self._unread: list[int] = []
        """The answer, as long as it has neither thought nor said anything."""

    def push(self, token: int) -> list[Part]:
        kind = self._reader.take(token)
        self.says = kind == "said"
        if kind == "mark":
            self._unread.append(token)
            rest = self._text(self._detokenizer.flush())
            self._detokenizer, self._at_start = Detokenizer(self._tokenizer), True
            return [(self._kind, rest)]
        self._kind, self._unread = kind, []
        return [(kind, self._text(self._detokenizer.push(token)))]

    def flush(self) -> list[Part]:
        channels = self._marks.channels
        if self._unread and channels is not None and not {channels.channel, channels.message} & {*self._unread}:
            # A model of channels that has named none has said what it says.
            return [("said", str(self._tokenizer.decode(self._unread, skip_special_tokens=True)))]
        return [(self._kind, self._text(self._detokenizer.flush()))]

    def _text(self, text: str) -> str:
        if self._at_start:
            text = text.lstrip()
            self._at_start = not text
        return text


class Declared(Parts):
    """What is thought and what is said is declared by the tokenizer's ``response_template``.

    An answer that does not follow it is told by its marks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, marks: Marks, prompt: Sequence[int]) -> None:
        self._fields = tokenizer.response_template["fields"]
        self._detokenizer = Detokenizer(tokenizer, special=True)
        self._parser = tokenizer.get_response_parser(prefix=str(tokenizer.decode(prompt)))
        self._field: str | None = None
        self._at_start, self._space = True, ""
        for event in self._parser.initial_events:
            self._turn(event)
        self._marked, self._unfollowed = Marked(tokenizer, marks, prompt), list[Part]()
        self._told = self._broken = False

    @property
    def says(self) -> bool:  # type: ignore[override]
        return self._field in (None, CONTENT)

    def push(self, token: int) -> list[Part]:
        plain = self._marked.push(token)
        if self._broken:
            return plain
        self._unfollowed += plain
        return self._parsed(lambda: self._parser.feed(self._detokenizer.push(token)))

    def flush(self) -> list[Part]:
        if self._broken:
            return self._marked.flush()
        parts = self._parsed(lambda: self._parser.feed(self._detokenizer.flush()))
        parts += self._parsed(lambda: self._parser.finalize()[1])
        return [*parts, *self._marked.flush()] if self._broken and not self._told else parts

    def _parsed(self, parse: Callable[[], list[dict[str, Any]]]) -> list[Part]:
        try:
            parts = [part for event in parse() for part in self._part(event)]
        except ValueError:
            self._broken = True
            return [] if self._told else self._unfollowed
        self._told = self._told or any(text for _, text in parts)
        return parts

    def _part(self, event: Mapping[str, Any]) -> Iterator[Part]:
        name = event["field"]
        kind: Kind = "said" if name == CONTENT else "thought" if name in REASONING_FIELDS else "mark"
        self._turn(event)
        if event["type"] == "region_chunk" and not event["dirty"]:
            yield kind, self._text(event["text"], name)
        elif event["type"] == "region_close" and not isinstance(event["value"], str):
            yield kind, text_of(event["value"])

    def _turn(self, event: Mapping[str, Any]) -> None:
        """Take note of where the answer is."""
        if event["type"] != "region_chunk":
            self._field = event["field"] if event["type"] == "region_open" else None
            self._at_start, self._space = True, ""

    def _text(self, text: str, field: str) -> str:
        """Without the white space around a region, which is kept back until it is known to be within."""
        if not self._fields[field].get("content_args", {}).get("strip", True):
            return text
        whole = self._space + text if not self._at_start else text.lstrip()
        self._at_start = not whole
        bare = whole.rstrip()
        self._space = whole[len(bare) :]
        return bare
