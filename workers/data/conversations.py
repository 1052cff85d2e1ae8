"""From rows of a JSONL file to conversations of token ids, and which of the tokens are to be learned.

The loss is on what the assistant says where its ``weight`` is not 0: from behind the prompt that the model would see
there, up to and including the token that ends the answer. Chat templates seldom mark this, so it is found by rendering
each prompt and each answer that ends a conversation, and comparing tokens. Where all of these are beginnings of the
conversation, it is one example. Templates that change earlier turns (and drop their reasoning, say) make one example of
each answer instead, behind the prompt that the model would see. Either way the model learns from the very tokens that
it is asked with later.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from transformers import PreTrainedTokenizerBase

from workers.data import jsonl, templating
from workers.data.jsonl import UnusableRowError
from workers.data.packed import Runs
from workers.modeling.rows import Block, Continuation

MAX_QUOTED = 100
"""Characters of a prompt that a refusal shows."""


@dataclass(frozen=True)
class Example:
    """Tokens that go through the model together; the loss is on those at ``learned``, places from 1 on, rising."""

    token_ids: list[int]
    learned: list[int]

    @property
    def tokens(self) -> int:
        """Tokens the model reads: the last one is only predicted."""
        return len(self.token_ids) - 1

    def block(self) -> Block:
        """The example as it is laid out in a row."""
        return Block([], [Continuation(self.token_ids, self.learned)])


@dataclass(frozen=True)
class _Asked:
    """What is to be written of the answer at ``messages[number]``: the prompt before it, and the prompt with it."""

    number: int
    texts: list[templating.Asked]
    said: str | None = None
    """The answer, where there is no chat template to write it behind the prompt."""


@dataclass(frozen=True)
class _Turn:
    """One answer to learn as texts: the prompt before it, and the prompt with it, which begins with the former."""

    prompt: str
    whole: str


class _UnaskableError(UnusableRowError):
    """The answer at ``messages[number]`` is not written behind its prompt. The prompt is compared when it is told."""

    def __init__(self, prompt: str, whole: str, number: int) -> None:
        super().__init__(prompt, whole, number)
        self._prompt, self._whole, self._number = prompt, whole, number

    def __str__(self) -> str:
        pairs = enumerate(zip(self._prompt, self._whole, strict=False))
        start = next((place for place, (ours, theirs) in pairs if ours != theirs), len(self._whole))
        asks = self._prompt[start : start + MAX_QUOTED]
        return (
            f"the model's chat template asks for an answer with {asks!r}, but does not write "
            f"messages[{self._number}] behind it, so that the model could not be asked for what it learned"
        )


@dataclass(frozen=True)
class _Encoding:
    """How one model's texts become tokens."""

    tokenizer: PreTrainedTokenizerBase
    stop_ids: Sequence[int]

    def encode(self, texts: list[str]) -> dict[str, list[int]]:
        # A chat template writes the special tokens itself.
        ids = self.tokenizer(texts, add_special_tokens=self.tokenizer.chat_template is None)["input_ids"]
        return dict(zip(texts, ids, strict=True))

    def continuation(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    @property
    def end(self) -> int:
        """What ends an answer where the template writes nothing that does."""
        end = self.tokenizer.eos_token_id
        return self.stop_ids[0] if end is None else int(end)


class Rows(Sequence[list[Example]]):
    """The examples of each row of a file, packed."""

    def __init__(self) -> None:
        self._token_ids, self._learned, self._ends = Runs(), Runs(), array("Q", [0])

    def append(self, examples: Sequence[Example]) -> None:
        for example in examples:
            self._token_ids.append(example.token_ids)
            self._learned.append(example.learned)
        self._ends.append(len(self._token_ids))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> list[Example]: ...
    @overload
    def __getitem__(self, at: slice) -> list[list[Example]]: ...
    def __getitem__(self, at: int | slice) -> list[Example] | list[list[Example]]:
        if isinstance(at, slice):
            return [self[number] for number in range(len(self))[at]]
        number = range(len(self))[at]
        examples = range(self._ends[number], self._ends[number + 1])
        return [Example([*self._token_ids[each]], [*self._learned[each]]) for each in examples]


def load(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    context_length: int,
    param: str,
    rendering: templating.Rendering = templating.PLAIN,
) -> Rows:
    """The examples of each row. Raises ``RunError`` on ``param`` that counts the unusable rows and names the first."""
    problems, rows = jsonl.Problems(), Rows()
    for part in jsonl.batches(path):
        for row in read(part, tokenizer, stop_ids, context_length, problems, rendering):
            rows.append(row)
    if problems.count or not rows:
        raise problems.refusal(param)
    return rows


def read(
    part: Sequence[tuple[int, bytes]],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    context_length: int,
    problems: jsonl.Problems,
    rendering: templating.Rendering = templating.PLAIN,
) -> list[list[Example]]:
    """The examples of each of these numbered lines; why the others have none is added to ``problems``."""
    encoding = _Encoding(tokenizer, stop_ids)
    asked: dict[int, list[_Asked]] = {}
    for number, raw in part:
        try:
            asked[number] = _asked(number, jsonl.parse(raw), tokenizer)
        except UnusableRowError as error:
            problems.add(number, error)
    texts_asked = [each for row in asked.values() for one in row for each in one.texts]
    written = iter(templating.render(texts_asked, tokenizer, rendering))
    turns: dict[int, list[_Turn]] = {}
    for number, row in asked.items():
        texts = [(one, [next(written) for _ in one.texts]) for one in row]
        try:
            turns[number] = [_turn(*each) for each in texts]
        except UnusableRowError as error:
            problems.add(number, error)
    whole = {text for row in turns.values() for turn in row for text in (turn.prompt, turn.whole)}
    encoded = encoding.encode(sorted(whole)) if whole else {}
    rows = []
    for number, learned in turns.items():
        try:
            together = _together(learned, encoded, encoding)
            examples = [together] if together else [_alone(turn, encoded, encoding) for turn in learned]
        except UnusableRowError as error:
            problems.add(number, error)
            continue
        longest = max(len(example.token_ids) for example in examples)
        if longest <= context_length:
            rows.append(examples)
        else:
            reason = f"has {longest} tokens; the model's context is {context_length}"
            problems.add(number, f"the conversation {reason}")
    return rows


def _asked(line: int, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[_Asked]:
    """What has to be written of each answer that is to be learned. Raises ``UnusableRowError``."""
    messages, tools = templating.messages_of(item, tokenizer), item.get("tools")
    learned = [n for n, each in enumerate(messages) if each["role"] == "assistant" and each.get("weight") != 0]
    if not learned:
        raise UnusableRowError("no message of the assistant is to be learned")
    asked = []
    for number in learned:
        texts = [templating.Asked(line, messages[:number], tools)]
        if tokenizer.chat_template is None:
            asked.append(_Asked(number, texts, said=messages[number]["content"] or ""))
            continue
        texts.append(templating.Asked(line, messages[: number + 1], tools, answer_next=False))
        asked.append(_Asked(number, texts))
    return asked


def _turn(asked: _Asked, written: Sequence[str | UnusableRowError]) -> _Turn:
    """Raises ``UnusableRowError``."""
    texts = []
    for text in written:
        if isinstance(text, UnusableRowError):
            raise text
        texts.append(text)
    prompt = texts[0]
    whole = prompt + asked.said if asked.said is not None else texts[1]
    if not whole.startswith(prompt):
        raise _UnaskableError(prompt, whole, asked.number)
    return _Turn(prompt, whole)


def _together(turns: list[_Turn], encoded: dict[str, list[int]], encoding: _Encoding) -> Example | None:
    """The whole conversation as one example; None where it does not begin with each of its prompts and answers."""
    if encoding.tokenizer.chat_template is None:
        return None
    ids = encoded[turns[-1].whole]
    learned: list[int] = []
    for turn in turns:
        prompt, whole = encoded[turn.prompt], encoded[turn.whole]
        if ids[: len(prompt)] != prompt or ids[: len(whole)] != whole:
            return None
        stop = _end_of_answer(ids, len(prompt), len(whole), encoding.stop_ids)
        if stop is None:
            return None
        learned += range(max(len(prompt), 1), stop)
    return Example(ids[: learned[-1] + 1], learned) if learned else None


def _alone(turn: _Turn, encoded: dict[str, list[int]], encoding: _Encoding) -> Example:
    """One answer behind its prompt."""
    prompt, ids = encoded[turn.prompt], encoded[turn.whole]
    if ids[: len(prompt)] != prompt:
        # The prompt's last characters and the answer's first would be one token. The model is asked with the prompt's
        # own tokens and goes on from there.
        ids = prompt + encoding.continuation(turn.whole[len(turn.prompt) :])
        if encoding.text(ids) != encoding.text(encoded[turn.whole]):
            raise UnusableRowError("the model's tokenizer cannot encode an answer apart from its prompt")
    stop = _end_of_answer(ids, len(prompt), len(ids), encoding.stop_ids)
    ids = [*ids, encoding.end] if stop is None else ids[:stop]
    learned = list(range(max(len(prompt), 1), len(ids)))
    if not learned:
        raise UnusableRowError("the model's chat template writes nothing for the assistant's message")
    return Example(ids, learned)


def _end_of_answer(ids: list[int], start: int, stop: int, stop_ids: Sequence[int]) -> int | None:
    """Where the answer ``ids[start:stop]`` ends: behind its first stop token, where sampling would end as well."""
    return next((place + 1 for place in range(start, stop) if ids[place] in stop_ids), None)
