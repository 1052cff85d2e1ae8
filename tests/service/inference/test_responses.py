"""Events of a serving worker become the items and the stream that the official client's types and helpers take."""

import json
from typing import Any

import pytest
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response as OfficialResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from service.core.errors import DomainError
from service.inference.responses.requests import ResponseRequest, as_chat, rename
from service.inference.responses.shapes import Response
from service.inference.wire import Delta, End, Event, Started, ToolCall, merged

CALLS = [ToolCall(id=f"call_{n}", name="weather", arguments=f'{{"day": {n}}}') for n in range(3)]
EVENTS: list[Event] = [
    Started(prompt_tokens=7),
    Delta(reasoning="h"),
    Delta(reasoning="m"),
    Delta(content="Let me "),
    Delta(content="see.", tool_calls=CALLS[:2]),
    Delta(tool_calls=CALLS[2:]),
    Delta(content="There."),
    End(finish_reason="tool_calls", tokens=20, reasoning_tokens=2),
]
official_events: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def body(**fields: Any) -> ResponseRequest:
    return ResponseRequest.model_validate({"model": "m", "input": "Hi", **fields})


def taken(events: list[Event], **fields: Any) -> tuple[Response, list[dict[str, Any]]]:
    response = Response("resp_1", body(**fields))
    return response, [told for event in events for told in response.take(event)]


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.items() if name != "id"} for item in items]


def test_a_whole_response_has_its_items_in_order() -> None:
    response, _ = taken(EVENTS)
    said = OfficialResponse.model_validate(response.object.model_dump())
    assert [item.type for item in said.output] == ["reasoning", "message", *["function_call"] * 3, "message"]
    assert said.output_text == "Let me see.There."
    reasoning, _, call, *_ = said.output
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert reasoning.content[0].text == "hm"
    assert call.type == "function_call"
    assert (call.call_id, call.name, call.arguments) == ("call_0", "weather", '{"day": 0}')
    assert said.status == "completed"
    assert said.usage is not None
    assert (said.usage.input_tokens, said.usage.output_tokens, said.usage.total_tokens) == (7, 20, 27)
    assert said.usage.output_tokens_details.reasoning_tokens == 2


def test_the_events_are_those_of_the_official_client_and_numbered() -> None:
    _, told = taken(EVENTS)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    for event in told:
        official_events.validate_python(event)
    kinds = [event["type"] for event in told]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.function_call_arguments.done") == 3
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 6


def test_the_clients_own_bookkeeping_ends_with_the_whole_response() -> None:
    response, told = taken(EVENTS)
    state: Any = ResponseStreamState(input_tools=[], text_format=omit)
    texts = ""
    for event in told:
        for fired in state.handle_event(official_events.validate_python(event)):
            texts += fired.delta if fired.type == "response.output_text.delta" else ""
    assert texts == "Let me see.There."
    assert [item.id for item in state._completed_response.output] == [item.id for item in response.object.output]


def test_what_comes_late_and_in_one_is_the_same_response() -> None:
    whole, streamed = (taken(events)[0].object.model_dump() for events in (merged(EVENTS), EVENTS))
    assert without_ids(whole["output"]) == without_ids(streamed["output"])


@pytest.mark.parametrize("delta", [Delta(content="cut"), Delta(reasoning="cut")])
def test_an_answer_that_is_cut_off_is_incomplete(delta: Delta) -> None:
    response, told = taken([Started(prompt_tokens=1), delta, End(finish_reason="length", tokens=3)])
    said = response.object
    assert said.status == said.output[0].status == "incomplete"
    assert said.incomplete_details is not None
    assert said.incomplete_details.reason == "max_output_tokens"
    assert told[-1]["type"] == "response.incomplete"


def test_a_model_that_says_nothing_has_an_empty_message() -> None:
    response, _ = taken([Started(prompt_tokens=1), End(finish_reason="stop", tokens=1)])
    assert OfficialResponse.model_validate(response.object.model_dump()).output_text == ""
    assert response.object.output[0].type == "message"


@pytest.mark.parametrize("before", [[], EVENTS[:1], EVENTS[:4]])
@pytest.mark.parametrize(("status", "code"), [(503, "server_error"), (429, "rate_limit_exceeded")])
def test_a_stream_that_fails_says_so_behind_its_beginning(before: list[Event], status: int, code: str) -> None:
    response, told = taken(before)
    told += response.fail(DomainError(status, "worker_lost", "It stopped."))
    assert told[0]["type"] == "response.created"
    last: Any = official_events.validate_python(told[-1])
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert (last.response.error.code, last.response.error.message) == (code, "It stopped.")


def test_items_become_the_messages_of_a_chat() -> None:
    """What was said with calls is one message, and a response's own output may come back as it is."""
    response, _ = taken(EVENTS[:-2] + EVENTS[-1:])
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "How is "}, {"type": "input_text", "text": "it?"}]},
        *response.object.model_dump()["output"],
        {"type": "function_call_output", "call_id": "call_0", "output": "sun"},
        {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "rain"}]},
    ]
    chat = as_chat(body(input=items, instructions="Be brief.")).model_dump(exclude_none=True)["messages"]
    assert [message["role"] for message in chat] == ["system", "user", "assistant", "tool", "tool"]
    assert [part["text"] for part in chat[1]["content"]] == ["How is ", "it?"]
    assert [call["id"] for call in chat[2]["tool_calls"]] == ["call_0", "call_1", "call_2"]
    assert [part["text"] for part in chat[2]["content"]] == ["Let me see."]
    assert [message["tool_call_id"] for message in chat[3:]] == ["call_0", "call_1"]


def test_the_effort_of_reasoning_is_that_of_a_chat() -> None:
    assert as_chat(body(reasoning={"effort": "high"})).reasoning_effort == "high"
    assert as_chat(body()).reasoning_effort is None


def test_calls_alone_are_a_message_without_content() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    (_, message) = as_chat(body(input=[{"role": "user", "content": "Hi"}, call])).messages
    assert (message.role, message.content) == ("assistant", None)


@pytest.mark.parametrize(
    ("message", "param", "renamed"),
    [
        ("x", "messages", "input"),
        ("x", "messages.0.content", "input"),
        ("x", "response_format", "text.format"),
        ("x", "response_format.json_schema.schema.properties.a", "text.format.schema.properties.a"),
        ("x", "tools.3.function.parameters.a", "tools.3.parameters.a"),
        ("x", "temperature", "temperature"),
        ("x", None, None),
    ],
)
def test_errors_name_the_fields_of_the_response(message: str, param: str | None, renamed: str | None) -> None:
    assert rename(DomainError(400, "invalid_value", message, param)).param == renamed


def test_messages_of_errors_name_them_too() -> None:
    error = rename(DomainError(400, "c", "'response_format' cannot be combined with 'tools'.", "response_format"))
    assert error.message == "'text.format' cannot be combined with 'tools'."


def test_formats_and_tools_come_back_as_they_were_asked() -> None:
    wanted = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    asked = {"metadata": {"a": "b"}, "max_output_tokens": 30, "reasoning": {"effort": "low", "summary": "auto"}}
    response, _ = taken(EVENTS, text={"format": wanted}, tools=[tool], **asked)
    said = OfficialResponse.model_validate(json.loads(response.object.model_dump_json()))
    assert said.text is not None
    assert said.text.format is not None
    assert said.text.format.to_dict() == wanted
    assert said.tools[0].to_dict(exclude_none=True) == tool
    assert said.reasoning is not None
    assert said.reasoning.effort == "low"
    assert (said.metadata, said.max_output_tokens, said.to_dict()["store"]) == ({"a": "b"}, 30, False)
