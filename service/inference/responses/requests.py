"""The body of ``/v1/responses``, and the chat that it amounts to.

Nothing is kept between requests, so that whoever goes on with a conversation sends all of it: ``output`` of a response
may stand in the next ``input`` as it is.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, field_validator

from service.contracts.spelling import Spelled
from service.core.errors import DomainError, invalid
from service.inference.requests import ChatRequest, FunctionName, Ignored

MAX_METADATA = 16
LOGPROBS = "message.output_text.logprobs"

Included = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
Metadata = dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]]


class Part(BaseModel):
    """A part of a message: what somebody said, or what a model answered before."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["input_text", "output_text"]
    text: str

    @field_validator("type", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if value == "text":
            raise ValueError("a text is called 'input_text' here, or 'output_text' where a model said it")
        if isinstance(value, str) and value not in ("input_text", "output_text"):
            raise ValueError(f"models here read text only, no '{value[:40]}'")
        return value


Texts = str | Annotated[list[Part], Field(min_length=1, fail_fast=True)]


class InputMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["message"] = "message"
    role: Literal["developer", "system", "user", "assistant"]
    content: Texts


class CallItem(BaseModel):
    """A call of a function that the model made before."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutput(BaseModel):
    """What came of a call."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function_call_output"]
    call_id: str
    output: Texts


class ReasoningItem(BaseModel):
    """What the model thought before. It is taken, and not shown to the model again."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["reasoning"]


def _kind(item: Any) -> str | None:
    value = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return value if isinstance(value, str) else None


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutput, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _kind,
        custom_error_type="unknown_item",
        custom_error_message="an item is of type message, function_call, function_call_output or reasoning",
    ),
]


class FunctionTool(BaseModel):
    # First, so that of another tool it is this that is told.
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _is_function(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "function":
            raise ValueError(f"tools here are functions of yours, no '{value[:40]}'")
        return value


class Format(BaseModel):
    """What the answer has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Spelled("[A-Za-z0-9_-]{1,64}", "1 to 64 letters, digits, '_' and '-'")] | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class Text(BaseModel):
    format: Format | None = None
    verbosity: Ignored


class Reasoning(BaseModel):
    """``effort`` is a chat's ``reasoning_effort``; what else there may be has no effect."""

    model_config = ConfigDict(extra="ignore")

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class StreamOptions(BaseModel):
    include_obfuscation: Ignored


class ResponseRequest(BaseModel):
    """The body of ``POST /v1/responses``. A null is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=255)
    input: str | Annotated[list[Item], Field(min_length=1, fail_fast=True)]
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(None, ge=1, description="What is left of the context when left out.")
    temperature: float | None = Field(None, ge=0, le=2, description="1 when left out; 0 is greedy.")
    top_p: float | None = Field(None, ge=0, le=1)
    text: Text | None = None
    reasoning: Reasoning | None = None
    tools: list[FunctionTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto"] | None = Field(None, description="Calls cannot be forced.")
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = Field(None, max_length=MAX_METADATA)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="What the model's chat template is told beside the input."
    )
    include: list[Included] | None = Field(
        None, max_length=8, description="`message.output_text.logprobs` has an effect; the others are accepted."
    )
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Literal["disabled"] | None = Field(None, description="Nothing of the input is left out to make it fit.")
    store: bool | None = Field(None, description="Accepted, and answered as false: nothing is stored.")
    previous_response_id: str | None = Field(None, description="Refused: nothing is stored. Send the whole input.")
    conversation: Any = Field(None, description="Refused, as `previous_response_id` is.")
    background: bool | None = Field(None, description="Only false.")
    prompt: Any = Field(None, description="Refused: there are no stored prompts.")
    max_tool_calls: Ignored
    prompt_cache_key: Ignored
    prompt_cache_options: Ignored
    prompt_cache_retention: Ignored
    safety_identifier: Ignored
    service_tier: Ignored
    user: Ignored


def as_chat(body: ResponseRequest) -> ChatRequest:
    """The same request to ``/v1/chat/completions``. Raises a 400 for what would need something stored."""
    stored = {"previous_response_id": body.previous_response_id, "conversation": body.conversation}
    for name, value in stored.items():
        if value is not None:
            message = (
                f"'{name}' is not served: nothing is stored between requests. Send the whole conversation as 'input'."
            )
            raise invalid(message, name, "not_served")
    if body.prompt is not None:
        raise invalid("'prompt' is not served: there are no stored prompts. Send its text as 'input'.", "prompt")
    if body.background:
        raise invalid("'background' is not served: an answer is sent as it is made. Use 'stream'.", "background")
    scored = LOGPROBS in (body.include or [])
    if body.top_logprobs is not None and not scored:
        raise invalid(f"'top_logprobs' is allowed only with 'include': ['{LOGPROBS}'].", "top_logprobs")
    chat = {
        "model": body.model,
        "messages": _messages(body),
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "stream": body.stream,
        "logprobs": scored,
        "top_logprobs": body.top_logprobs,
        "response_format": _response_format(body),
        "reasoning_effort": body.reasoning and body.reasoning.effort,
        "chat_template_kwargs": body.chat_template_kwargs,
        "tools": _tools(body),
        "tool_choice": body.tool_choice,
        "parallel_tool_calls": body.parallel_tool_calls,
    }
    return ChatRequest.model_validate(chat)


def _messages(body: ResponseRequest) -> list[dict[str, Any]]:
    """The items as messages. What the model said in one turn, a text and calls, is one message."""
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    items = [InputMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    for item in items:
        if isinstance(item, InputMessage):
            messages.append({"role": item.role, "content": _text(item.content)})
        elif isinstance(item, CallItem):
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None, "tool_calls": []})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif isinstance(item, CallOutput):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
    if not messages:
        raise invalid("'input' holds nothing that can be answered.", "input")
    return messages


def _text(content: Texts) -> str | list[dict[str, str]]:
    return content if isinstance(content, str) else [{"type": "text", "text": part.text} for part in content]


def _response_format(body: ResponseRequest) -> dict[str, Any] | None:
    wanted = body.text.format if body.text is not None else None
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    if wanted.schema_ is None:
        raise invalid("A format of type json_schema needs a 'schema'.", "text.format.schema", "missing_parameter")
    return {"type": "json_schema", "json_schema": {"name": wanted.name or "answer", "schema": wanted.schema_}}


def _tools(body: ResponseRequest) -> list[dict[str, Any]] | None:
    tools = [each.model_dump(exclude_none=True, exclude={"type"}) for each in body.tools or []]
    return [{"type": "function", "function": each} for each in tools] or None


_NAMES = (
    (r"^messages\b.*", "input"),
    (r"^response_format\.json_schema\b", "text.format"),
    (r"^response_format\b", "text.format"),
    (r"^tools\.(\d+)\.function\b", r"tools.\1"),
    (r"^max_(completion_)?tokens$", "max_output_tokens"),
)
"""Fields of a chat, and what they are called here."""


@contextmanager
def renamed() -> Iterator[None]:
    """Errors about fields of the chat are told as errors about those of the response."""
    try:
        yield
    except DomainError as error:
        raise rename(error) from error


def rename(error: DomainError) -> DomainError:
    if error.param == "chat_template_kwargs":
        # It is called the same here, and the names in the message are the template's.
        return error
    message = re.sub(r"'([a-z_.0-9]+)'", lambda found: f"'{_name(found[1])}'", error.message)
    param = None if error.param is None else _name(error.param)
    return DomainError(error.status, error.code, message, param, error.headers)


def _name(field: str) -> str:
    for pattern, name in _NAMES:
        if re.match(pattern, field):
            return re.sub(pattern, name, field)
    return field
