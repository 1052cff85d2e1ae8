"""Where in the queue a job is, when it may start, and what it waits for: told anew with each sweep.

The order is the one in which claims will be made if nothing else comes: always the organisation with the least recent
GPU time per weight, where each job counts as much as jobs usually take. It is an estimate and binds nobody.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from service.core import clock
from service.core.db import transaction
from service.jobs import repository
from service.jobs.models import Job
from service.jobs.repository import Place, Queued
from service.scheduling import repository as scheduling
from service.scheduling.models import Worker
from service.scheduling.repository import Account
from service.scheduling.service import away_after

FORGOTTEN_AFTER = timedelta(days=1)
NEARLY = timedelta(minutes=1)
"""By how much a start that was told may be off."""
ASSUMED_SECONDS = 600.0
"""GPU-seconds of a job where none has ended yet."""


@dataclass
class Share:
    """What decides whose turn it is."""

    used: float
    weight: float

    @property
    def taken(self) -> float:
        return self.used / self.weight


def plan() -> None:
    """Tell every queued job its place."""
    with transaction("troll_control") as session:
        scheduling.forget_workers(session, FORGOTTEN_AFTER)
        queued = repository.queued(session)
        if not queued:
            return
        workers = [each for each in scheduling.workers(session, seen_within=away_after()) if not each.draining_since]
        usual = repository.usual_seconds(session) or ASSUMED_SECONDS
        accounts = {account.id: account for account in scheduling.accounts(session, deleted=True)}
        shares = {id: Share(account.recent_gpu_seconds, account.weight) for id, account in accounts.items()}
        starts = _starts(session, workers, repository.running(session), usual)
        places = {}
        for position, job in enumerate(in_order(queued, shares, usual), start=1):
            lacking = _lacking(job, workers, accounts[job.organization_id])
            place = Place(position, None if lacking else _next_start(starts, usual), lacking)
            if not _is_told(job.told, place):
                places[job.id] = place
        repository.tell_places(session, places)


def _is_told(told: Place, place: Place) -> bool:
    """Whether a job's place is nearly what it was told last, so that nothing has to be written."""
    if (told.position, told.waits_for) != (place.position, place.waits_for):
        return False
    if told.start is None or place.start is None:
        return told.start == place.start
    return abs(told.start - place.start) < NEARLY


def in_order(queued: Sequence[Queued], shares: dict[str, Share], usual: float) -> list[Queued]:
    """The jobs, which come by priority and age, as they will be taken if each uses ``usual`` GPU-seconds."""
    waiting: dict[str, deque[Queued]] = {}
    for job in queued:
        waiting.setdefault(job.organization_id, deque()).append(job)
    # Where two have taken as much, the one whose first job is older comes first.
    turns = [(shares[id].taken, jobs[0].sequence, id) for id, jobs in waiting.items()]
    heapq.heapify(turns)
    order = []
    while turns:
        _, _, id = heapq.heappop(turns)
        order.append(waiting[id].popleft())
        shares[id].used += usual
        if waiting[id]:
            heapq.heappush(turns, (shares[id].taken, waiting[id][0].sequence, id))
    return order


def _lacking(job: Queued, workers: Sequence[Worker], account: Account) -> str | None:
    """What has to be there before any worker can take the job."""
    if not account.within_budget:
        return f"Your organization has used its {account.gpu_hours_a_month:g} GPU-hours of this month."
    if not workers:
        return "No training worker is there."
    able = [worker for worker in workers if not job.engine or job.engine in worker.engines]
    if not able:
        return f"No training worker that is there has the rollout engine '{job.engine}'."
    if not any(worker.gpu_bytes == 0 or worker.gpu_bytes >= job.gpu_bytes for worker in able):
        most = max(worker.gpu_bytes for worker in able)
        return (
            f"The job needs at least {job.gpu_bytes / 1e9:.1f} GB of GPU memory, and the training workers have "
            f"{most / 1e9:.1f} GB at most. Training all weights takes 16 bytes a parameter, LoRA 2, and a critic as "
            "much again."
        )
    return None


def _starts(session: Session, workers: Sequence[Worker], running: Sequence[Job], usual: float) -> list[datetime]:
    """When each worker takes its next job, as a heap."""
    now, busy = clock.now(session), {job.worker: job for job in running}
    starts = []
    for worker in workers:
        job = busy.get(worker.name)
        if job is None:
            starts.append(now)
            continue
        expected = job.estimated_finish or (job.started_at or now) + timedelta(seconds=usual / max(1, job.gpus))
        starts.append(max(now, expected))
    heapq.heapify(starts)
    return starts


def _next_start(starts: list[datetime], usual: float) -> datetime:
    """When the next job starts; the worker that takes it is free again after it."""
    start = starts[0]
    heapq.heapreplace(starts, start + timedelta(seconds=usual))
    return start
