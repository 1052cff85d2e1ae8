"""A claimed attempt's right to write, renewed while its supervisor lives."""

import time
from dataclasses import dataclass, field
from datetime import timedelta

from service.core.db import transaction
from service.jobs import repository
from service.jobs.states import Desired
from service.settings import settings


class LeaseLostError(Exception):
    """Another attempt may run by now: this one must end and write nothing more."""


@dataclass
class Lease:
    """The lease of one attempt. ``renewed_at`` is monotonic; the lease itself runs on PostgreSQL's clock."""

    job_id: str
    attempt: int
    renewed_at: float = field(default_factory=time.monotonic)
    asked_at: float = 0.0

    def renew_if_due(self) -> None:
        """Renew after ``heartbeat_seconds``. Raises ``LeaseLostError`` when PostgreSQL says that it is lost."""
        now = time.monotonic()
        if now - self.renewed_at < settings().heartbeat_seconds:
            return
        with transaction("troll_worker") as session:
            if not repository.heartbeat(session, self.job_id, self.attempt, lease_time()):
                raise LeaseLostError(f"{self.job_id} attempt {self.attempt}")
        self.renewed_at = now

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
