"""What runs and what waits, for administrators: of their organisation, or of all where theirs operates the service."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy.orm import Session

from service.accounts import repository as accounts
from service.accounts.models import Organization
from service.audit import repository as audit
from service.core import clock
from service.core.db import across_organizations
from service.core.errors import invalid, not_found
from service.jobs import repository as jobs
from service.jobs.models import Job
from service.scheduling import repository as scheduling
from service.scheduling.models import Worker
from service.scheduling.service import state


@dataclass(frozen=True)
class AtWork:
    """A worker, how it is, and what it runs."""

    worker: Worker
    state: Literal["ready", "draining", "away"]
    job: Job | None
    organization: Organization | None


def workers(session: Session) -> list[AtWork]:
    """Training workers by name; none unless the organisation operates the installation."""
    with across_organizations(session):
        found = scheduling.workers(session)
        running = {job.worker: job for job in jobs.running(session)}
        names = accounts.organizations(session, {job.organization_id for job in running.values()})
        return [_at_work(session, each, running.get(each.name), names) for each in found]


def set_draining(session: Session, name: str, *, draining: bool) -> AtWork:
    """Give a worker no further job, or jobs again."""
    if not scheduling.set_draining(session, name, draining=draining):
        raise not_found("worker", name)
    audit.record(session, "worker.drained" if draining else "worker.resumed", name)
    return next(each for each in workers(session) if each.worker.name == name)


def queue(session: Session, *, after: str | None, limit: int) -> tuple[list[tuple[Job, Organization]], bool]:
    """Jobs that wait for a worker in the order in which they are likely to be taken, and whether more follow."""
    with across_organizations(session):
        behind = None if after is None else jobs.get(session, after)
        if after is not None and behind is None:
            raise invalid(f"'after' must be the id of an item of this list; '{after}' is not.", "after")
        rows = jobs.in_queue(session, behind, limit + 1)
        names = accounts.organizations(session, {job.organization_id for job in rows})
        return [(job, names[job.organization_id]) for job in rows[:limit]], len(rows) > limit


def _at_work(session: Session, worker: Worker, job: Job | None, names: dict[str, Organization]) -> AtWork:
    organization = None if job is None else names[job.organization_id]
    return AtWork(worker, state(worker, clock.now(session)), job, organization)
