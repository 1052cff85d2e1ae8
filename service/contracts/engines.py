"""Which engines can sample a job's answers, and what each can do. ``workers.rollouts.registry`` has their classes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MEMORY_SHARE = 0.45
"""Of a GPU's memory, for an engine with weights of its own, where the operator says nothing."""
EngineName = Literal["transformers", "vllm"]


@dataclass(frozen=True)
class Engine:
    """What an engine can do. Hyperparameters that ask for more are refused."""

    title: str
    """What it is called in a sentence."""
    samples_ahead_in_processes: bool
    """Whether it can sample while several processes train the model: each has weights of its own to sample from."""
    is_split: bool
    """Whether its weights are split over processes that share it, where the operator says so; they sample together."""
    module: str
    """The package that has to be installed for it."""
    own_weights: bool
    """Whether it samples from a copy of the weights, beside those that are trained."""
    lowest_temperature: float = 0.0
    """What it samples at, without a word, when asked for a lower temperature that is not 0."""


ENGINES: dict[EngineName, Engine] = {
    "transformers": Engine(
        "transformers",
        samples_ahead_in_processes=False,
        is_split=False,
        module="transformers",
        own_weights=False,
    ),
    "vllm": Engine(
        "vLLM",
        samples_ahead_in_processes=True,
        is_split=True,
        module="vllm",
        own_weights=True,
        lowest_temperature=0.01,
    ),
}


def engines_that(can: Callable[[Engine], bool]) -> str:
    """The names of those that ``can``, for a sentence."""
    return " or ".join(f"'{name}'" for name, engine in ENGINES.items() if can(engine))
