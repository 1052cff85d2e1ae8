"""A run of a tracker, and the lines between the supervisor and the process that writes it."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True)


class Run(_Line):
    """One run. ``index`` is the integration's place in the job; ``settings`` are the integration's own."""

    index: int
    id: str
    name: str
    settings: dict[str, Any]


class Header(_Line):
    runs: list[Run]
    job_id: str
    model: str
    config: dict[str, Any]
    """The job's specification."""
    folder: Path
    """Where a library keeps its files; in W&B's offline mode these are the result."""


class Row(_Line):
    step: int
    time: float
    """Seconds since 1970."""
    numbers: dict[str, int | float]


class End(_Line):
    """How the attempt ended: for good, or ``preempted``: another one will go on with the same run."""

    end: Literal["succeeded", "failed", "preempted"]


class RunReport(_Line):
    """A line of standard output, about the run ``index``."""

    index: int
    url: str | None = None
    error: str | None = None
    lost: int = 0
    """Rows that it did not take because it had failed."""


class TrackedRun(ABC):
    """A run at work, in a process of its own. Whatever it raises ends it, and not the job."""

    title: ClassVar[str]
    url: str | None = None
    """Where people look at it."""
    step: int = 0
    """The first step that it lacks."""

    @abstractmethod
    def __init__(self, run: Run, header: Header) -> None:
        """Begin a run, or go on with the one that an earlier attempt began."""

    @staticmethod
    @abstractmethod
    def environment(folder: Path) -> dict[str, str]:
        """Variables that its process needs, of the operator's settings; ``folder`` is the header's."""

    @abstractmethod
    def log(self, row: Row) -> None:
        """Take a row, which may wait for ``flush``."""

    @abstractmethod
    def flush(self) -> None:
        """Send what waits: no further row is there for now."""

    @abstractmethod
    def finish(self, end: End) -> None:
        """End the run, or leave it to another attempt."""
