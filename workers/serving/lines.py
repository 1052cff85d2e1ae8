"""What a serving worker and the host of one model say to each other: JSON, one message a line."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from service.inference.wire import Event, Failed, Question


class Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Options(Line):
    """What a host is started with."""

    model_path: str
    engine: Literal["transformers", "vllm"]
    lora_rank: int = 0
    """Rank that adapters may have, for vLLM, which has to know before it starts."""
    memory_share: float


class Ask(Line):
    ask: Question
    text: str | None
    """What the model is shown of a chat."""


class Forget(Line):
    forget: str
    """Id of a question."""


class Ready(Line):
    """The first line of a host that has its model."""

    used_bytes: int
    """Memory that the model takes, without what it generates."""
    total_bytes: int
    """Memory of the device."""
    chat_template: str | None = None
    tools_template: str | None = None
    """The template for chats with tools, which some tokenizers have beside the other."""
    special_tokens: dict[str, Any] = {}
    can_call: bool = False
    """Whether the model's tool calls can be told from text."""


class Unloadable(Line):
    """The only line of a host that cannot load its model."""

    failed: Failed


class QuestionEvents(Line):
    """Events of one question; without any, that there are some which are told later."""

    id: str
    events: list[Event]


to_host: TypeAdapter[Ask | Forget] = TypeAdapter(Ask | Forget)
from_host: TypeAdapter[QuestionEvents | Ready | Unloadable] = TypeAdapter(QuestionEvents | Ready | Unloadable)


def encode(line: Line) -> bytes:
    return line.model_dump_json().encode() + b"\n"
