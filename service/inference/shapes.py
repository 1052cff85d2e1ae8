"""Events of a serving worker in OpenAI's shapes: whole answers, and the chunks of streamed ones."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from service.inference.answers import (
    AnswerMessage,
    CalledFunction,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionTokensDetails,
    ContentLogprob,
    ToolCall,
    TopLogprob,
    Usage,
)
from service.inference.wire import Delta, End, Event, Question, Started, TokenLogprob


@dataclass
class Choice:
    """One choice, put together from its deltas."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: End | None = None

    def finish_reason(self) -> Any:
        assert self.end is not None, "the events ended before the choice did"
        return self.end.finish_reason


class AnswerBuilder:
    """The answer to ``question`` while it comes in."""

    def __init__(self, question: Question, *, echo: bool = False) -> None:
        self._question, self._echo = question, echo
        self.choices = [Choice() for _ in range(question.choices)]
        self.created = int(time.time())
        self._started: Started | None = None
        self._scored = question.sampling.logprobs is not None

    def take(self, event: Event) -> None:
        if isinstance(event, Started):
            self._started = event
        elif isinstance(event, Delta):
            choice = self.choices[event.choice]
            choice.content += event.content
            choice.reasoning += event.reasoning
            choice.tool_calls += _tool_calls(event)
            choice.logprobs += event.logprobs
        elif isinstance(event, End):
            self.choices[event.choice].end = event

    def usage(self) -> Usage:
        assert self._started is not None
        ends = [choice.end for choice in self.choices if choice.end is not None]
        prompt, completion = self._started.prompt_tokens, sum(end.tokens for end in ends)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=sum(end.reasoning_tokens for end in ends)
            ),
        )

    def chat(self) -> ChatCompletion:
        return ChatCompletion(
            id=self._question.id,
            created=self.created,
            model=self._question.model,
            choices=[
                ChatChoice(
                    index=index,
                    message=AnswerMessage(
                        content=choice.content if choice.content or not choice.tool_calls else None,
                        reasoning_content=choice.reasoning or None,
                        tool_calls=choice.tool_calls or None,
                    ),
                    finish_reason=choice.finish_reason(),
                    logprobs=_chat_logprobs(choice.logprobs) if self._scored else None,
                )
                for index, choice in enumerate(self.choices)
            ],
            usage=self.usage(),
        )

    def completion(self) -> Completion:
        return Completion(
            id=self._question.id,
            created=self.created,
            model=self._question.model,
            choices=[
                CompletionChoice(
                    index=index,
                    text=self._echoed(index) + choice.content,
                    finish_reason=choice.finish_reason(),
                    logprobs=_completion_logprobs(choice.logprobs) if self._scored else None,
                )
                for index, choice in enumerate(self.choices)
            ],
            usage=self.usage(),
        )

    def chat_chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks that ``event`` amounts to."""
        if isinstance(event, Started):
            for index in range(len(self.choices)):
                yield self._chunk("chat.completion.chunk", index, delta={"role": "assistant", "content": ""})
        elif isinstance(event, Delta):
            first_call = len(self.choices[event.choice].tool_calls) - len(event.tool_calls)
            calls = [call.model_dump() | {"index": first_call + i} for i, call in enumerate(_tool_calls(event))]
            named = (("content", event.content), ("reasoning_content", event.reasoning), ("tool_calls", calls))
            delta = {name: value for name, value in named if value}
            logprobs = _chat_logprobs(event.logprobs).model_dump() if event.logprobs else None
            yield self._chunk("chat.completion.chunk", event.choice, delta=delta, logprobs=logprobs)
        elif isinstance(event, End):
            yield self._chunk("chat.completion.chunk", event.choice, event.finish_reason, delta={})

    def completion_chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks that ``event`` amounts to."""
        if isinstance(event, Started) and self._echo:
            for index in range(len(self.choices)):
                yield self._chunk("text_completion", index, text=self._echoed(index))
        elif isinstance(event, Delta):
            logprobs = _completion_logprobs(event.logprobs).model_dump() if event.logprobs else None
            yield self._chunk("text_completion", event.choice, text=event.content, logprobs=logprobs)
        elif isinstance(event, End):
            yield self._chunk("text_completion", event.choice, event.finish_reason, text="")

    def usage_chunk(self, kind: Literal["chat.completion.chunk", "text_completion"]) -> dict[str, Any]:
        return self._envelope(kind) | {"choices": [], "usage": self.usage().model_dump()}

    def _chunk(self, kind: str, index: int, finish_reason: str | None = None, **parts: Any) -> dict[str, Any]:
        choice = {"index": index, "logprobs": None, "finish_reason": finish_reason} | parts
        return self._envelope(kind) | {"choices": [choice]}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self._question.id, "object": kind, "created": self.created, "model": self._question.model}

    def _echoed(self, index: int) -> str:
        if not self._echo or self._started is None:
            return ""
        return self._started.prompts[index // self._question.sampling.n]


def _tool_calls(event: Delta) -> list[ToolCall]:
    return [
        ToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
        for call in event.tool_calls
    ]


def _chat_logprobs(scored: Sequence[TokenLogprob]) -> ChatLogprobs:
    content = [
        ContentLogprob(
            token=each.token,
            logprob=each.logprob,
            bytes=utf8(each.token),
            top_logprobs=[TopLogprob(token=t, logprob=p, bytes=utf8(t)) for t, p in each.top],
        )
        for each in scored
    ]
    return ChatLogprobs(content=content)


def _completion_logprobs(scored: Sequence[TokenLogprob]) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[each.token for each in scored],
        token_logprobs=[each.logprob for each in scored],
        # OpenAI adds the sampled token to the most likely ones, and so does this.
        top_logprobs=[{each.token: each.logprob, **dict(each.top)} for each in scored],
        text_offset=[each.offset for each in scored],
    )


def utf8(token: str) -> list[int] | None:
    return None if "\N{REPLACEMENT CHARACTER}" in token else list(token.encode())
