"""What is looked at before a job is accepted and needs a worker's libraries: prompts in tokens, and the grader at work.

The control worker answers within ``SECONDS``. Where it does not, or ``AT_ONCE`` others are being looked at, the job is
accepted all the same, with a note: the training process counts tokens again and tells what graders do.
"""

import logging
import threading
import time
from pathlib import Path
from typing import Literal

import anyio
import anyio.from_thread
from pydantic import BaseModel, ConfigDict

from service.core import ask, broker
from service.core.errors import DomainError, invalid
from service.graders.schemas import Grader

SECONDS = 45.0
BUSY_SECONDS = 5.0
"""How long another question to the worker is waited for."""
AT_ONCE = 8
"""Jobs that a process of the API has looked at together: each holds a thread and a connection to the database, of which
others' requests need some."""
GRADER = "method.reinforcement.grader"

log = logging.getLogger(__name__)

_places = threading.BoundedSemaphore(AT_ONCE)


class Question(BaseModel):
    """``files`` are paths by the field of the request that named them; ``method`` is what they are for."""

    model_config = ConfigDict(frozen=True)

    method: Literal["supervised", "reinforcement"] = "reinforcement"

    model: Path | None
    files: dict[str, Path]
    grader: Grader | None


class Answer(BaseModel):
    """``problems`` forbid the job, by the field they are about; ``notes`` are for its events."""

    problems: dict[str, str] = {}
    notes: list[str] = []


def examine(question: Question) -> list[str]:
    """Notes for the job's events. Raises a 400 for what the worker finds, naming the field.

    Called from a thread of the server's event loop.
    """
    try:
        if not ask.attended():
            raise DomainError(503, "no_worker", "No control worker is running.")
        if not _places.acquire(blocking=False):
            raise DomainError(429, "worker_busy", f"{AT_ONCE} other jobs are being looked at.")
        try:
            found = anyio.from_thread.run(_asked, question)
        finally:
            _places.release()
    except DomainError as error:
        log.warning("a job was not examined: %s", error.message)
        reason = error.message.rstrip(".")
        untried = " and the grader was not tried" if question.grader else ""
        return [f"Rows were not counted in tokens{untried}: {reason}"]
    for param, message in found.problems.items():
        raise invalid(message, param, "invalid_grader" if param == GRADER else f"invalid_{param}")
    return found.notes


async def _asked(question: Question) -> Answer:
    content, give_up_at = question.model_dump(mode="json"), time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return Answer.model_validate(await ask.ask(broker.EXAMINE_JOB, content, SECONDS))
        except DomainError as error:
            if error.status != 429 or time.monotonic() > give_up_at:
                raise
        await anyio.sleep(0.5)
