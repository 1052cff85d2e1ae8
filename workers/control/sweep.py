"""The repair loop: what a lost message or a lost worker left undone is done here, a little late.

Every step is idempotent and takes only rows that nobody else holds, so two sweeps at a time are harmless.
"""

import logging

from service.core import ask, broker
from service.core.db import transaction
from service.exports import repository as exports
from service.installation import service as installation
from service.jobs import repository
from service.jobs import service as jobs
from service.jobs.states import TERMINAL, Desired
from service.settings import settings
from workers.control import examiner, exporter, queue
from workers.jobs.outcome import decide
from workers.jobs.settle import settle

BATCH = 100

log = logging.getLogger(__name__)


def sweep() -> None:
    ask.report_alive()
    beat()
    reap()
    call_off()
    ring()
    examine()
    export()
    queue.plan()


def beat() -> None:
    """Let folder and database know each other's newest state. What goes wrong here holds nothing else up."""
    try:
        installation.beat("troll_control")
    except (installation.MismatchError, OSError) as error:
        log.error("the data folder was not told that the database is there: %s", error)


def reap() -> None:
    """Take jobs away from workers that stopped renewing their lease."""
    for _ in range(BATCH):
        with transaction("troll_control") as session:
            job = repository.expired(session)
            if job is None:
                return
            log.warning("%s attempt %d: the lease of %s expired", job.id, job.attempt, job.worker)
            outcome = decide(
                exit_code=None,
                has_result=False,
                desired=Desired(job.desired),
                strikes=job.strikes,
                max_strikes=settings().max_strikes,
                failure=None,
            )
            settle(session, job, outcome)


def call_off() -> None:
    """Cancel jobs whose project or organisation has ended: one may have been created just then."""
    with transaction("troll_control") as session:
        ids = repository.of_nobody(session, BATCH)
    for id in ids:
        with transaction("troll_control") as session:
            job = repository.locked(session, id)
            if job is not None and job.status not in TERMINAL:
                log.info("%s is cancelled: its project has ended", id)
                jobs.call_off(session, job)


def ring() -> None:
    """Ring for jobs that wait, but never leave more doorbells than there are jobs."""
    with transaction("troll_control") as session:
        waiting = repository.waiting(session, BATCH)
    for job_id in waiting[: max(0, len(waiting) - broker.waiting())]:
        broker.ring(job_id)


def examine() -> None:
    """Have examined what a lost message or a lost worker left."""
    with transaction("troll_control") as session:
        waits = repository.examinations_wait(session)
    if waits:
        examiner.start()


def export() -> None:
    """Have exported what a lost message or a lost worker left."""
    with transaction("troll_control") as session:
        waits = exports.waits(session)
    if waits:
        exporter.start()
