"""What the host asks of an engine: prompts in, one token of each running choice out at a time."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from service.inference.wire import Sampling


@dataclass(frozen=True)
class Key:
    """Which choice of which question."""

    question: str
    choice: int


@dataclass(frozen=True)
class Request:
    """One prompt and the choices that answer it."""

    keys: Sequence[Key]
    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int
    """Most tokens of a choice; prompt and choice together fit into the context."""
    adapter: Path | None = None
    grammar: Any = None
    """What the engine made of the schema that the answers have to fit."""
    organization: str = ""
    """Whose it is."""
    tenant: str = ""
    """Whose it is, of those who must not learn from how soon an answer comes what others asked."""


@dataclass(frozen=True)
class Token:
    """What one choice goes on with."""

    key: Key
    id: int
    end: Literal["stop", "length"] | None = None
    """Set with the last token; that of ``"stop"`` ends the sequence and is no text."""
    logprob: float = 0.0
    top: list[tuple[int, float]] = field(default_factory=list)
    """The most likely tokens, where they are wanted."""
    error: str | None = None
    """Why the answer fails, instead of a token; nothing follows."""


class RequestRefusedError(Exception):
    """A request that cannot be served as it is. ``param`` is the field of the HTTP request."""

    def __init__(self, message: str, param: str | None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class Engine(ABC):
    """One model, generating for many at a time. One thread uses it."""

    tokenizer: Any
    stop_ids: Sequence[int]
    context_length: int
    vocabulary_size: int

    @abstractmethod
    def grammar(self, sampling: Sampling, prompt: Sequence[int]) -> Any:
        """What holds answers to ``prompt`` to the schema, for ``Request``. Raises ``RequestRefusedError``.

        May be called in any thread.
        """

    @abstractmethod
    def add(self, request: Request) -> None:
        """Take a request; its tokens come from ``step``. Raises ``RequestRefusedError``."""

    @abstractmethod
    def drop(self, keys: Sequence[Key]) -> None:
        """Forget choices, whatever has become of them."""

    @abstractmethod
    def step(self) -> list[Token]:
        """The next token of some or all choices. Call it only while the engine is ``busy``."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether any choice is not complete."""
