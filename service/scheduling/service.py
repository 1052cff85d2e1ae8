"""Which workers are there."""

from datetime import datetime, timedelta
from typing import Literal

from service.scheduling.models import Worker
from service.settings import settings

UNSEEN_HEARTBEATS = 4
"""A worker that was not heard of for so many heartbeats is away."""


def away_after() -> timedelta:
    return timedelta(seconds=UNSEEN_HEARTBEATS * settings().heartbeat_seconds)


def is_away(worker: Worker, now: datetime) -> bool:
    return now - worker.seen_at > away_after()


def state(worker: Worker, now: datetime) -> Literal["ready", "draining", "away"]:
    if is_away(worker, now):
        return "away"
    return "draining" if worker.draining_since else "ready"
