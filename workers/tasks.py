"""Celery's tasks: each only names the function that does the work."""

import logging
from collections.abc import Callable
from typing import Any

from celery import Task
from pydantic import ValidationError

from service.core import ask
from service.core.broker import (
    DELIVER_WEBHOOKS,
    EXAMINE_JOBS,
    EXPORT_MODELS,
    LOAD_GRADER,
    RUN_GRADER,
    RUN_JOB,
    TEST_WEBHOOK,
)
from workers.app import app
from workers.beat import PRUNE, SWEEP
from workers.control import examiner, exporter, trial, webhooks
from workers.control import prune as pruning
from workers.control import sweep as sweeping
from workers.jobs import supervisor

log = logging.getLogger(__name__)


def _take(id: str, question: dict[str, Any], begin: Callable[[str, dict[str, Any]], None]) -> None:
    """Have somebody's question answered, if anybody still waits for that."""
    if not ask.is_wanted(id):
        return
    try:
        begin(id, question)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        log.error("a question of another version is refused, for it is not known here: %s", fields)
        ask.reply(id, ask.UNKNOWN)


@app.task(name=RUN_JOB, bind=True)
def run_job(self: "Task[..., None]", job_id: str) -> None:
    """There is work. Which job is decided by the claim; ``job_id`` is for the log."""
    supervisor.run(worker=str(self.request.hostname))


@app.task(name=SWEEP)
def sweep() -> None:
    sweeping.sweep()


@app.task(name=PRUNE)
def prune() -> None:
    pruning.prune()


@app.task(name=RUN_GRADER)
def run_grader(id: str, question: dict[str, Any]) -> None:
    _take(id, question, trial.answer)


@app.task(name=LOAD_GRADER)
def load_grader(id: str, question: dict[str, Any]) -> None:
    _take(id, question, trial.answer_load)


@app.task(name=EXAMINE_JOBS)
def examine_jobs() -> None:
    examiner.start()


@app.task(name=EXPORT_MODELS)
def export_models() -> None:
    exporter.start()


@app.task(name=DELIVER_WEBHOOKS)
def deliver_webhooks() -> None:
    webhooks.begin()


@app.task(name=TEST_WEBHOOK)
def test_webhook(id: str, question: dict[str, Any]) -> None:
    _take(id, question, webhooks.test)
