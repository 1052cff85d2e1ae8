"""What an answer says, apart from how it was thought out.

Models that reason aloud mark it: between two tokens such as ``<think>`` and ``</think>``, or as messages in channels
(harmony, of gpt-oss), or as the tokenizer's ``response_template`` declares. Graders see what is said beside it, as they
do where the reasoning never leaves the server; the reasoning is trained on like any other token. Chats tell the two
apart while they are written, by the same ``TokenReader`` or the same template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

AROUND_REASONING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
"""Pairs of tokens between which models think."""
CONTENT = "content"
REASONING_FIELDS = ("thinking", "reasoning_content", "reasoning")
"""What response templates call what is said, and what is thought."""


@dataclass(frozen=True)
class Answer:
    text: str
    reasoning_tokens: int


@dataclass(frozen=True)
class Pair:
    """The tokens around reasoning."""

    opens: int
    closes: int

    def is_open(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends within reasoning, as templates that open it for the model do."""
        last = next((token for token in reversed(prompt) if token in (self.opens, self.closes)), None)
        return last == self.opens


def pairs(tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """Those of ``AROUND_REASONING`` that are tokens of this tokenizer."""
    ids = tokenizer.get_vocab()
    return [Pair(ids[opens], ids[closes]) for opens, closes in AROUND_REASONING if opens in ids and closes in ids]


@dataclass(frozen=True)
class Channels:
    """Harmony's tokens: ``<|start|>assistant<|channel|>analysis<|message|>…<|end|>``, then the channel ``final``."""

    start: int
    channel: int
    message: int
    ends: frozenset[int]
    finals: frozenset[int]
    """First tokens of the name of the channel that is meant for the user."""


def channels(tokenizer: PreTrainedTokenizerBase) -> Channels | None:
    """Harmony's tokens; None where the tokenizer has not all of them."""
    ids = tokenizer.get_vocab()
    names = ("<|start|>", "<|channel|>", "<|message|>")
    if not all(name in ids for name in (*names, "<|end|>")):
        return None
    ends = frozenset(ids[name] for name in ("<|end|>", "<|return|>", "<|call|>") if name in ids)
    final = tokenizer("final", add_special_tokens=False)["input_ids"]
    start, channel, message = (ids[name] for name in names)
    return Channels(start, channel, message, ends, frozenset(final[:1]))


@dataclass(frozen=True)
class Marks:
    """What models of a tokenizer mark their reasoning with."""

    pairs: list[Pair]
    channels: Channels | None


def marks(tokenizer: PreTrainedTokenizerBase) -> Marks:
    return Marks(pairs(tokenizer), channels(tokenizer))


Kind = Literal["thought", "said", "mark"]


class TokenReader:
    """Tells what each token of an answer is, as they come.

    Between a pair of marks everything is thought, once; in harmony, everything outside of the final channel.
    """

    def __init__(self, marks: Marks, prompt: Sequence[int]) -> None:
        self._pairs, self._channels = marks.pairs, None
        if marks.channels is not None and marks.channels.message in prompt:
            self._channels = ChannelReader(marks.channels)
            self._channels.open(prompt)
        self._open = next((pair for pair in marks.pairs if pair.is_open(prompt)), None)
        self._is_over = False
        """Whether there was reasoning and it has ended: what looks like a mark then is said."""

    @property
    def says(self) -> bool:
        """Whether the next token is said, if it is no mark."""
        return self._open is None if self._channels is None else self._channels.says

    def take(self, token: int) -> Kind:
        if self._channels is not None:
            return self._channels.take(token)
        if self._open is not None:
            if token != self._open.closes:
                return "thought"
            self._open, self._is_over = None, True
            return "mark"
        if self._is_over:
            return "said"
        self._open = next((pair for pair in self._pairs if token == pair.opens), None)
        # Some models close what neither they nor their prompt have opened.
        self._is_over = any(token == pair.closes for pair in self._pairs)
        return "mark" if self._open is not None or self._is_over else "said"


@dataclass
class ChannelReader:
    """Tells token by token what in harmony is thought, what is said, and what is neither."""

    channels: Channels
    _part: Literal["nowhere", "header", "final", "other"] = "nowhere"
    _header: list[int] = field(default_factory=list)

    @property
    def says(self) -> bool:
        return self._part == "final"

    def open(self, prompt: Sequence[int]) -> None:
        """Begin where ``prompt`` ends: within the header of a message, or in a message itself."""
        if self.channels.start in prompt:
            begun = len(prompt) - 1 - list(reversed(prompt)).index(self.channels.start)
            for token in prompt[begun:]:
                self.take(token)

    def take(self, token: int) -> Kind:
        marks = self.channels
        if token == marks.start:
            self._part, self._header = "header", []
        elif token in marks.ends:
            self._part = "nowhere"
        elif token == marks.channel and self._part in ("nowhere", "header"):
            self._part = "header"
            self._header.append(token)
        elif token == marks.message and self._part in ("nowhere", "header"):
            self._part = "final" if self._is_final() else "other"
        elif self._part == "final":
            return "said"
        elif self._part == "other":
            return "thought"
        else:
            self._header.append(token)
        return "mark"

    def _is_final(self) -> bool:
        """A message of no channel is meant for the user as well."""
        if self.channels.channel not in self._header:
            return True
        name = self._header[self._header.index(self.channels.channel) + 1 :]
        return bool(name) and name[0] in self.channels.finals


class AnswerReader:
    """Decodes answers of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._marks = marks(tokenizer)
        self._is_declared = getattr(tokenizer, "response_template", None) is not None

    def read(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Answer]:
        """One ``Answer`` for each pair of a prompt and an answer, both token ids."""
        parts = [self._split(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        texts = self._tokenizer.batch_decode(
            [said for said, _ in parts], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        read = [Answer(text.lstrip() if n else text, n) for text, (_, n) in zip(texts, parts, strict=True)]
        if self._is_declared:
            declared = map(self._declared, prompts, answers)
            return [one or other for one, other in zip(declared, read, strict=True)]
        return read

    def _split(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[list[int], int]:
        """The tokens that are said, and how many come before them."""
        channels = self._marks.channels
        if channels is not None and channels.message in (*prompt, *answer):
            return self._split_channels(channels, prompt, answer)
        reader = TokenReader(self._marks, prompt)
        kinds = [reader.take(token) for token in answer]
        # What is said in front of reasoning is no answer yet.
        thought = max((place + 1 for place, kind in enumerate(kinds) if kind != "said"), default=0)
        return list(answer[thought:]), thought

    def _split_channels(
        self, channels: Channels, prompt: Sequence[int], answer: Sequence[int]
    ) -> tuple[list[int], int]:
        reader = ChannelReader(channels)
        reader.open(prompt)
        kinds = [reader.take(token) for token in answer]
        if "thought" not in kinds and channels.message not in answer and "said" not in kinds:
            return list(answer), 0
        said = [token for token, kind in zip(answer, kinds, strict=True) if kind == "said"]
        return said, kinds.index("said") if said else len(answer)

    def _declared(self, prompt: Sequence[int], answer: Sequence[int]) -> Answer | None:
        """What the response template makes of an answer; None where the answer does not follow it."""
        prefix, text = (self._tokenizer.decode(list(ids), skip_special_tokens=False) for ids in (prompt, answer))
        try:
            message: Mapping[str, Any] = self._tokenizer.parse_response(text, prefix=prefix)
        except ValueError:
            return None
        content = text_of(message.get(CONTENT) or "")
        for token in self._tokenizer.all_special_tokens:
            content = content.removesuffix(token)
        thought = next((message[name] for name in REASONING_FIELDS if isinstance(message.get(name), str)), "")
        return Answer(content, len(self._tokenizer(thought, add_special_tokens=False)["input_ids"]) if thought else 0)


def text_of(content: Any) -> str:
    """The text of a message's content, which may be a list of blocks."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return "".join(str(block.get("text", "")) for block in blocks if isinstance(block, Mapping))
