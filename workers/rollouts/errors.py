"""Why a rollout engine with weights of its own cannot go on. Each message says what to change."""

from collections.abc import Sequence


class EngineUnavailableError(Exception):
    """The engine does not start, or died. The same job may succeed on another machine or with other settings."""


class EngineDiedError(EngineUnavailableError):
    """The engine failed while it was at work; what it had in hand is lost and it takes nothing more."""


class StaleWeightsError(Exception):
    """The engine holds no weights that may be sampled from: the last push did not complete, or none was made."""


class PromptsTooLongError(Exception):
    """Prompts that leave no room for an answer."""

    def __init__(self, lengths: Sequence[int], context_length: int) -> None:
        self.rows = [row for row, length in enumerate(lengths) if length >= context_length]
        named = ", ".join(f"{row} ({lengths[row]} tokens)" for row in self.rows[:5])
        more = f" and {len(self.rows) - 5} more" if len(self.rows) > 5 else ""
        super().__init__(
            f"Prompts {named}{more} do not fit into the context of {context_length} tokens together with an answer of "
            "at least one. Shorten or remove these rows, or raise the context length if the model allows it."
        )
