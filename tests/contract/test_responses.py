"""``/v1/responses`` with the official client: the same answers as chats, in the other shape."""

import json
from collections.abc import Callable
from typing import Any, Literal

import httpx2
import openai
import pytest
from pydantic import BaseModel

from tests.conftest import Key
from tests.contract.conftest import Official, Server
from tests.contract.serving import MODEL, ServingWorker, serving_worker

__all__ = ["serving_worker"]

SAID = "Hello there, fox."
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Of a day.",
    "parameters": {"type": "object", "properties": {"day": {"type": "integer"}}},
    "strict": False,
}
CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"day": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "sun"}

pytestmark = pytest.mark.usefixtures("serving_worker")


class Fox(BaseModel):
    size: Literal["small", "large"]
    quick: bool


def respond(client: openai.OpenAI, **options: Any) -> Any:
    """A short greedy answer, unless told otherwise."""
    defaults = {"model": MODEL, "input": SAID, "max_output_tokens": 12, "temperature": 0}
    return client.responses.create(**{**defaults, **options})


def chat(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_completion_tokens=12, **options
    )


def test_a_response_with_its_usage(official: Official) -> None:
    said = official.ask(respond(official.client))
    assert (said.object, said.model, said.status) == ("response", MODEL, "incomplete")
    assert said.incomplete_details.reason == "max_output_tokens"
    (message,) = said.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "incomplete")
    assert said.output_text == message.content[0].text
    assert said.usage.output_tokens == 12
    assert said.usage.total_tokens == said.usage.input_tokens + 12


def test_a_stream_says_what_the_whole_response_says(official: Official) -> None:
    asked = {"model": MODEL, "input": SAID, "max_output_tokens": 40, "temperature": 0}
    whole = official.ask(official.client.responses.create(**asked))
    events = official.everything(official.ask(official.client.responses.create(**asked, stream=True)))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    (done,) = (event.text for event in events if event.type == "response.output_text.done")
    assert "".join(deltas) == done == whole.output_text
    last = events[-1]
    assert (last.type, last.response.output_text) == ("response.incomplete", whole.output_text)
    assert last.response.usage == whole.usage


def test_a_response_that_ends_by_itself_is_completed(official: Official) -> None:
    wanted: Any = {"format": {"type": "json_schema", "name": "n", "schema": {"enum": ["yes"]}}}
    asked = {"model": MODEL, "input": SAID, "text": wanted}
    said = official.ask(official.client.responses.create(**asked))
    assert (said.status, said.incomplete_details, json.loads(said.output_text)) == ("completed", None, "yes")
    assert said.completed_at >= said.created_at
    events = official.everything(official.ask(official.client.responses.create(**asked, stream=True)))
    assert events[-1].type == "response.completed"


def test_parse_and_stream_of_the_client_give_objects(acme: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": SAID, "text_format": Fox, "temperature": 0}
    parsed = acme.responses.parse(**asked)
    assert isinstance(parsed.output_parsed, Fox)
    with acme.responses.stream(**asked) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_parsed == parsed.output_parsed
    assert "".join(texts) == final.output_text


def test_json_objects(acme: openai.OpenAI) -> None:
    said = respond(acme, text={"format": {"type": "json_object"}}, max_output_tokens=400)
    assert said.output_text.startswith("{")


def test_it_is_the_same_chat_under_another_name(acme: openai.OpenAI) -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": SAID}]},
        {"role": "assistant", "content": "Yes?"},
        CALL,
        OUTPUT,
    ]
    calls = [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"day": 1}'}}]
    messages = [
        {"role": "system", "content": "Speak."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": SAID},
        {"role": "assistant", "content": "Yes?", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
    ]
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    said = respond(acme, input=items, instructions="Speak.", tools=[WEATHER])
    expected = chat(acme, messages, tools=[{"type": "function", "function": function}])
    assert said.output_text == expected.choices[0].message.content
    assert said.usage.input_tokens == expected.usage.prompt_tokens


def told(client: openai.OpenAI, **values: Any) -> int:
    """How long a prompt is whose template is told ``values``."""
    return int(respond(client, extra_body={"chat_template_kwargs": values}).usage.input_tokens)


def test_the_template_is_told_what_the_request_says(acme: openai.OpenAI) -> None:
    plain = respond(acme).usage.input_tokens
    assert told(acme) == plain == told(acme, enable_thinking=True)
    assert told(acme, enable_thinking=False) > plain
    in_a_chat = chat(
        acme, [{"role": "user", "content": SAID}], extra_body={"chat_template_kwargs": {"enable_thinking": False}}
    )
    assert told(acme, enable_thinking=False) == in_a_chat.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"thinking": False}, "does not read 'thinking'. It reads: enable_thinking."),
        ({"max_tokens": 1}, "does not read 'max_tokens'"),
        ({"messages": []}, "'messages' is what the service itself tells"),
        ({"eos_token": "x"}, "'eos_token' is what the service itself tells"),
        ({"enable_thinking": "x" * 20_000}, "at most 16384 are allowed"),
        ([1], "an object"),
    ],
    ids=str,
)
def test_what_a_template_cannot_be_told_is_named(acme: openai.OpenAI, values: Any, why: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=why) as refusal:
        respond(acme, stream=stream, extra_body={"chat_template_kwargs": values})
    assert refusal.value.param == "chat_template_kwargs"


def test_output_may_be_sent_back_as_it_came(acme: openai.OpenAI) -> None:
    first = respond(acme)
    asked = {"role": "user", "content": SAID}
    again = respond(acme, input=[asked, *[item.to_dict() for item in first.output], asked])
    messages = [asked, {"role": "assistant", "content": first.output_text}, asked]
    assert again.output_text == chat(acme, messages).choices[0].message.content


def test_log_probabilities(acme: openai.OpenAI) -> None:
    said = respond(acme, include=["message.output_text.logprobs"], top_logprobs=2)
    scored = said.output[0].content[0].logprobs
    assert len(scored) == 12
    assert all(len(each.top_logprobs) == 2 and each.logprob == each.top_logprobs[0].logprob for each in scored)
    assert respond(acme).output[0].content[0].logprobs == []


def test_tools_are_shown_to_the_model(acme: openai.OpenAI) -> None:
    with_tools, without, ignored = (
        respond(acme, **options).usage.input_tokens
        for options in ({"tools": [WEATHER]}, {}, {"tools": [WEATHER], "tool_choice": "none"})
    )
    assert with_tools > without == ignored


def test_nothing_is_stored(acme: openai.OpenAI) -> None:
    said = respond(acme, store=True, metadata={"a": "b"}, user="me", reasoning={"effort": "low"})
    assert (said.to_dict()["store"], said.metadata) == (False, {"a": "b"})
    with pytest.raises(openai.NotFoundError) as refusal:
        acme.responses.retrieve(said.id)
    assert "not stored" in refusal.value.message


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [WEATHER], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [WEATHER], "text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "s"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "nonsense"}}}}, "text.format"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"type": "computer_call_output", "call_id": "c"}]}, "input.0"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input.0.arguments"),
        ({"input": "x y " * 3000}, "input"),
        ({"extra_body": {"messages": []}}, "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_served_is_refused_by_name(
    acme: openai.OpenAI, options: dict[str, Any], param: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        respond(acme, stream=stream, **options)
    assert (refusal.value.param or "").startswith(param), refusal.value.message
    assert "str" not in (refusal.value.param or "").split(".")


def test_unknown_models_are_not_found(official: Official) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        official.ask(official.client.responses.create(model="tiny/none", input=SAID))
    assert (refusal.value.code, refusal.value.param) == ("model_not_found", "model")


def test_a_strangers_models_are_not_found(connect: Callable[..., openai.OpenAI], new_key: Callable[..., Key]) -> None:
    with pytest.raises(openai.NotFoundError):
        respond(connect(new_key(organization="globex")), model="ft:tiny/talker:acme::12345678")


def test_frames_name_their_events(server: Server, api_key: Key) -> None:
    body = {"model": MODEL, "input": SAID, "max_output_tokens": 3, "stream": True}
    answer = httpx2.post(
        f"{server.base_url}/responses", json=body, headers={"Authorization": f"Bearer {api_key.plain}"}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = [frame.split("\n") for frame in answer.text.strip().split("\n\n") if not frame.startswith(":")]
    for name, data in frames:
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_a_model_that_dies_is_a_failed_response(acme: openai.OpenAI, serving_worker: ServingWorker) -> None:
    wanted: Any = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "array", "minItems": 1000}}}
    stream = iter(respond(acme, text=wanted, max_output_tokens=3500, stream=True))
    while next(stream).type != "response.output_text.delta":
        pass
    for host in serving_worker.hosts():
        host.kill()
    last = list(stream)[-1]
    assert (last.type, last.response.status, last.response.error.code) == ("response.failed", "failed", "server_error")
    assert respond(acme).output_text
