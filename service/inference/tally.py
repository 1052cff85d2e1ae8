"""The tokens of a question, for the bill."""

from dataclasses import dataclass, field

from service.inference.wire import Delta, End, Event, Started

CHARACTERS_OF_A_TOKEN = 4
"""What counts for a token where nobody waited until its number was told."""


@dataclass
class Tally:
    input: int = 0
    _ended: int = 0
    _open: dict[int, int] = field(default_factory=dict)
    """Characters of choices that are not complete."""

    def take(self, event: Event | None) -> None:
        if isinstance(event, Started):
            self.input = event.prompt_tokens
        elif isinstance(event, Delta):
            called = sum(len(call.name) + len(call.arguments) for call in event.tool_calls)
            said = len(event.content) + len(event.reasoning) + called
            self._open[event.choice] = self._open.get(event.choice, 0) + said
        elif isinstance(event, End):
            self._open.pop(event.choice, None)
            self._ended += event.tokens

    @property
    def output(self) -> int:
        return self._ended + sum(-(-characters // CHARACTERS_OF_A_TOKEN) for characters in self._open.values())
