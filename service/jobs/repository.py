"""Queries on jobs, events and checkpoints.

A worker writes only through ``fenced``: the row is locked under the condition that this attempt still runs, so a worker
that lost its lease changes nothing.

What a worker takes up it has read before. Rows that it cannot read are left to workers that can.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, Select, and_, case, delete, func, literal, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from service.accounts.models import Organization, Project
from service.core import pagination
from service.jobs import stored, turns
from service.jobs.models import Checkpoint, CheckpointPermission, Event, Examination, Job, MetricBlock
from service.jobs.states import WAITING, Desired, Status
from service.jobs.stored import NUMBER, Aside, UnreadableError
from service.jobs.turns import EVERYTHING, Capacity
from service.scheduling.repository import add_usage, is_within_budget

CLAIMABLE = (Job.status == Status.QUEUED, Job.desired == Desired.RUN, Job.eligible_at <= func.now())
PREEMPTS_AFTER = timedelta(seconds=30)
"""How long a job has to wait before another makes room for it."""
EXAMINATIONS_LOCK = "examinations.claim"
_UNEXAMINED = (
    Examination.answer.is_(None),
    or_(Examination.lease_expires_at.is_(None), Examination.lease_expires_at <= func.now()),
)


@dataclass(frozen=True)
class EventDraft:
    """An event before it has its place in the order."""

    message: str
    level: str = "info"
    type: str = "message"
    data: dict[str, Any] | None = None
    key: str | None = None


# Jobs


def add(session: Session, job: Job) -> None:
    session.add(job)
    session.flush()


def get(session: Session, id: str) -> Job | None:
    return session.scalar(select(Job).where(Job.id == id))


def locked(session: Session, id: str) -> Job | None:
    return session.scalar(select(Job).where(Job.id == id).with_for_update())


def page(
    session: Session, *, metadata: dict[str, str] | None, no_metadata: bool, after: str | None, limit: int
) -> tuple[Sequence[Job], bool]:
    query = select(Job)
    if no_metadata:
        query = query.where(func.coalesce(Job.meta, func.jsonb_build_object()) == func.jsonb_build_object())
    if metadata:
        query = query.where(Job.meta.contains(metadata))
    return pagination.fetch(session, query, Job, after=after, limit=limit)


def lock_quota(session: Session, organization_id: str) -> None:
    """Let nobody else add to what an organisation has waiting until the transaction ends."""
    query = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
    session.execute(query, {"name": f"fine_tuning_jobs.quota/{organization_id}"})


def count_waiting(session: Session, organization_id: str, *, set_aside: bool) -> int:
    """How many jobs of an organisation wait, with those that were paused before they began if ``set_aside``."""
    unbegun = and_(Job.status == Status.PAUSED, Job.attempt == 0)
    waiting = or_(Job.status.in_(WAITING), unbegun) if set_aside else Job.status.in_(WAITING)
    return session.scalar(select(func.count()).where(Job.organization_id == organization_id, waiting)) or 0


def forget_bytes(session: Session, id: str, removed: int) -> None:
    """Count no longer what is removed of a job's checkpoints and results."""
    left = func.greatest(0, Job.stored_bytes - removed)
    session.execute(update(Job).where(Job.id == id).values(stored_bytes=left))


def unfinished_from(session: Session, model: str) -> Sequence[str]:
    """Ids of jobs that train from ``model`` and have not ended."""
    return session.scalars(select(Job.id).where(Job.model == model, Job.finished_at.is_(None))).all()


def unfinished_of(session: Session, project_id: str) -> Sequence[str]:
    """Ids of a project's jobs that have not ended, oldest first: whoever locks several does it in one order."""
    mine = select(Job.id).where(Job.project_id == project_id, Job.finished_at.is_(None))
    return session.scalars(mine.order_by(Job.id)).all()


def of_nobody(session: Session, limit: int) -> Sequence[str]:
    """Ids of jobs that nobody stops whose project is archived or whose organisation is deleted."""
    ended = or_(
        Job.project_id.in_(select(Project.id).where(Project.archived_at.is_not(None))),
        Job.organization_id.in_(select(Organization.id).where(Organization.deleted_at.is_not(None))),
    )
    query = select(Job.id).where(Job.finished_at.is_(None), Job.desired != Desired.CANCEL, ended)
    return session.scalars(query.order_by(Job.id).limit(limit)).all()


def kept(session: Session, ids: Sequence[str]) -> set[str]:
    """Those of ``ids`` whose folder is still needed. What an organisation that was deleted made is not."""
    gone = select(Organization.id).where(Organization.deleted_at.is_not(None))
    over = and_(Job.finished_at.is_not(None), Job.organization_id.in_(gone))
    return set(session.scalars(select(Job.id).where(Job.id.in_(ids), ~over)))


def succeeded_from(session: Session, model: str, limit: int) -> Sequence[Job]:
    """The jobs that succeeded last from ``model``, newest first."""
    succeeded = Job.status == turns.as_indexed(Status.SUCCEEDED)
    query = select(Job).where(Job.model == model, succeeded, Job.gpu_seconds > 0)
    return session.scalars(query.order_by(Job.sequence.desc()).limit(limit)).all()


def existing(session: Session, ids: Sequence[str]) -> set[str]:
    return set(session.scalars(select(Job.id).where(Job.id.in_(ids))))


def ended(session: Session, ids: Sequence[str], ago: timedelta) -> Sequence[Job]:
    """Those of ``ids`` that ended at least so long ago."""
    return session.scalars(select(Job).where(Job.id.in_(ids), Job.finished_at <= func.now() - ago)).all()


# Events


def append_events(session: Session, job: Job, drafts: Sequence[EventDraft]) -> list[Event]:
    """Give ``drafts`` the next numbers of ``job``, whose row the caller has locked. Keys already told are left out."""
    keys = [draft.key for draft in drafts if draft.key is not None]
    told: set[str | None] = set()
    if keys:
        told |= set(session.scalars(select(Event.key).where(Event.job_id == job.id, Event.key.in_(keys))))
    events = []
    for draft in drafts:
        if draft.key is not None and draft.key in told:
            continue
        told |= {draft.key} - {None}
        job.event_count += 1
        events.append(
            Event(
                job_id=job.id,
                seq=job.event_count,
                organization_id=job.organization_id,
                level=draft.level,
                type=draft.type,
                message=draft.message,
                data=draft.data,
                key=draft.key,
            )
        )
    session.add_all(events)
    session.flush()
    return events


def events_before(
    session: Session, job_id: str, before: int | None, limit: int, *, only: Literal["message", "answers"] | None = None
) -> tuple[Sequence[Event], bool]:
    """Events older than ``before``, newest first, and whether more follow: all, or ``only`` messages or metrics with
    answers to validation rows.
    """
    query = select(Event).where(Event.job_id == job_id)
    if only == "message":
        query = query.where(Event.type == "message")
    if only == "answers":
        answers = Event.data["samples"]
        is_list = func.jsonb_typeof(answers) == "array"
        query = query.where(Event.type == "metrics", case((is_list, func.jsonb_array_length(answers) > 0), else_=False))
    if before is not None:
        query = query.where(Event.seq < before)
    rows = session.scalars(query.order_by(Event.seq.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def events_after(session: Session, job_id: str, after: int, limit: int) -> Sequence[Event]:
    """Events newer than ``after``, oldest first."""
    query = select(Event).where(Event.job_id == job_id, Event.seq > after)
    return session.scalars(query.order_by(Event.seq).limit(limit)).all()


def count_events(session: Session, job_id: str, key: str) -> int:
    """How many events have keys that begin with ``key``."""
    query = select(func.count()).where(Event.job_id == job_id, Event.key.startswith(key, autoescape=True))
    return session.scalar(query) or 0


def metric_events(session: Session, job_id: str, number: int) -> Iterator[Sequence[Event]]:
    """Metrics events in the order in which they were written, ``number`` at a time."""
    query = select(Event).where(Event.job_id == job_id, Event.type == "metrics").order_by(Event.seq)
    yield from session.scalars(query, execution_options={"yield_per": number}).partitions()


def remove_old_events(session: Session, ended_for: timedelta, limit: int) -> int:
    """Remove the events of up to ``limit`` jobs that ended so long ago. Returns of how many."""
    old = (
        select(Job.id)
        .where(Job.finished_at <= func.now() - ended_for, Job.events_removed_at.is_(None))
        .order_by(Job.finished_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = session.scalars(old).all()
    session.execute(delete(Event).where(Event.job_id.in_(ids)))
    session.execute(delete(MetricBlock).where(MetricBlock.job_id.in_(ids)))
    session.execute(update(Job).where(Job.id.in_(ids)).values(events_removed_at=func.now()))
    return len(ids)


# Leases


def claim(
    session: Session, *, worker: str, lease: timedelta, max_running: int, capacity: Capacity = EVERYTHING, gpus: int = 1
) -> Job | None:
    """Take the fairest queued job for a worker with ``gpus`` and ``capacity``: of the organisation whose turn it is
    (``turns.next_turn``) the one of the highest priority, then the oldest. None when none may run.

    Workers that ask at the same time give turns to different organisations, so that one need not wait for another.
    """
    passed: set[str] = set()
    while True:
        limits: dict[str, Any] = {"max_running": max_running, "aside": _JOBS.aside.ids}
        # What comes to nothing is undone with its lock: two workers that hold one could wait for each other's.
        with session.begin_nested() as attempt:
            turn = turns.next_turn(session, capacity, **limits, passed=passed, lock=True)
            if turn is None:
                given = turns.next_turn(session, capacity, **limits, passed=passed, lock=False)
                if given is None:
                    return None
                # Others give turns to all that may have one. Whose the next is, is known when one of them is done.
                turns.wait_for_turn(session, given)
                turn = turns.next_turn(session, capacity, **limits, passed=passed, lock=True)
            if turn is not None:
                job = turns.take(session, capacity, turn, **limits, worker=worker, gpus=gpus, lease=lease)
                if job is None:
                    passed.add(turn)
                elif _can_read(job):
                    return job
            attempt.rollback()


def _can_read(job: Job) -> bool:
    try:
        job.as_spec()
    except UnreadableError as error:
        _JOBS.aside.put(job.id, error)
        return False
    return True


def count_time(session: Session, job: Job) -> None:
    """Count the GPU time of a locked job's attempt since it was counted last."""
    now = session.scalars(select(func.clock_timestamp())).one()
    if job.counted_at is not None:
        used = job.gpus * max(0.0, (now - job.counted_at).total_seconds())
        job.gpu_seconds += used
        add_usage(session, job.organization_id, job.project_id, used)
    job.counted_at = now


def reason_to_stop(
    session: Session, job: Job, capacity: Capacity, preempt_after: timedelta, max_running: int
) -> str | None:
    """Why a running job's worker should be free for others: it is told as an event, and the job queued again.

    After ``preempt_after`` a job makes room for an organisation that had less GPU time and whose job waits; 0 is never.
    """
    if not is_within_budget(session, job.organization_id):
        return "The organization's GPU time of this month is used up"
    if not preempt_after:
        return None
    had_its_turn = session.scalar(select(Job.claimed_at <= func.now() - preempt_after).where(Job.id == job.id))
    # Workers that are free would have taken what waits as long as that.
    aside = _JOBS.aside.ids
    asked: dict[str, Any] = {"aside": aside, "waited": PREEMPTS_AFTER, "max_running": max_running}
    if had_its_turn and turns.another_waits(session, capacity, job, **asked):
        return "Another organization, which had less GPU time, waits for a worker"
    return None


Kind = TypeVar("Kind", Job, Examination)


@dataclass(frozen=True)
class _Rows(Generic[Kind]):
    """Rows that hold something stored, in the column ``content``, which ``read`` reads."""

    kind: type[Kind]
    content: InstrumentedAttribute[dict[str, Any]]
    read: Callable[[Session, Kind], object]
    aside: Aside
    before_age: tuple[ColumnElement[Any], ...] = ()
    """What decides which is first, where two rows differ in it; their age does where they do not."""

    @property
    def understood(self) -> tuple[ColumnElement[bool], ...]:
        """Whether a row can be read here, as far as PostgreSQL can tell."""
        # Compared as JSON: a version that is no number would end the query of all others.
        version = func.coalesce(self.content[NUMBER], literal(1, JSONB))
        return (version <= literal(stored.VERSION, JSONB), self.kind.id.not_in(self.aside.ids))

    def first_readable(self, session: Session, *wanted: ColumnElement[bool]) -> Kind | None:
        """The first row that is wanted and can be read, locked; those that others have locked are left to them."""
        order = (*self.before_age, self.kind.sequence)
        query = select(self.kind).where(*wanted).order_by(*order).limit(1).with_for_update(skip_locked=True)
        while (row := session.scalar(query.where(*self.understood))) is not None:
            try:
                self.read(session, row)
            except UnreadableError as error:
                self.aside.put(row.id, error)
            else:
                return row
        return None


def _read_examination(session: Session, examination: Examination) -> None:
    examination.as_question()
    job = get(session, examination.id)
    if job is not None:
        job.as_spec()


_JOBS = _Rows(Job, Job.spec, lambda _, job: job.as_spec(), Aside("job"), (Job.priority.desc(),))
_EXAMINATIONS = _Rows(Examination, Examination.question, _read_examination, Aside("examination"))


def fence(job_id: str, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return (Job.id == job_id, Job.attempt == attempt, Job.status == Status.RUNNING)


def fenced(session: Session, job_id: str, attempt: int) -> Job | None:
    """The job, locked, if this attempt still runs it."""
    return session.scalar(select(Job).where(*fence(job_id, attempt)).with_for_update())


def heartbeat(session: Session, job_id: str, attempt: int, lease: timedelta) -> bool:
    """Renew a lease, and count the GPU time since the last renewal. False when it is lost."""
    job = fenced(session, job_id, attempt)
    if job is None:
        return False
    count_time(session, job)
    session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=func.now() + lease))
    return True


def desired(session: Session, job_id: str, attempt: int) -> Desired | None:
    """What the owner wants of a running attempt; None when the lease is lost."""
    value = session.scalar(select(Job.desired).where(*fence(job_id, attempt)))
    return None if value is None else Desired(value)


def expired(session: Session) -> Job | None:
    """The oldest job whose lease has run out, locked; those that someone else is looking at are left to them."""
    return _JOBS.first_readable(session, Job.status == Status.RUNNING, Job.lease_expires_at < func.now())


def waits_elsewhere(session: Session, capacity: Capacity) -> str | None:
    """The id of a job that waits for a worker with something else than this one has."""
    return turns.for_others(session, capacity)


@dataclass(frozen=True)
class Place:
    """Where in the queue a job is."""

    position: int | None
    start: datetime | None
    waits_for: str | None


@dataclass(frozen=True)
class Queued:
    """What decides when a job is taken, and the place that it was told last."""

    id: str
    organization_id: str
    sequence: int
    engine: str | None
    """The rollout engine that it needs; empty where it needs none."""
    gpu_bytes: int
    """GPU memory that it needs at least."""
    told: Place


def queued(session: Session) -> list[Queued]:
    """Jobs that wait for a worker, by priority and age."""
    query = (
        select(
            Job.id,
            Job.organization_id,
            Job.sequence,
            Job.engine,
            Job.gpu_bytes,
            Job.queue_position,
            Job.estimated_start,
            Job.waits_for,
        )
        .where(Job.status == Status.QUEUED, Job.desired == Desired.RUN)
        .order_by(Job.priority.desc(), Job.sequence)
    )
    return [
        Queued(id, organization_id, sequence, engine, gpu_bytes, Place(position, start, waits_for))
        for id, organization_id, sequence, engine, gpu_bytes, position, start, waits_for in session.execute(query)
    ]


def in_queue(session: Session, behind: Job | None, limit: int) -> Sequence[Job]:
    """Jobs that wait for a worker, in the order of their places; those without one yet come last. ``behind`` one."""
    last = literal(2**62)
    place = func.coalesce(Job.queue_position, last)
    query = select(Job).where(Job.status == Status.QUEUED, Job.desired == Desired.RUN)
    if behind is not None:
        at = last if behind.queue_position is None else literal(behind.queue_position)
        query = query.where(tuple_(place, Job.sequence) > tuple_(at, literal(behind.sequence)))
    return session.scalars(query.order_by(place, Job.sequence).limit(limit)).all()


def tell_places(session: Session, places: dict[str, Place]) -> None:
    """Write down the places of jobs; those that are queued no more do not show theirs."""
    rows = [
        {"id": id, "queue_position": place.position, "estimated_start": place.start, "waits_for": place.waits_for}
        # Whoever locks several does it in one order.
        for id, place in sorted(places.items())
    ]
    if rows:
        session.execute(update(Job), rows)


def running(session: Session) -> Sequence[Job]:
    return session.scalars(select(Job).where(turns.runs(Job))).all()


def at_work(session: Session) -> dict[str, str]:
    """The id of the job that each worker runs."""
    query = select(Job.worker, Job.id).where(turns.runs(Job), Job.worker.is_not(None))
    return {worker: id for worker, id in session.execute(query) if worker is not None}


def usual_seconds(session: Session) -> float | None:
    """The median GPU-seconds of the jobs that succeeded last."""
    recent = (
        select(Job.gpu_seconds)
        .where(Job.status == Status.SUCCEEDED, Job.gpu_seconds > 0)
        .order_by(Job.sequence.desc())
        .limit(100)
        .subquery()
    )
    return session.scalar(select(func.percentile_cont(0.5).within_group(recent.c.gpu_seconds)))


def waiting(session: Session, limit: int) -> Sequence[str]:
    """Ids of queued jobs that could be claimed now."""
    return session.scalars(select(Job.id).where(*CLAIMABLE).order_by(Job.sequence).limit(limit)).all()


# Examinations


def add_examination(session: Session, examination: Examination) -> None:
    session.add(examination)
    session.flush()


def examination_locked(session: Session, id: str) -> Examination | None:
    return session.scalar(select(Examination).where(Examination.id == id).with_for_update())


def examinations_wait(session: Session) -> bool:
    """Whether there is an examination that nobody is at work on and that can be read here."""
    query = select(Examination.id).where(*_UNEXAMINED, *_EXAMINATIONS.understood)
    return session.scalar(query.limit(1)) is not None


def claim_examination(session: Session, *, lease: timedelta, each: int) -> Examination | None:
    """Take the fairest examination: of the organisation with the fewest at work, then of the one whose last turn is
    longest ago, then the oldest. An organisation has at most ``each`` at work. None when none may be taken.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": EXAMINATIONS_LOCK})
    for organization_id in session.scalars(_examined_least(each)).all():
        examination = _EXAMINATIONS.first_readable(
            session, *_UNEXAMINED, Examination.organization_id == organization_id
        )
        if examination is not None:
            taken = (
                update(Examination)
                .where(Examination.id == examination.id)
                .values(
                    strikes=Examination.strikes + 1,
                    claimed_at=func.clock_timestamp(),
                    lease_expires_at=func.now() + lease,
                )
            )
            return session.scalar(taken.returning(Examination), execution_options={"populate_existing": True})
    return None


def _examined_least(most: int) -> Select[str]:
    """Organisations that have an examination to be made and fewer than ``most`` at work, by whose turn it is."""
    waiting = (
        select(Examination.organization_id, func.min(Examination.sequence).label("oldest"))
        .where(*_UNEXAMINED, *_EXAMINATIONS.understood)
        .group_by(Examination.organization_id)
        .subquery()
    )
    other = aliased(Examination)
    own = other.organization_id == waiting.c.organization_id
    at_work = select(func.count()).where(own, other.answer.is_(None), other.lease_expires_at > func.now())
    last_turn = select(func.max(other.claimed_at)).where(own, other.claimed_at.is_not(None)).scalar_subquery()
    order = (at_work.scalar_subquery(), last_turn.asc().nulls_first(), waiting.c.oldest)
    return select(waiting.c.organization_id).where(at_work.scalar_subquery() < most).order_by(*order)


def call_off_examination(session: Session, id: str, answer: dict[str, Any]) -> None:
    """Keep ``answer`` in place of what nobody wants to find out any more.

    One that is being concluded is left alone: whoever does has it locked and waits for the job, which the caller has.
    """
    mine = select(Examination.id).where(Examination.id == id, Examination.answer.is_(None))
    unlocked = mine.with_for_update(skip_locked=True).scalar_subquery()
    session.execute(update(Examination).where(Examination.id == unlocked).values(answer=answer))


def remove_old_examinations(session: Session, older_than: timedelta, limit: int) -> int:
    """Forget up to ``limit`` examinations that are over, or whose job never came to be. Returns how many."""
    no_job = ~select(Job.id).where(Job.id == Examination.id).exists()
    old = (
        select(Examination.id)
        .where(Examination.created_at <= func.now() - older_than, or_(Examination.answer.is_not(None), no_job))
        .limit(limit)
    )
    return len(session.scalars(delete(Examination).where(Examination.id.in_(old)).returning(Examination.id)).all())


# Checkpoints


def record_checkpoint(session: Session, checkpoint: Checkpoint) -> None:
    """Add a checkpoint; one of an earlier attempt at the same step is replaced."""
    values = {
        column.key: getattr(checkpoint, column.key)
        for column in Checkpoint.__mapper__.column_attrs
        if column.key not in ("sequence", "created_at")
    }
    again = {name: values[name] for name in ("attempt", "path", "metrics")}
    statement = insert(Checkpoint).values(values)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[Checkpoint.job_id, Checkpoint.step], set_=again | {"created_at": func.now()}
        )
    )


def checkpoints(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """A job's checkpoints, newest step first."""
    return session.scalars(_checkpoints(job_id).order_by(Checkpoint.step.desc())).all()


def checkpoint_page(
    session: Session, job_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[Checkpoint], bool]:
    return pagination.fetch(session, _checkpoints(job_id), Checkpoint, after=after, limit=limit)


def all_checkpoints(session: Session) -> Sequence[Checkpoint]:
    return session.scalars(select(Checkpoint).order_by(Checkpoint.sequence.desc())).all()


def checkpoint_named(session: Session, model: str) -> Checkpoint | None:
    return session.scalar(select(Checkpoint).where(Checkpoint.model == model))


def remove_checkpoints(session: Session, ids: Sequence[str]) -> None:
    session.execute(delete(Checkpoint).where(Checkpoint.id.in_(ids)))


def is_shared(session: Session, model: str) -> bool:
    """Whether another project may use the model."""
    query = select(CheckpointPermission.id).where(CheckpointPermission.checkpoint == model)
    return session.scalar(query.limit(1)) is not None


def withdraw(session: Session, model: str) -> None:
    """Forget who may use a model that is no more."""
    session.execute(delete(CheckpointPermission).where(CheckpointPermission.checkpoint == model))


def _checkpoints(job_id: str) -> Select[Checkpoint]:
    return select(Checkpoint).where(Checkpoint.job_id == job_id)
