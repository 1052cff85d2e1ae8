"""What ``/v1/responses`` answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

EVENT = {
    "type": "object",
    "description": "A frame of the stream. `event` is the `type` of the event that `data` is as JSON; the last one is "
    "`response.completed`, `response.incomplete` or `response.failed`.",
    "required": ["event", "data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}

Progress = Literal["in_progress", "completed", "incomplete"]


class ResponseTopLogprob(BaseModel):
    token: str
    bytes: list[int]
    """UTF-8; empty for a token that is only a part of a character."""
    logprob: float


class ResponseLogprob(ResponseTopLogprob):
    top_logprobs: list[ResponseTopLogprob]


class OutputText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[ResponseLogprob] = []


class ReasoningText(BaseModel):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str = ""


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Progress = "in_progress"
    content: list[OutputText] = []


class OutputReasoning(BaseModel):
    """What a model that reasons aloud wrote between ``<think>`` and ``</think>``."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: Progress = "in_progress"
    summary: list[Any] = []
    content: list[ReasoningText] = []


class OutputCall(BaseModel):
    id: str
    type: Literal["function_call"] = "function_call"
    status: Progress = "in_progress"
    call_id: str
    name: str
    arguments: str = Field("", description="A JSON object.")


OutputItem = Annotated[OutputMessage | OutputReasoning | OutputCall, Field(discriminator="type")]


class ResponseFailure(BaseModel):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class TextFormat(BaseModel):
    format: dict[str, Any]


class InputTokensDetails(BaseModel):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseTool(BaseModel):
    type: Literal["function"] = "function"
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class AskedReasoning(BaseModel):
    effort: str | None
    summary: None = None


class ResponseObject(BaseModel):
    """What was asked for comes back beside the answer. ``store`` is false whatever was asked: nothing is kept."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    text: TextFormat
    tools: list[ResponseTool]
    tool_choice: Literal["none", "auto"]
    parallel_tool_calls: bool
    metadata: dict[str, str]
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None
    reasoning: AskedReasoning
    truncation: Literal["disabled"] = "disabled"
    background: Literal[False] = False
    store: Literal[False] = False
    previous_response_id: None = None
    user: None = None
