"""Beat, the clock of periodic tasks: it says what is due, and control workers do it.

It imports nothing of theirs, for its image has no library of models. The schedule is kept in memory: its file would be
a pickle, and one that a kill can leave broken.
"""

import logging
from typing import Any

from celery import Celery, beat
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from service.core import broker, pulse
from service.settings import settings

SWEEP = "workers.control.sweep"
PRUNE = "workers.control.prune"
MOST_WAITING = 100
"""Messages of the control queue at which nothing is added to them: nobody takes any, and late ones are not missed."""

log = logging.getLogger(__name__)

app = broker.configure(Celery("troll-beat", set_as_current=False))
app.conf.beat_schedule = {
    "sweep": {"task": SWEEP, "schedule": settings().sweep_seconds},
    "webhooks": {"task": broker.DELIVER_WEBHOOKS, "schedule": 10.0},
    "prune": {"task": PRUNE, "schedule": 3600.0},
}


class Scheduler(beat.Scheduler):
    """Celery's own, but it does not pile up messages while no control worker is there.

    An expiry of each message would do the same only where all machines agree on the time.
    """

    def tick(self, *args: Any, **options: Any) -> float:
        pulse.give()
        return super().tick(*args, **options)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        if not _is_full():
            super().apply_entry(entry, producer=producer)


def _is_full() -> bool:
    try:
        waiting = broker.waiting(broker.CONTROL_QUEUE)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("the control queue could not be measured: %s", error)
        return False
    if waiting >= MOST_WAITING:
        log.warning("%d messages wait for a control worker; is one running?", waiting)
    return waiting >= MOST_WAITING
