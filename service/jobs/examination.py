"""What is looked at before a job is queued: its rows, prompts in tokens, and the grader at work.

What the control worker has not found out when the request must be answered, it finds out while the job is in
``validating_files``. A row of ``examinations`` is the question, and keeps the answer; a Celery message and a Redis list
only tell that there is one.
"""

import json
import time
from pathlib import Path
from typing import Any

import anyio
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.exceptions import RedisError

from service.core import live
from service.core.errors import DomainError, invalid
from service.files import dataset
from service.graders.schemas import Grader
from service.jobs import check
from service.jobs.methods.registry import MethodName

CODES = {"response_format": "invalid_json_schema"}
"""By the field's last name, where the code of a refusal is not made of that."""
ANSWER_TTL_SECONDS = 60


class Question(BaseModel):
    """``files`` are paths by the field of the request that named them; ``method`` is what they are for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: MethodName = "reinforcement"

    model: Path | None
    files: dict[str, Path]
    grader: Grader | None
    graders: dict[str, Grader] = {}
    """Those that files have of their own, by the field of the request that names the file."""
    chat_template_kwargs: dict[str, Any] = {}
    reasoning_effort: str | None = None
    """What a template is told under this name if it reads it."""
    json_schema: dict[str, Any] | None = None
    """What answers will be held to."""
    files_checked: bool = True
    """Whether ``check_files`` found no problem; else it is part of the examination."""
    warnings: list[str] = []
    """What it found otherwise."""
    counts: str = ""
    """How many rows the files have, in words, for the job's events."""

    def grader_of(self, param: str) -> Grader | None:
        """What grades answers to the rows of a file."""
        return self.graders.get(param, self.grader)

    @property
    def evaluated(self) -> dict[str, Path]:
        """The files that are not trained on, by what they are called in a sentence."""
        names = {param: "the validation file" if param == "validation_file" else param for param in self.files}
        return {names[param]: path for param, path in self.files.items() if param != "training_file"}

    def at(self, part: str) -> str:
        """The field of the request that holds ``part`` of the method."""
        return f"method.{self.method}.{part}"


class Findings(BaseModel):
    """``problems`` forbid the job, by the field they are about; ``notes`` and ``warnings`` are for its events."""

    problems: dict[str, str] = {}
    notes: list[str] = []
    """What was left out of the examination."""
    warnings: list[str] = []
    """What may be wrong with the files."""
    longest_answer: int | None = None
    """How many tokens the context leaves for an answer to the shortest prompt; None where it was not found out."""


def check_files(question: Question, give_up_at: float | None = None) -> Findings:
    """What is wrong with the files, without a model. Raises ``TimeoutError`` at ``give_up_at``, a monotonic time."""
    answer = Findings()
    for param, path in question.files.items():
        report = check.report_on(path, question.method, question.grader_of(param), give_up_at)
        if report.problems:
            answer.problems[param] = dataset.summarise(report)
    if not answer.problems:
        training = question.files.get("training_file")
        trained = {} if training is None else {"the training file": training}
        answer.warnings = check.warnings(trained, question.evaluated, give_up_at)
    return answer


def read_answer(raw: Any) -> Findings:
    """What a control worker, of whatever version, has found. What an answer says beyond this version is left out."""
    try:
        return Findings.model_validate(raw)
    except ValidationError:
        return Findings(
            notes=["What was found out about the files cannot be read: the control worker is of another version"]
        )


def refusal(answer: Findings) -> DomainError | None:
    """The 400 that a request gets whose job cannot be taken, naming the first field."""
    for param, message in answer.problems.items():
        name = param.rpartition(".")[2]
        return invalid(message, param, CODES.get(name, f"invalid_{name}"))
    return None


def publish(id: str, answer: Findings) -> None:
    """Tell whoever waits for it that the examination of job ``id`` is over. Raises ``redis.RedisError``."""
    with live.client().pipeline(transaction=True) as pipe:
        pipe.rpush(_name(id), answer.model_dump_json())
        pipe.expire(_name(id), ANSWER_TTL_SECONDS)
        pipe.execute()


async def answer_to(id: str, until: float) -> Findings | None:
    """What was found out about job ``id``; None when that is not known ``until`` then, a monotonic time."""
    client: Any = live.asynchronous()
    try:
        while (left := until - time.monotonic()) > 0:
            found = await client.blpop([_name(id)], timeout=min(left, 1.0))
            if found is not None:
                return read_answer(json.loads(found[1]))
    except RedisError:
        await anyio.sleep(max(0.0, until - time.monotonic()))
    finally:
        await client.aclose()
    return None


def _name(id: str) -> str:
    return f"examined:{id}"
