"""Examining the jobs that wait for it, on threads of their own beside the control worker's other duties.

Which examination is next is decided by a claim in PostgreSQL, so that any number of control workers share them fairly
between organisations. A claim is a lease: what a lost worker had begun is begun again by another.
"""

import logging
import threading
from datetime import timedelta

from redis.exceptions import RedisError

from service.core.db import transaction
from service.jobs import examination, repository
from service.jobs import service as jobs
from service.jobs.examination import Findings
from service.jobs.models import Examination
from service.jobs.states import Status
from workers.control.examination import examine, load_libraries

AT_ONCE = 4
AT_ONCE_EACH = 1
"""Of one organisation, however many workers there are."""
SECONDS = 40.0
"""How long an examination counts tokens and tries graders; what there was no time for is told in the job's events."""
LEASE = timedelta(seconds=180)
MAX_STRIKES = 3

log = logging.getLogger(__name__)
_places = threading.BoundedSemaphore(AT_ONCE)


def warm_up() -> None:
    """Import what examinations need, which takes longer than the first request for a job waits."""
    threading.Thread(target=load_libraries, name="examiner-imports", daemon=True).start()


def start() -> None:
    """Have what waits examined. Returns at once; if all threads are at work already, they will get to it."""
    if _places.acquire(blocking=False):
        threading.Thread(target=_work, name="examiner", daemon=True).start()


def _work() -> None:
    try:
        while (row := _claimed()) is not None:
            conclude(row.id, _answer(row))
    except Exception:
        log.exception("examining stops; the next sweep starts it again")
    finally:
        _places.release()


def _claimed() -> Examination | None:
    with transaction("troll_control") as session:
        return repository.claim_examination(session, lease=LEASE, each=AT_ONCE_EACH)


def _answer(row: Examination) -> Findings:
    if row.strikes > MAX_STRIKES:
        return Findings(notes=["Rows were not counted in tokens: examining them ended its process several times"])
    try:
        return examine(row.as_question(), SECONDS)
    except Exception as error:
        log.exception("%s could not be examined", row.id)
        return Findings(notes=[f"Rows were not counted in tokens: the examination failed ({type(error).__name__})"])


def conclude(id: str, answer: Findings) -> None:
    """Keep what was found about job ``id`` and act on it: here, or where the request that creates the job waits."""
    with transaction("troll_control") as session:
        row = repository.examination_locked(session, id)
        if row is None or row.answer is not None:
            return  # A worker that was thought dead comes back.
        row.answer = answer.model_dump(mode="json")
        job = repository.locked(session, id)
        if job is not None and job.status == Status.VALIDATING:
            jobs.validated(session, job, row.as_question().counts, answer)
    try:
        examination.publish(id, answer)
    except RedisError as error:
        log.warning("nobody could be told of the examination of %s: %s", id, error)
