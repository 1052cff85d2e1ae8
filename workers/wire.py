"""What a supervisor and its training child tell each other: JSON lines on a Unix socket.

The child has no database, no Redis and no credentials; these lines are all that leaves it. Event lines that would be
told again after a resume carry a ``key``; the sink records each key of a job once. The supervisor sends two lines at
most: ``Start``, which a warm child waits for, and ``Stop``. Either side takes the end of the stream as the other's end.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

RESUMABLE = 2
"""How many of a job's newest checkpoints keep what a resume needs beside the weights."""


def _characters(value: Any) -> Any:
    """``value`` without halves of surrogate pairs, which JSON may bring and no UTF-8 can hold."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_characters(name): _characters(each) for name, each in value.items()}
    return [_characters(each) for each in value] if isinstance(value, list) else value


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Event(_Line):
    """Something a user should see. ``type="metrics"`` carries the numbers of one step in ``data``."""

    line: Literal["event"] = "event"
    type: Literal["message", "metrics"] = "message"
    level: Literal["info", "warn", "error"] = "info"
    message: Annotated[str, BeforeValidator(_characters)]
    data: Annotated[dict[str, Any] | None, BeforeValidator(_characters)] = None
    key: str | None = None


class Progress(_Line):
    """Where the run is. ``seconds_left`` is an estimate."""

    line: Literal["progress"] = "progress"
    step: int
    total_steps: int
    trained_tokens: int
    seconds_left: float | None = None


class Checkpoint(_Line):
    """A checkpoint that is complete on disk: its manifest was written last and the folder renamed into place."""

    line: Literal["checkpoint"] = "checkpoint"
    step: int
    path: Path
    metrics: dict[str, float | None]


class Result(_Line):
    """The run is over and the final model is complete on disk at ``model_path``."""

    line: Literal["result"] = "result"
    model_path: Path
    step: int
    trained_tokens: int
    metrics: dict[str, float | None]


class Evaluated(_Line):
    """The run is over, after ``step`` steps. What it was to find out is in its events, and it made no model."""

    line: Literal["evaluated"] = "evaluated"
    step: int


class Failure(_Line):
    """Why the child is about to exit. ``code`` and ``param`` become those of the job's error."""

    line: Literal["failure"] = "failure"
    code: str
    message: Annotated[str, BeforeValidator(_characters)]
    param: str | None = None


Line = Annotated[Event | Progress | Checkpoint | Result | Evaluated | Failure, Field(discriminator="line")]
_adapter: TypeAdapter[Line] = TypeAdapter(Line)


def parse(raw: bytes) -> Line:
    """Parse one line. Raises ``pydantic.ValidationError`` on anything else."""
    return _adapter.validate_json(raw)


class Start(_Line):
    """Supervisor to child: run the ``RunSpec`` stored at ``run``."""

    line: Literal["start"] = "start"
    run: Path


class Stop(_Line):
    """Supervisor to child: finish the step at hand, save a checkpoint and exit with ``ExitCode.STOPPED``."""

    line: Literal["stop"] = "stop"


Command = Annotated[Start | Stop, Field(discriminator="line")]
_command_adapter: TypeAdapter[Command] = TypeAdapter(Command)


def parse_command(raw: bytes) -> Command:
    """Parse one line of the supervisor. Raises ``pydantic.ValidationError`` on anything else."""
    return _command_adapter.validate_json(raw)


class ExitCode:
    """The child's exit codes (after sysexits.h); ``workers.jobs.outcome`` says what follows from each."""

    DONE = 0
    USER_ERROR = 64
    """The job cannot succeed as specified: bad data, a model that does not load, a non-finite loss."""
    GRADER_ERROR = 65
    """The grader failed on more samples than is tolerated."""
    GRADER_AWAY = 68
    """A judge or a scoring service does not answer; what was trained is in a checkpoint."""
    UNAVAILABLE = 69
    """The machine lacks something for now: no GPU, the rollout engine does not start."""
    BUG = 70
    """An unexpected exception."""
    NO_ROOM = 73
    """A disk is full."""
    STOPPED = 75
    """Asked to stop; a checkpoint was saved."""
