"""Events become what the official client's types take, tool calls and reasoning included."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from service.inference.shapes import AnswerBuilder
from service.inference.wire import Chat, Delta, End, Event, Question, Sampling, Started, ToolCall

CALLS = [ToolCall(id=f"call_{n}", name="weather", arguments=f'{{"day": {n}}}') for n in range(3)]
EVENTS: list[Event] = [
    Started(prompt_tokens=7),
    Delta(reasoning="hm"),
    Delta(content="Let me see."),
    Delta(tool_calls=CALLS[:2]),
    Delta(tool_calls=CALLS[2:]),
    End(finish_reason="tool_calls", tokens=20, reasoning_tokens=2),
]


@pytest.fixture
def answer() -> AnswerBuilder:
    chat = Chat(messages=[{"role": "user", "content": "Hi"}])
    return AnswerBuilder(
        Question(
            id="chatcmpl-1", model="m", model_path="/m", chat=chat, sampling=Sampling(seed=1), organization="org_1"
        )
    )


def test_a_whole_answer(answer: AnswerBuilder) -> None:
    for event in EVENTS:
        answer.take(event)
    said = ChatCompletion.model_validate(answer.chat().model_dump())
    message: Any = said.choices[0].message
    assert (message.content, message.reasoning_content) == ("Let me see.", "hm")
    assert [call.function.arguments for call in message.tool_calls] == [call.arguments for call in CALLS]
    assert said.choices[0].finish_reason == "tool_calls"
    assert said.usage is not None
    assert (said.usage.prompt_tokens, said.usage.completion_tokens, said.usage.total_tokens) == (7, 20, 27)
    assert said.usage.completion_tokens_details is not None
    assert said.usage.completion_tokens_details.reasoning_tokens == 2


def test_a_message_of_calls_alone_has_no_content(answer: AnswerBuilder) -> None:
    for event in (EVENTS[0], EVENTS[3], EVENTS[5]):
        answer.take(event)
    assert answer.chat().choices[0].message.content is None


def test_chunks(answer: AnswerBuilder) -> None:
    chunks = []
    for event in EVENTS:
        answer.take(event)
        chunks += [ChatCompletionChunk.model_validate(chunk) for chunk in answer.chat_chunks(event)]
    deltas: list[Any] = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert [delta.reasoning_content for delta in deltas if hasattr(delta, "reasoning_content")] == ["hm"]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert [(call.index, call.id) for call in calls] == [(n, f"call_{n}") for n in range(3)]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["tool_calls"]
