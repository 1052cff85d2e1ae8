"""One choice, from tokens to what the API is told: reasoning, content, tool calls, log-probabilities, its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from service.inference.wire import Delta, End, Event, TokenLogprob, ToolCall
from workers.serving.host.engine import Token
from workers.serving.host.parts import Part
from workers.serving.host.text import Scanner
from workers.serving.host.tools import CLOSES, OPENS, parse
from workers.serving.host.vocabulary import Vocabulary


@dataclass(frozen=True)
class OutputFormat:
    """How the choices of one question are written."""

    stop: list[str]
    scored: bool
    """Whether tokens' log-probabilities are told."""
    prompt: Sequence[int]
    """What is answered or, where it is no chat, continued."""
    is_chat: bool = True
    tools: bool = False
    parallel_tool_calls: bool = True


class Writer:
    """Feed it every token of choice ``number``; it is done once it has given its ``End``."""

    def __init__(self, number: int, vocabulary: Vocabulary, output_format: OutputFormat) -> None:
        self._number, self._vocabulary, self._format = number, vocabulary, output_format
        parts_of = vocabulary.answer_to if output_format.is_chat else vocabulary.continuation_of
        self._parts = parts_of(output_format.prompt)
        self._stops = Scanner(output_format.stop)
        self._tools = ToolCalls() if output_format.tools else None
        self._scores: list[TokenLogprob] = []
        self._tokens = self._reasoning_tokens = 0
        self._decoded = self._released = 0
        """Characters of content, and those of them that no stop string can cut off any more."""
        self._has_content = False

    def take(self, token: Token) -> list[Event]:
        """What ``token`` makes certain; ends with an ``End`` when the choice is complete."""
        self._tokens += 1
        if token.end == "stop":
            self._reasoning_tokens += not self._parts.says
            return self._finish("stop")
        parts = self._parts.push(token.id)
        if not self._parts.says:
            self._reasoning_tokens += not self._has_content
        elif self._format.scored:
            self._scores.append(self._vocabulary.scored(token, self._decoded))
        events, ended = self._tell(parts)
        return events if ended or token.end is None else events + self._finish(token.end)

    def _tell(self, parts: Sequence[Part]) -> tuple[list[Event], bool]:
        """Take more of the answer; whether it completed the choice."""
        events: list[Event] = []
        for kind, text in parts:
            if kind == "thought":
                events += self._deltas(reasoning=text)
            elif kind == "said":
                said, ended = self._say(text)
                events += said
                if ended:
                    return events, True
        return events, False

    def _say(self, text: str) -> tuple[list[Event], bool]:
        """Take more content; whether it completed the choice."""
        self._has_content = self._has_content or bool(text.strip())
        self._decoded += len(text)
        content, stopped = self._stops.push(text)
        self._released += len(content)
        events, called = self._deliver(content)
        if called and not self._format.parallel_tool_calls:
            return [*events, self._end("stop")], True
        if stopped is None:
            return events, False
        return [*events, *self._rest(), self._end("stop")], True

    def _deliver(self, content: str) -> tuple[list[Event], bool]:
        calls: list[ToolCall] = []
        if self._tools is not None:
            content, calls = self._tools.push(content)
            if calls and not self._format.parallel_tool_calls:
                calls = calls[:1]
        return self._deltas(content=content, tool_calls=calls), bool(calls)

    def _rest(self) -> list[Event]:
        """What the search for tool calls still holds back."""
        if self._tools is None:
            return []
        content, calls = self._tools.flush()
        return self._deltas(content=content, tool_calls=calls)

    def _finish(self, reason: Literal["stop", "length"]) -> list[Event]:
        events, ended = self._tell(self._parts.flush())
        if ended:
            return events
        content = self._stops.flush()
        self._released += len(content) + 1  # Tokens without text of their own are told too.
        delivered, _ = self._deliver(content)
        return [*events, *delivered, *self._rest(), self._end(reason)]

    def _deltas(self, content: str = "", reasoning: str = "", tool_calls: list[ToolCall] | None = None) -> list[Event]:
        scores = [score for score in self._scores if score.offset < self._released]
        self._scores = self._scores[len(scores) :]
        if not (content or reasoning or tool_calls or scores):
            return []
        delta = Delta(
            choice=self._number, content=content, reasoning=reasoning, tool_calls=tool_calls or [], logprobs=scores
        )
        return [delta]

    def _end(self, reason: Literal["stop", "length"]) -> End:
        called = self._tools is not None and self._tools.found > 0 and reason == "stop"
        return End(
            choice=self._number,
            finish_reason="tool_calls" if called else reason,
            tokens=self._tokens,
            reasoning_tokens=self._reasoning_tokens,
        )


class ToolCalls:
    """Finds tool calls in content, each whole: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``."""

    def __init__(self) -> None:
        self.found = 0
        self._outside, self._inside = Scanner([OPENS]), Scanner([CLOSES])
        self._is_inside = False
        self._call = ""
        self._space = ""

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Content and calls that are certain. What looks like a call and is none stays content."""
        content = ""
        calls: list[ToolCall] = []
        while True:
            before, mark = (self._inside if self._is_inside else self._outside).push(text)
            text = ""
            if self._is_inside:
                self._call += before
            else:
                content += before
            if mark is None:
                return self._spaced(content, calls), calls
            if self._is_inside:
                call = parse(self._call)
                if call is None:
                    content += OPENS + self._call + CLOSES
                else:
                    self.found += 1
                    calls.append(call)
                text, self._call = self._inside.flush(), ""
            else:
                text = self._outside.flush()
            self._is_inside = not self._is_inside

    def flush(self) -> tuple[str, list[ToolCall]]:
        """What is left when the text has ended. A last call may lack its closing mark."""
        if not self._is_inside:
            return self._spaced(self._outside.flush(), []), []
        self._call += self._inside.flush()
        call = parse(self._call)
        if call is None:
            return self._spaced(OPENS + self._call, []), []
        self.found += 1
        return "", [call]

    def _spaced(self, content: str, calls: list[ToolCall]) -> str:
        """``content`` without white space at its end, which is kept back in case a call follows."""
        whole = ("" if calls or self.found else self._space) + content
        bare = whole.rstrip()
        self._space = whole[len(bare) :]
        return bare.lstrip() if self.found else bare
