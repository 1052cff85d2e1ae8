"""Events of a serving worker as a response: whole, and as the events of a streamed one."""

import time
from collections.abc import Iterator
from typing import Any, Literal

from service.core.errors import DomainError
from service.core.ids import new_id
from service.inference.responses.answers import (
    AskedReasoning,
    IncompleteDetails,
    OutputCall,
    OutputMessage,
    OutputReasoning,
    OutputText,
    OutputTokensDetails,
    ReasoningText,
    ResponseFailure,
    ResponseLogprob,
    ResponseObject,
    ResponseTool,
    ResponseTopLogprob,
    ResponseUsage,
    TextFormat,
)
from service.inference.responses.requests import ResponseRequest, rename
from service.inference.shapes import utf8
from service.inference.wire import Delta, End, Event, Started, TokenLogprob, ToolCall

StreamEvent = dict[str, Any]


class Response:
    """The response to ``body`` while it comes in.

    Reasoning, text and calls become items in the order in which the model makes them. ``take`` gives the events of a
    stream; whoever does not stream looks at ``object`` when all are taken.
    """

    def __init__(self, id: str, body: ResponseRequest) -> None:
        self.object = _begun(id, body)
        self._open: OutputMessage | OutputReasoning | None = None
        """The last item, while more may come to it."""
        self._prompt_tokens = 0
        self._number = -1
        """Of the last event."""

    def take(self, event: Event) -> list[StreamEvent]:
        """What ``event`` amounts to in a stream."""
        if isinstance(event, Started):
            self._prompt_tokens = event.prompt_tokens
            return list(self._begin())
        if isinstance(event, Delta):
            return list(self._more(event))
        if isinstance(event, End):
            return list(self._end(event))
        return []

    def fail(self, error: DomainError) -> list[StreamEvent]:
        """The end of a stream that cannot go on."""
        begun = [] if self._number >= 0 else list(self._begin())
        kind: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"] = "server_error"
        if error.status < 500:
            kind = "rate_limit_exceeded" if error.status == 429 else "invalid_prompt"
        self.object.status = "failed"
        self.object.error = ResponseFailure(code=kind, message=rename(error).message)
        return [*begun, self._lifecycle("response.failed")]

    def _begin(self) -> Iterator[StreamEvent]:
        yield self._lifecycle("response.created")
        yield self._lifecycle("response.in_progress")

    def _more(self, delta: Delta) -> Iterator[StreamEvent]:
        if delta.reasoning:
            if not isinstance(self._open, OutputReasoning):
                yield from self._close()
                yield from self._open_item(OutputReasoning(id=new_id("rs_"), content=[ReasoningText()]))
            assert isinstance(self._open, OutputReasoning)
            self._open.content[0].text += delta.reasoning
            yield self._of_part("response.reasoning_text.delta", delta=delta.reasoning)
        # Tokens of calls and of the end have scores and no text of their own.
        if delta.content or (delta.logprobs and isinstance(self._open, OutputMessage)):
            if not isinstance(self._open, OutputMessage):
                yield from self._close()
                yield from self._open_item(OutputMessage(id=new_id("msg_"), content=[OutputText()]))
            assert isinstance(self._open, OutputMessage)
            text, scored = self._open.content[0], [_scored(each) for each in delta.logprobs]
            text.text += delta.content
            text.logprobs += scored
            yield self._of_part("response.output_text.delta", delta=delta.content, logprobs=_dumped(scored))
        for call in delta.tool_calls:
            yield from self._close()
            yield from self._call(call)

    def _end(self, end: End) -> Iterator[StreamEvent]:
        if not self.object.output:
            # A model that ends at once has said nothing, which is a message too.
            yield from self._open_item(OutputMessage(id=new_id("msg_"), content=[OutputText()]))
        cut = end.finish_reason == "length"
        yield from self._close("incomplete" if cut else "completed")
        self.object.status = "incomplete" if cut else "completed"
        self.object.incomplete_details = IncompleteDetails() if cut else None
        self.object.completed_at = None if cut else int(time.time())
        self.object.usage = ResponseUsage(
            input_tokens=self._prompt_tokens,
            output_tokens=end.tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=end.reasoning_tokens),
            total_tokens=self._prompt_tokens + end.tokens,
        )
        yield self._lifecycle(f"response.{self.object.status}")

    def _open_item(self, item: OutputMessage | OutputReasoning) -> Iterator[StreamEvent]:
        self._open = item
        self.object.output.append(item)
        # The part comes with an event of its own.
        yield self._event("response.output_item.added", item=item.model_dump() | {"content": []}, **self._where())
        yield self._of_part("response.content_part.added", part=item.content[0].model_dump())

    def _close(self, status: Literal["completed", "incomplete"] = "completed") -> Iterator[StreamEvent]:
        item = self._open
        if item is None:
            return
        item.status = status
        part = item.content[0]
        if isinstance(part, OutputText):
            yield self._of_part("response.output_text.done", text=part.text, logprobs=_dumped(part.logprobs))
        else:
            yield self._of_part("response.reasoning_text.done", text=part.text)
        yield self._of_part("response.content_part.done", part=part.model_dump())
        yield self._event("response.output_item.done", item=item.model_dump(), **self._where())
        self._open = None

    def _call(self, call: ToolCall) -> Iterator[StreamEvent]:
        item = OutputCall(id=new_id("fc_"), call_id=call.id, name=call.name)
        self.object.output.append(item)
        where = self._where()
        yield self._event("response.output_item.added", item=item.model_dump(), **where)
        item.arguments, item.status = call.arguments, "completed"
        kind, about = "response.function_call_arguments", {"item_id": item.id, **where}
        yield self._event(f"{kind}.delta", delta=item.arguments, **about)
        yield self._event(f"{kind}.done", arguments=item.arguments, **about)
        yield self._event("response.output_item.done", item=item.model_dump(), **where)

    def _where(self) -> dict[str, int]:
        return {"output_index": len(self.object.output) - 1}

    def _of_part(self, kind: str, **about: Any) -> StreamEvent:
        assert self._open is not None
        return self._event(kind, item_id=self._open.id, content_index=0, **about, **self._where())

    def _lifecycle(self, kind: str) -> StreamEvent:
        return self._event(kind, response=self.object.model_dump())

    def _event(self, kind: str, **about: Any) -> StreamEvent:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **about}


def _begun(id: str, body: ResponseRequest) -> ResponseObject:
    asked = body.text.format if body.text is not None else None
    wanted = {"type": "text"} if asked is None else asked.model_dump(exclude_none=True, by_alias=True)
    return ResponseObject(
        id=id,
        created_at=int(time.time()),
        model=body.model,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_logprobs=body.top_logprobs or 0,
        text=TextFormat(format=wanted),
        tools=[ResponseTool(**each.model_dump(exclude={"type"})) for each in body.tools or []],
        tool_choice=body.tool_choice or "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
        metadata=body.metadata or {},
        reasoning=AskedReasoning(effort=body.reasoning.effort if body.reasoning is not None else None),
    )


def _scored(token: TokenLogprob) -> ResponseLogprob:
    top = [ResponseTopLogprob(token=t, logprob=p, bytes=utf8(t) or []) for t, p in token.top]
    return ResponseLogprob(token=token.token, logprob=token.logprob, bytes=utf8(token.token) or [], top_logprobs=top)


def _dumped(scored: list[ResponseLogprob]) -> list[dict[str, Any]]:
    return [each.model_dump() for each in scored]
