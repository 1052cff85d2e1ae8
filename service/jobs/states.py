"""The states of a job and every way between them. Only ``move`` changes a job's status."""

from enum import StrEnum

from service.jobs.models import Job


class Status(StrEnum):
    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Desired(StrEnum):
    """What a job's owner wants of it."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
WAITING = frozenset({Status.VALIDATING, Status.QUEUED})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.VALIDATING: frozenset({Status.QUEUED, Status.PAUSED, Status.FAILED, Status.CANCELLED}),
    Status.QUEUED: frozenset({Status.RUNNING, Status.PAUSED, Status.CANCELLED, Status.FAILED}),
    Status.RUNNING: frozenset({Status.QUEUED, Status.PAUSED, *TERMINAL}),
    Status.PAUSED: frozenset({Status.QUEUED, Status.CANCELLED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}


def move(job: Job, to: Status) -> None:
    """Change a job's status; leaving ``running`` gives up the lease. Raises ``ValueError`` where there is no way."""
    if to not in TRANSITIONS[Status(job.status)]:
        raise ValueError(f"{job.id} cannot go from {job.status} to {to}")
    job.status = to
    if to is not Status.RUNNING:
        job.worker = job.lease_expires_at = None
