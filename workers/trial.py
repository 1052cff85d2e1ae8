"""Running a grader on one answer for somebody who waits, beside the control worker's own duties."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, TypeAdapter

from service.core import ask
from service.graders import schemas
from service.graders.configured import grader_settings
from service.graders.schemas import GraderError
from service.graders.trial import RanGrader, RunErrors, RunMetadata
from service.jobs.examination import SECONDS, Question
from workers.examination import examine
from workers.graders import Grade, JailError, Sample, build

_definition: TypeAdapter[schemas.Grader] = TypeAdapter(schemas.Grader)
# One at a time: a slow grader must never hold up the sweep, which shares this worker's threads.
_lane = threading.Lock()

EXAMINE_SECONDS = SECONDS - 5.0
"""A little less than the API waits: an answer that nobody waits for any more would be work for nothing."""

log = logging.getLogger(__name__)


def answer(id: str, question: dict[str, Any]) -> None:
    """Grade what question ``id`` asks and tell whoever waits."""
    in_lane(id, lambda: run(question["grader"], question["model_sample"], question["item"]))


def answer_about_job(id: str, question: dict[str, Any]) -> None:
    """Look at the job that question ``id`` is about and tell whoever waits."""
    in_lane(id, lambda: examine(Question.model_validate(question), EXAMINE_SECONDS))


def in_lane(id: str, work: Callable[[], BaseModel]) -> None:
    """Answer question ``id`` with what ``work`` returns, unless another one is being worked on."""
    if not _lane.acquire(blocking=False):
        ask.reply(id, ask.BUSY)
        return
    try:
        ask.reply(id, ask.ACCEPTED)
        ask.reply(id, ask.ANSWER, work().model_dump(mode="json"))
    except Exception:
        ask.reply(id, ask.FAILED)
        raise
    finally:
        _lane.release()


def run(definition: dict[str, Any], model_sample: str, item: dict[str, Any]) -> RanGrader:
    """The reward of one answer, or the flags that say why there is none."""
    grader = _definition.validate_python(definition)
    began = time.perf_counter()
    try:
        (grade,) = build(grader, grader_settings()).grade([Sample(item=item, output_text=model_sample)])
    except (JailError, GraderError, OSError) as error:
        log.error("the grader cannot run here: %s", error)
        grade = Grade(None, error="python_grader_server_error", detail=str(error))
    usage = {model: _tokens(used.prompt_tokens, used.completion_tokens) for model, used in grade.usage.items()}
    return RanGrader(
        reward=grade.reward if grade.reward is not None else 0.0,
        sub_rewards=grade.sub_rewards,
        model_grader_token_usage_per_model=usage,
        metadata=RunMetadata(
            name=grader.name,
            type=grader.type,
            execution_time=time.perf_counter() - began,
            scores=grade.sub_rewards,
            token_usage=sum(each["total_tokens"] for each in usage.values()) if usage else None,
            errors=_errors(grade),
        ),
    )


def _tokens(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _errors(grade: Grade) -> RunErrors:
    raised = {*grade.sub_errors.values(), *([grade.error] if grade.error else [])}
    details = {
        "python_grader_server_error": "python_grader_server_error_type",
        "python_grader_runtime_error": "python_grader_runtime_error_details",
        "model_grader_server_error": "model_grader_server_error_details",
    }
    said = {details[grade.error]: grade.detail} if grade.error in details else {}
    return RunErrors(**dict.fromkeys(raised, True), **said, details=grade.detail)
