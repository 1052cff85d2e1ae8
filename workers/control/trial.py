"""Loading a grader, or running it on one answer, for somebody who waits; organisations share the threads fairly."""

import logging
import time
from dataclasses import replace
from typing import Any

from service.core import ask
from service.core.threads import FairThreads
from service.graders.configured import grader_settings
from service.graders.schemas import Grader, GraderError
from service.graders.trial import (
    RUN_SECONDS,
    LoadedGrader,
    LoadQuestion,
    RanGrader,
    RunErrors,
    RunMetadata,
    RunQuestion,
)
from workers.graders import Grade, GraderSample, JailError, build, faults

# Apart from the worker's other threads: a slow grader must never hold up the sweep, nor another organisation's.
AT_ONCE, AT_ONCE_EACH = 6, 2
WAITING, WAITING_EACH = 64, 8
threads = FairThreads("grader", threads=AT_ONCE, each=AT_ONCE_EACH, waiting=WAITING, waiting_each=WAITING_EACH)

log = logging.getLogger(__name__)


def answer(id: str, question: dict[str, Any]) -> None:
    """Have graded what question ``id`` asks, and whoever waits be told. Returns at once.

    Raises ``pydantic.ValidationError`` for a question of another version.
    """
    asked = RunQuestion.model_validate(question)
    ask.answer_on(threads, asked.organization_id, id, lambda: run(asked.grader, asked.model_sample, asked.item))


def answer_load(id: str, question: dict[str, Any]) -> None:
    """Have the grader of question ``id`` loaded, and whoever waits be told. Returns at once.

    Raises ``pydantic.ValidationError`` for a question of another version.
    """
    asked = LoadQuestion.model_validate(question)
    ask.answer_on(threads, asked.organization_id, id, lambda: load(asked.grader))


def load(grader: Grader) -> LoadedGrader:
    """What keeps the grader's code from being loaded in the jail."""
    try:
        return LoadedGrader(faults=faults(grader, grader_settings()))
    except (JailError, OSError) as error:
        log.error("the grader cannot be loaded here: %s", error)
        return LoadedGrader(unavailable=str(error))


def run(grader: Grader, model_sample: str, item: dict[str, Any]) -> RanGrader:
    """The reward of one answer, or the flags that say why there is none."""
    began = time.perf_counter()
    try:
        settings = replace(grader_settings(), batch_seconds=RUN_SECONDS)
        (grade,) = build(grader, settings).grade([GraderSample(item=item, output_text=model_sample)])
    except (JailError, GraderError, OSError) as error:
        log.error("the grader cannot run here: %s", error)
        grade = Grade(None, error="python_grader_server_error", detail=str(error))
    usage = {model: _tokens(used.prompt_tokens, used.completion_tokens) for model, used in grade.usage.items()}
    return RanGrader(
        reward=_reward(grader, grade),
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


def _reward(grader: Grader, grade: Grade) -> float:
    """As training counts it; 0 where it would leave the answer out."""
    if grade.earns_least:
        return grader.least_reward()
    return grade.reward if grade.reward is not None else 0.0


def _tokens(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _errors(grade: Grade) -> RunErrors:
    raised = {*grade.sub_errors.values(), *([grade.error] if grade.error else [])}
    details: dict[str | None, str] = {
        "python_grader_server_error": "python_grader_server_error_type",
        "python_grader_runtime_error": "python_grader_runtime_error_details",
        "model_grader_server_error": "model_grader_server_error_details",
    }
    said = {details[grade.error]: grade.detail} if grade.error in details else {}
    return RunErrors(**dict.fromkeys(raised, True), **said, details=grade.detail)
