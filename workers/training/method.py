"""What a method is to the workers: how its rows are counted before a job is queued, and how it trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from service.jobs.spec import RunSpec
from workers.data.jsonl import Problems
from workers.data.prompts import read_prompts
from workers.data.templating import Rendering
from workers.training.processes.channel import Channel
from workers.training.reporting.clock import Clock


@dataclass(frozen=True)
class Reading:
    """What rows are read with."""

    tokenizer: PreTrainedTokenizerBase
    ends: list[int]
    """Ids of the tokens that end an answer."""
    context_length: int
    rendering: Rendering


@dataclass(frozen=True)
class Counted:
    """Of some rows of a file."""

    rows: int
    """That can be trained on."""
    highest: int
    """The largest token id."""
    shortest_prompt: int | None = None
    """Tokens of the shortest prompt that is to be answered, if there is one."""


@dataclass(frozen=True)
class TrainingMethod:
    run: Callable[[RunSpec, Any, Channel, Clock], int]
    """Train, given the specification's method; the exit code. Raises ``RunError``."""
    count: Callable[[Sequence[tuple[int, bytes]], Reading, Problems], Counted]
    """Read numbered lines; why some cannot be trained on is added to the problems. Raises ``RunError``."""
    samples: bool = False
    """Whether answers are sampled, for which the context has to leave room."""
    out_of_memory: Mapping[str, str] = field(default_factory=dict)
    """What to say and advise by phase, where that is not what ``workers.training.errors`` says of it."""


def count_prompts(part: Sequence[tuple[int, bytes]], reading: Reading, problems: Problems) -> Counted:
    """Of rows that are to be answered."""
    prompts = read_prompts(part, reading.tokenizer, reading.context_length, problems, reading.rendering)
    return Counted(
        rows=len(prompts),
        highest=max((max(prompt.token_ids) for prompt in prompts), default=0),
        shortest_prompt=min((len(prompt.token_ids) for prompt in prompts), default=None),
    )
