"""What becomes of jobs, and changing what is wanted of them."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from sqlalchemy.orm import Session

from service.audit import repository as audit
from service.core import broker, clock, live, storage
from service.core.db import across_projects, after_commit
from service.core.errors import DomainError, invalid, not_found
from service.jobs import folding, repository
from service.jobs.examination import Findings, refusal
from service.jobs.models import Event, Job
from service.jobs.repository import EventDraft
from service.jobs.schemas import EventObject
from service.jobs.states import TERMINAL, Desired, Status, move
from service.usage import service as usage
from service.webhooks import service as webhooks


def retrieve(session: Session, id: str) -> Job:
    job = repository.get(session, id)
    if job is None:
        raise not_found("fine-tuning job", id, "fine_tuning_job_id")
    return job


@dataclass(frozen=True)
class EventFile:
    """What a job has written for TensorBoard so far."""

    name: str
    size: int
    """Bytes at the moment: it may be written on."""
    opened: BinaryIO

    def content(self) -> Iterator[bytes]:
        """The first ``size`` bytes, once."""
        left = self.size
        with self.opened as file:
            while left and (chunk := file.read(min(storage.CHUNK, left))):
                left -= len(chunk)
                yield chunk


def event_file(job: Job) -> EventFile:
    """Raises a 404 where nothing has been written."""
    files = sorted((storage.job_dir(job.id) / "tensorboard").glob("events.out.tfevents.*"), reverse=True)
    for path in files:
        # Another attempt may begin a file of its own in this moment and remove this one.
        with contextlib.suppress(FileNotFoundError):
            opened = path.open("rb")
            return EventFile(path.name, os.fstat(opened.fileno()).st_size, opened)
    raise not_found("event file", job.id, "fine_tuning_job_id")


def cancel(session: Session, id: str) -> Job:
    """A waiting job is cancelled at once, and so is one whose worker was lost; a running one when its worker has heard
    of it: 10 s more are all it gets.
    """
    job = _locked(session, id)
    if job.status in TERMINAL:
        raise _wrong_state(job, "cancelled")
    audit.record(session, "fine_tuning.job.cancelled", job.id)
    forget_answers(job)
    return call_off(session, job)


def forget_answers(job: Job) -> None:
    """Count no longer what an evaluation has kept while it was paused: it ends, or its next attempt counts again."""
    if not job.training_file:
        job.stored_bytes = 0


def call_off(session: Session, job: Job) -> Job:
    """``cancel`` for a job that is locked and has not ended."""
    if job.status == Status.RUNNING and not _is_lost(session, job):
        return _want(session, job, Desired.CANCEL, "Cancellation requested")
    if job.status == Status.VALIDATING:
        called_off = Findings(notes=["The job was cancelled"])
        repository.call_off_examination(session, job.id, called_off.model_dump(mode="json"))
    end(session, job, Status.CANCELLED)
    tell(session, job, [EventDraft("Job cancelled")])
    return job


def pause(session: Session, id: str) -> Job:
    """A waiting job is set aside, once it is validated, and one whose worker was lost at once; a running one saves a
    checkpoint and stops.
    """
    job = _locked(session, id)
    if job.status == Status.PAUSED:
        return job
    if job.status not in (Status.VALIDATING, Status.QUEUED, Status.RUNNING) or job.desired == Desired.CANCEL:
        raise _wrong_state(job, "paused")
    audit.record(session, "fine_tuning.job.paused", job.id)
    if job.status != Status.QUEUED and not _is_lost(session, job):
        return _want(session, job, Desired.PAUSE, "Pause requested")
    move(job, Status.PAUSED)
    job.estimated_finish = None
    job.desired = Desired.PAUSE
    tell(session, job, [EventDraft("Job paused")])
    return job


def resume(session: Session, id: str) -> Job:
    """A paused job is queued again and goes on from its newest checkpoint. Raises a 429 when too many are waiting."""
    job = retrieve(session, id)
    # The same order as everywhere: first the quota, then the job.
    repository.lock_quota(session, job.organization_id)
    job = _locked(session, id)
    if job.status in (Status.VALIDATING, Status.RUNNING) and job.desired == Desired.PAUSE:
        audit.record(session, "fine_tuning.job.resumed", job.id)
        return _want(session, job, Desired.RUN, "Pause withdrawn")
    if job.status != Status.PAUSED:
        raise _wrong_state(job, "resumed")
    check_quota(session, job.organization_id, is_new=False)
    audit.record(session, "fine_tuning.job.resumed", job.id)
    forget_answers(job)
    move(job, Status.QUEUED)
    job.desired, job.eligible_at = Desired.RUN, clock.now(session)
    tell(session, job, [EventDraft("Job resumed; waiting for a worker")])
    ring_after_commit(session, job.id)
    return job


def check_quota(session: Session, organization_id: str, *, is_new: bool = True) -> None:
    """Raise a 429 when an organisation has as many jobs waiting as it may, or no room for what they write.

    For a new job those count too that were paused before they began, or creating and pausing in turn would go on for
    ever. It stays so only under ``lock_quota``.
    """
    usage.check_storage(session, organization_id, 0)
    limit = usage.limits(session, organization_id).queued_jobs
    with across_projects(session):
        waiting = repository.count_waiting(session, organization_id, set_aside=is_new)
    if waiting >= limit:
        message = (
            f"Your organization already has {limit} jobs queued, or paused before they began. Cancel some or wait for "
            "them to start."
        )
        raise DomainError(429, "job_quota_exceeded", message, headers={"x-should-retry": "false"})


def validated(session: Session, job: Job, counts: str, found: Findings) -> None:
    """Bring a job, whose row is locked, from ``validating_files`` to where what was found about it leads.

    ``counts`` says how many rows its files have.
    """
    refused = refusal(found)
    if refused is not None:
        end(session, job, Status.FAILED)
        job.error = {"code": refused.code, "message": refused.message, "param": refused.param}
        tell(session, job, [EventDraft(f"The job failed: {refused.message}", "error", data={"code": refused.code})])
        return
    shortened = _shorten_answers(job, found.longest_answer)
    paused = job.desired == Desired.PAUSE
    move(job, Status.PAUSED if paused else Status.QUEUED)
    job.eligible_at = clock.now(session)
    summary = f"Files validated: {counts}; job {job.status}"
    drafts = [EventDraft(". ".join([summary, *found.notes]), level="warn" if found.notes else "info")]
    warnings = [f"{text[0].upper()}{text[1:]}" for text in found.warnings]
    tell(session, job, [*drafts, *(EventDraft(text, "warn") for text in (*shortened, *warnings))])
    if not paused:
        ring_after_commit(session, job.id)


def _shorten_answers(job: Job, most: int | None) -> list[str]:
    """Take note of the longest answer that there can be; what changes by that, if anything."""
    asked = job.as_spec().method.longest_answer
    if most is None or asked is None or asked <= most:
        return []
    job.longest_answer = most
    return [f"max_completion_tokens is {most} and not {asked}: the model's context leaves no more beside the prompt"]


def end(session: Session, job: Job, status: Status) -> None:
    """Bring a job, whose row is locked, to its end, and announce that."""
    move(job, status)
    job.finished_at, job.estimated_finish = clock.now(session), None
    if status is Status.CANCELLED:
        job.desired = Desired.CANCEL
    job_id = job.id
    after_commit(session, lambda: storage.forget_job_data(job_id))
    webhooks.announce_job(session, job, job.id, status)


def tell(session: Session, job: Job, drafts: Sequence[EventDraft]) -> list[Event]:
    """Append events to a locked job and, once they are committed, show them to whoever follows it."""
    events = repository.append_events(session, job, drafts)
    if events:
        if any(event.type == "metrics" for event in events):
            folding.fold(session, job)
        session.flush()
        frames = [EventObject.of(event).model_dump(mode="json") for event in events]
        name = live.stream(job, job.id)
        after_commit(session, lambda: live.publish(name, frames))
    return events


def _is_lost(session: Session, job: Job) -> bool:
    """Whether a job runs without a worker. The sweep finds that too, but leaves alone what it cannot read."""
    return job.lease_expires_at is not None and job.lease_expires_at <= clock.now(session)


def _want(session: Session, job: Job, desired: Desired, message: str) -> Job:
    if job.desired != desired:
        job.desired = desired
        tell(session, job, [EventDraft(message)])
    return job


def _locked(session: Session, id: str) -> Job:
    job = repository.locked(session, id)
    if job is None:
        raise not_found("fine-tuning job", id, "fine_tuning_job_id")
    return job


def _wrong_state(job: Job, verb: str) -> DomainError:
    # A 409 would be retried by the official client; the request cannot succeed, so it is a 400.
    return invalid(f"Job {job.id} is {job.status} and cannot be {verb}.", None, "invalid_job_state")


def ring_after_commit(session: Session, job_id: str) -> None:
    after_commit(session, lambda: broker.ring(job_id))


def metadata_filter(query: Sequence[tuple[str, str]]) -> tuple[dict[str, str], bool]:
    """The ``metadata[key]=value`` pairs of a query string, and whether ``metadata=null`` asks for jobs without any."""
    pairs: dict[str, Any] = {
        name[len("metadata[") : -1]: value
        for name, value in query
        if name.startswith("metadata[") and name.endswith("]")
    }
    return pairs, ("metadata", "null") in query
