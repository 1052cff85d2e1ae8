"""What the API and a serving worker say to each other about one request: a question, then events until it is answered.

Text, not tokens, crosses over: the worker knows the model's template and tokenizer, the API knows OpenAI's shapes.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

HOLD_SECONDS = 1.0
"""How long parts of an answer that is not streamed are kept back, at most: so many fewer have to be read."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sampling(Frozen):
    """How to sample; ranges are those of the HTTP API, which has checked them."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int
    n: int = 1
    """Choices for each prompt."""
    max_tokens: int | None = None
    """Most tokens of a choice; what is left of the context when None."""
    stop: list[str] = []
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    """How many most likely tokens to tell beside each token's own log-probability; None tells nothing."""
    json_schema: dict[str, Any] | None = None
    """The answer has to be JSON of this schema."""


class Chat(Frozen):
    """Messages for the model's chat template, as the HTTP API took them."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    parallel_tool_calls: bool = True
    template_values: dict[str, Any] = {}
    """What the template is told beside them, by the names under which it reads them."""
    template_defaults: dict[str, Any] = {}
    """The same where ``template_values`` has nothing else; it may leave them unread."""


class Question(Frozen):
    """One request. Exactly one of ``chat`` and ``prompts`` is given; choice ``c`` answers prompt ``c // n``."""

    id: str
    model: str
    """The name it was asked for by, for messages."""
    model_path: str
    adapter_path: str | None = None
    """A LoRA adapter in peft's format, to be put on ``model_path``."""
    chat: Chat | None = None
    prompts: list[str | list[int]] = []
    """Texts or token ids that are continued as they are."""
    sampling: Sampling
    organization: str
    """Id of whose question it is; workers give each its share."""
    project: str | None = None
    """Id of whose prompt it is, where that is not the organisation's default project: how soon an answer comes must not
    tell a project what another asked.
    """
    stream: bool = True
    """Whether each part of the answer is told at once. Parts of others are told together, see ``HOLD_SECONDS``."""

    @property
    def tenant(self) -> str:
        """Whose prompt it is."""
        return self.project or self.organization

    def to_send(self) -> bytes:
        """As JSON. Workers of before do not know ``project``, and are not told of it where there is none."""
        return self.model_dump_json(exclude=None if self.project else {"project"}).encode()

    @property
    def choices(self) -> int:
        return self.sampling.n * (1 if self.chat is not None else len(self.prompts))


class Told(BaseModel):
    """Something that a worker says. What one of a newer version says besides is left out."""

    model_config = ConfigDict(frozen=True)


class Accepted(Told):
    """A worker has taken the question."""

    kind: Literal["accepted"] = "accepted"
    worker: str


class Started(Told):
    """The model is loaded and has taken the prompts: what can be wrong with the request is not."""

    kind: Literal["started"] = "started"
    prompt_tokens: int
    prompts: list[str] = []
    """The prompts' texts, where they were given as they are."""


class TokenLogprob(Told):
    token: str
    logprob: float
    top: list[tuple[str, float]] = []
    offset: int
    """Where the token's text begins in the choice's text, in characters."""


class ToolCall(Told):
    id: str
    name: str
    arguments: str
    """A JSON object."""


class Delta(Told):
    """More of a choice. Empty parts are left out."""

    kind: Literal["delta"] = "delta"
    choice: int = 0
    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    logprobs: list[TokenLogprob] = []

    def joined(self, other: "Delta") -> "Delta":
        """This and what follows it, in one."""
        return Delta(
            choice=self.choice,
            content=self.content + other.content,
            reasoning=self.reasoning + other.reasoning,
            logprobs=[*self.logprobs, *other.logprobs],
        )


class End(Told):
    """A choice is complete."""

    kind: Literal["end"] = "end"
    choice: int = 0
    finish_reason: Literal["stop", "length", "tool_calls"]
    tokens: int
    """Tokens that were sampled, the end-of-sequence token and what a stop string cut off included."""
    reasoning_tokens: int = 0


class Failed(Told):
    """Nothing more will come."""

    kind: Literal["failed"] = "failed"
    status: int
    code: str
    message: str
    param: str | None = None


Event = Annotated[Accepted | Started | Delta | End | Failed, Field(discriminator="kind")]
events = TypeAdapter(list[Event])


def merged(some: Sequence[Event]) -> list[Event]:
    """The same events with the deltas of a choice that follow each other as one: who is behind has less to read."""
    result: list[Event] = []
    last: dict[int, int] = {}
    for event in some:
        if isinstance(event, Delta) and not event.tool_calls:
            position = last.get(event.choice)
            before = None if position is None else result[position]
            if position is not None and isinstance(before, Delta) and not (before.content and event.reasoning):
                result[position] = before.joined(event)
                continue
            last[event.choice] = len(result)
        elif isinstance(event, Delta | End):
            last.pop(event.choice, None)
        result.append(event)
    return result
