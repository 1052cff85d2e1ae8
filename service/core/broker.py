"""The doorbell: a Celery message that says only that there is work.

The job row is the truth. A lost, doubled or late message is harmless; ``workers.control.sweep`` rings again for jobs
that wait. No message has an expiry: Celery would hold the sender's clock against the receiver's.
"""

import logging
from functools import cache
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from service.core import live
from service.settings import required

TRAINING_QUEUE = "training"
CONTROL_QUEUE = "control"
KEY_PREFIX = "celery:"
RUN_JOB = "workers.run_job"
RUN_GRADER = "workers.run_grader"
LOAD_GRADER = "workers.load_grader"
EXAMINE_JOBS = "workers.examine_jobs"
TEST_WEBHOOK = "workers.test_webhook"
DELIVER_WEBHOOKS = "workers.deliver_webhooks"
EXPORT_MODELS = "workers.export_models"

log = logging.getLogger(__name__)


def broker_url(redis_url: str) -> str:
    """Celery's URL for the Redis at ``redis_url`` (redis-py writes a socket ``unix://``, Celery ``redis+socket://``)."""
    return redis_url.replace("unix://", "redis+socket://", 1) if redis_url.startswith("unix://") else redis_url


def configure(app: Celery) -> Celery:
    """Settings shared by whoever sends and whoever receives."""
    app.conf.update(
        broker_url=broker_url(required("redis_url")),
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "global_keyprefix": KEY_PREFIX,
            "socket_connect_timeout": 3,
            "socket_timeout": 30,
            "retry_on_timeout": True,
        },
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_default_queue=CONTROL_QUEUE,
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0.1},
    )
    return app


@cache
def _sender() -> Celery:
    app = configure(Celery("troll-sender", set_as_current=False))
    # Whoever rings waits for it, unlike a worker that listens; and a time-out comes three times.
    app.conf.broker_transport_options |= {"socket_timeout": live.ANSWER_SECONDS / 2, "retry_on_timeout": False}
    return app


def _send(task: str, **options: Any) -> None:
    """Raises ``OperationalError`` when Redis cannot be reached, and at once when it did not answer a moment ago."""
    try:
        live.silence.check()
        _sender().send_task(task, **options)
    except redis.TimeoutError as error:
        raise OperationalError(str(error)) from error
    except OperationalError as error:
        if isinstance(error.__cause__, redis.TimeoutError):
            live.silence.note()
        raise


def ring(job_id: str) -> bool:
    """Tell the training workers that a job waits. False when Redis cannot be reached: the sweep will ring instead."""
    try:
        _send(RUN_JOB, args=[job_id], queue=TRAINING_QUEUE)
    except OperationalError as error:
        log.warning("could not ring for %s, the sweep will: %s", job_id, error)
        return False
    return True


def ring_examinations() -> bool:
    """Tell the control worker that a job waits to be examined. The sweep finds out anyway."""
    try:
        _send(EXAMINE_JOBS, queue=CONTROL_QUEUE)
    except OperationalError as error:
        log.warning("could not ring for an examination, the sweep will: %s", error)
        return False
    return True


def ring_exports() -> bool:
    """Tell the control worker that a model is to be exported. The sweep finds out anyway."""
    try:
        _send(EXPORT_MODELS, queue=CONTROL_QUEUE)
    except OperationalError as error:
        log.warning("could not ring for an export, the sweep will: %s", error)
        return False
    return True


def ring_webhooks() -> bool:
    """Tell the control worker that the webhook outbox holds something. Its schedule finds out anyway."""
    try:
        _send(DELIVER_WEBHOOKS, queue=CONTROL_QUEUE)
    except OperationalError as error:
        log.warning("could not ring for webhooks, the schedule will: %s", error)
        return False
    return True


def ask(task: str, id: str, question: dict[str, Any]) -> None:
    """Send ``question`` to the control worker. Raises ``OperationalError``."""
    _send(task, args=[id, question], queue=CONTROL_QUEUE)


def waiting(queue: str = TRAINING_QUEUE) -> int:
    """How many messages of a queue nobody has taken yet."""
    with _sender().connection_for_read() as connection, connection.channel() as channel:
        length: int = channel.client.llen(queue)  # type: ignore[attr-defined]  # kombu's channel of Redis has it
        return length
