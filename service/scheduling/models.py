"""The GPU time that organisations have used, and the workers that are there."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base, Owned


class GPUUsage(Base):
    """GPU-seconds of an organisation's attempts in the hour that begins at ``hour``; a process without a GPU is one."""

    __tablename__ = "gpu_usage"
    __table_args__ = (Index("gpu_usage_hours", "hour"),)

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    gpu_seconds: Mapped[float]


class ProjectGPUUsage(Owned, Base):
    """The same of one project."""

    __tablename__ = "project_gpu_usage"

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    gpu_seconds: Mapped[float]


class Worker(Base):
    """A training worker, by the name that it has for Celery."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When it was last heard of."""
    draining_since: Mapped[datetime | None]
    """Since when it takes no further job."""
    gpus: Mapped[int]
    """How many processes train one job, each on a GPU of its own where there are GPUs."""
    gpu_bytes: Mapped[int] = mapped_column(server_default="0")
    """Memory of these GPUs together; 0 where it has none, or does not say."""
    engines: Mapped[list[str]]
    """The rollout engines that are installed there."""
