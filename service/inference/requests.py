"""Bodies of ``/v1/chat/completions`` and ``/v1/completions``: what is honoured, what is ignored, what is refused.

What one field says about another is checked where a body becomes a question, so that each error names its field.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from service.contracts.response_format import ResponseFormat
from service.contracts.spelling import Spelled

MAX_CHOICES = 128
MAX_BIASES = 1024

StopText = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
# Of a long list the first mistake is told: telling of each costs more than sending it.
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, fail_fast=True)]
Ignored = Annotated[Any, Field(None, description="Accepted, without effect.")]
TokenId = Annotated[str, Spelled("[0-9]{1,9}", "token ids, in digits, as names")]
LogitBias = dict[TokenId, Annotated[float, Field(ge=-100, le=100)]]
FunctionName = Annotated[str, Spelled("[A-Za-z0-9_.-]{1,64}", "1 to 64 letters, digits, '_', '.' and '-'")]


class TextPart(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["text"]
    text: str

    @field_validator("type", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "text":
            raise ValueError(f"models here read text only, no '{value[:40]}'")
        return value


class FunctionCall(BaseModel):
    name: str
    arguments: str


class MessageToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


class Message(BaseModel):
    """Only text is understood."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[MessageToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content")
        return self


class Function(BaseModel):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    type: Literal["function"]
    function: Function


class StreamOptions(BaseModel):
    include_usage: bool | None = None
    include_obfuscation: Ignored


class SamplingRequest(BaseModel):
    """What both endpoints take. A null is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=255)
    temperature: float | None = Field(None, ge=0, le=2, description="1 when left out; 0 is greedy.")
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    stop: StopText | Annotated[list[StopText], Field(max_length=16, fail_fast=True)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias | None = Field(
        None, max_length=MAX_BIASES, description="By token id of the model's own tokenizer."
    )
    user: Ignored


class ChatRequest(SamplingRequest):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, description="What is left of the context when left out.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto"] | None = Field(None, description="Calls cannot be forced.")
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="Told to the model's chat template, where it reads it."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="What the model's chat template is told beside the messages."
    )
    metadata: Ignored
    moderation: Ignored
    prediction: Ignored
    prompt_cache_key: Ignored
    prompt_cache_options: Ignored
    prompt_cache_retention: Ignored
    safety_identifier: Ignored
    service_tier: Ignored
    store: Ignored
    verbosity: Ignored


class CompletionRequest(SamplingRequest):
    """The body of ``POST /v1/completions``: prompts are continued as they are, without a chat template."""

    prompt: str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1, max_length=MAX_CHOICES)]
    max_tokens: int | None = Field(None, ge=1, description="16 when left out.")
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Only what `n` is.")
    suffix: None = None
