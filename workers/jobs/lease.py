"""A claimed attempt's right to write, renewed while its supervisor lives."""

import time
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy.orm import Session

from service.core.db import transaction
from service.jobs import repository
from service.jobs import service as jobs
from service.jobs.repository import EventDraft
from service.jobs.states import Desired
from service.settings import settings
from workers.jobs.registration import capacity


class LeaseLostError(Exception):
    """Another attempt may run by now: this one must end and write nothing more."""


@dataclass
class Lease:
    """The lease of one attempt. ``renewed_at`` is monotonic; the lease itself runs on PostgreSQL's clock."""

    job_id: str
    attempt: int
    renewed_at: float = field(default_factory=time.monotonic)
    is_over: bool = False
    """Whether the attempt should save what it has and end, so that its worker is free."""

    def renew_if_due(self) -> None:
        """Renew after ``heartbeat_seconds``. Raises ``LeaseLostError`` when PostgreSQL says that it is lost."""
        now = time.monotonic()
        if now - self.renewed_at < settings().heartbeat_seconds:
            return
        with transaction("troll_worker") as session:
            if not repository.heartbeat(session, self.job_id, self.attempt, lease_time()):
                raise LeaseLostError(f"{self.job_id} attempt {self.attempt}")
            if not self.is_over:
                self.is_over = self._make_room(session)
        self.renewed_at = now

    def _make_room(self, session: Session) -> bool:
        """Whether the attempt should end so that others can have its worker; its job is told so."""
        job = repository.fenced(session, self.job_id, self.attempt)
        if job is None:
            return False
        preempt_after = timedelta(seconds=settings().preempt_after_seconds)
        reason = repository.reason_to_stop(session, job, capacity(), preempt_after, settings().max_running_jobs)
        if reason is None:
            return False
        draft = EventDraft(f"{reason}; the job saves a checkpoint and is queued again", level="warn")
        jobs.tell(session, job, [draft])
        return True

    def check_time(self) -> None:
        """Raises ``LeaseLostError`` when PostgreSQL was away for so long that someone else may soon claim the job."""
        margin = min(10.0, settings().lease_seconds / 6)
        if time.monotonic() - self.renewed_at > settings().lease_seconds - margin:
            raise LeaseLostError(f"{self.job_id} attempt {self.attempt}: the database was out of reach")

    def desired(self) -> Desired:
        """What the owner wants. Raises ``LeaseLostError``."""
        with transaction("troll_worker") as session:
            desired = repository.desired(session, self.job_id, self.attempt)
        if desired is None:
            raise LeaseLostError(f"{self.job_id} attempt {self.attempt}")
        return desired


def lease_time() -> timedelta:
    return timedelta(seconds=settings().lease_seconds)
