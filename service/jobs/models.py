"""Fine-tuning jobs, their events and their checkpoints."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Computed, ForeignKey, Index, exists, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column

from service.core.db import EVERY_PROJECT, Base, Owned, Owner, Sequenced
from service.jobs import stored
from service.jobs.examination import Question
from service.jobs.spec import JobSpec


class Job(Owned, Sequenced, Base):
    """The durable truth about a job.

    ``status`` is what is, ``desired`` what its owner wants. ``attempt`` only grows and fences every write of a worker;
    ``strikes`` counts attempts since the last new checkpoint. ``event_count`` is the ``seq`` of the newest event.
    """

    __tablename__ = "fine_tuning_jobs"
    __table_args__ = (
        Index("jobs_queued", "sequence", postgresql_where=text("status = 'queued'")),
        Index(
            "jobs_waiting",
            "organization_id",
            "spec_version",
            "engine",
            "gpu_bytes",
            text("priority DESC"),
            "sequence",
            postgresql_where=text("status = 'queued' AND desired = 'run'"),
        ),
        Index("jobs_running", "organization_id", postgresql_where=text("status = 'running'")),
        Index("jobs_succeeded", "organization_id", "model", "sequence", postgresql_where=text("status = 'succeeded'")),
        Index("jobs_of_organization", "organization_id", "sequence"),
        Index("jobs_of_project", "project_id", "sequence"),
        Index(
            "jobs_with_events",
            "finished_at",
            postgresql_where=text("finished_at IS NOT NULL AND events_removed_at IS NULL"),
        ),
        Index("jobs_unfinished", "project_id", postgresql_where=text("finished_at IS NULL")),
        Index("jobs_claimed", "organization_id", "claimed_at", postgresql_where=text("claimed_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    desired: Mapped[str] = mapped_column(server_default="run")

    spec: Mapped[dict[str, Any]]
    model: Mapped[str]
    training_file: Mapped[str]
    validation_file: Mapped[str | None]
    meta: Mapped[dict[str, Any] | None] = mapped_column("metadata")

    attempt: Mapped[int] = mapped_column(server_default="0")
    strikes: Mapped[int] = mapped_column(server_default="0")
    worker: Mapped[str | None]
    claimed_at: Mapped[datetime | None]
    """When a worker last took the job."""
    lease_expires_at: Mapped[datetime | None]
    eligible_at: Mapped[datetime] = mapped_column(server_default=func.now())

    # What a worker needs to have, told by the row itself so that an index can find it.
    spec_version: Mapped[Any] = mapped_column(JSONB, Computed("coalesce(spec -> 'version', '1'::jsonb)"))
    engine: Mapped[str | None] = mapped_column(
        Computed("coalesce(spec -> 'method' -> 'hyperparameters' ->> 'rollout_engine', '')")
    )
    """The rollout engine; empty where it needs none."""
    gpu_bytes: Mapped[int] = mapped_column(server_default="0")
    """Memory of all GPUs of a worker that it needs at least; 0 where that is not known."""
    priority: Mapped[int] = mapped_column(server_default="0")
    """Among the jobs of its organisation that wait, those of the highest are taken first."""
    gpus: Mapped[int] = mapped_column(server_default="1")
    """How many the attempt at hand has."""
    counted_at: Mapped[datetime | None]
    """Until when the time of the attempt at hand is part of ``gpu_seconds``."""
    gpu_seconds: Mapped[float] = mapped_column(server_default="0")
    """What all attempts have used."""
    estimated_gpu_seconds: Mapped[float | None]
    """What all attempts would use, as it was thought when the job was created."""
    stored_bytes: Mapped[int] = mapped_column(server_default="0")
    """Of checkpoints and results, when its worker last changed something about them."""
    queue_position: Mapped[int | None]
    """How many jobs of anybody will be taken before it, and one; of a queued job, as of the last sweep."""
    estimated_start: Mapped[datetime | None]
    waits_for: Mapped[str | None]
    """What has to be there before a worker can take it."""

    event_count: Mapped[int] = mapped_column(server_default="0")
    events_removed_at: Mapped[datetime | None]
    """When the events of a job that ended long ago were removed."""
    step: Mapped[int] = mapped_column(server_default="0")
    total_steps: Mapped[int]
    trained_tokens: Mapped[int | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    estimated_finish: Mapped[datetime | None]
    fine_tuned_model: Mapped[str | None]
    result_files: Mapped[list[str]] = mapped_column(server_default="[]")
    error: Mapped[dict[str, Any] | None]
    longest_answer: Mapped[int | None]
    """Tokens that the context leaves beside the shortest prompt, if that was found out."""

    def as_spec(self) -> JobSpec:
        """What was asked for, as it will be run by what was found out since. Raises ``stored.UnreadableError``."""
        spec = stored.read_specification(self.spec)
        return spec if self.longest_answer is None else spec.with_answers_of(self.longest_answer)

    @property
    def is_readable(self) -> bool:
        try:
            self.as_spec()
        except stored.UnreadableError:
            return False
        return True


class Event(Base):
    """Something that happened to a job. ``seq`` runs 1, 2, 3, … within the job, without gap.

    ``key`` names events that a resumed run tells again; each is recorded once.
    """

    __tablename__ = "fine_tuning_events"
    __table_args__ = (Index("events_once", "job_id", "key", unique=True),)

    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any] | None]
    key: Mapped[str | None]

    @classmethod
    def owned(cls, owner: Owner) -> ColumnElement[bool]:
        return cls.job_id.in_(select(Job.id).where(Job.owned(owner)))


class MetricBlock(Owned, Base):
    """Means of the metrics of ``size`` steps that follow one another; ``number`` 0 is a job's first block of a size."""

    __tablename__ = "metric_blocks"

    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"), primary_key=True)
    size: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    first_step: Mapped[float]
    step: Mapped[float]
    """The last one."""
    last_seq: Mapped[int]
    """Of the last step's event."""
    told_at: Mapped[datetime]
    """When that was told."""
    tokens: Mapped[float]
    """That were learned from up to here, from the first step on."""
    means: Mapped[dict[str, Any]]
    """By name, with dots in it where it is nested."""
    counts: Mapped[dict[str, Any]]
    """Of how many steps that is the mean, where not of all of them."""


class CheckpointPermission(Owned, Sequenced, Base):
    """A project that may use the model ``checkpoint``, a checkpoint or a tuned model, of ``source_project_id``."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (
        Index("checkpoint_permissions_once", "checkpoint", "project_id", unique=True),
        Index("checkpoint_permissions_of_project", "project_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    source_project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    checkpoint: Mapped[str]

    @classmethod
    def owned(cls, owner: Owner) -> ColumnElement[bool]:
        """Those that the project gave; those that it was given are asked for by ``given_to``."""
        own = cls.organization_id == owner.organization_id
        return own if owner.project_id == EVERY_PROJECT else own & (cls.source_project_id == owner.project_id)


def given_to(model: InstrumentedAttribute[str], owner: Owner) -> ColumnElement[bool]:
    """Whether the model of this name was shared with the owner's project."""
    given = CheckpointPermission.__table__.c
    return exists().where(
        given.checkpoint == model,
        given.organization_id == owner.organization_id,
        given.project_id == owner.project_id,
    )


class Checkpoint(Owned, Sequenced, Base):
    """A checkpoint that is whole on disk. ``path`` is relative to the job's folder."""

    __tablename__ = "fine_tuning_checkpoints"
    __table_args__ = (Index("checkpoints_once", "job_id", "step", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"))
    step: Mapped[int]
    attempt: Mapped[int]
    path: Mapped[str]
    model: Mapped[str]
    metrics: Mapped[dict[str, Any]]

    @classmethod
    def owned(cls, owner: Owner) -> ColumnElement[bool]:
        """Those that were shared with the project too."""
        return super().owned(owner) | given_to(cls.model, owner)


class Examination(Owned, Sequenced, Base):
    """Something that a control worker is to find out about a job before it is queued; ``id`` is the job's.

    ``question`` and ``answer`` are those of ``service.jobs.examination``. The job itself need not be there yet.
    """

    __tablename__ = "examinations"
    __table_args__ = (
        Index("examinations_open", "sequence", postgresql_where=text("answer IS NULL")),
        Index("examinations_claimed", "organization_id", "claimed_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    question: Mapped[dict[str, Any]]
    strikes: Mapped[int] = mapped_column(server_default="0")
    """How often a worker has begun it."""
    claimed_at: Mapped[datetime | None]
    lease_expires_at: Mapped[datetime | None]
    answer: Mapped[dict[str, Any] | None]

    def as_question(self) -> Question:
        """Raises ``stored.UnreadableError``."""
        return stored.read_question(self.question)
