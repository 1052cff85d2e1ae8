"""Queries on GPU time and workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, Subquery, case, func, select, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.accounts.models import Organization
from service.scheduling.models import GPUUsage, ProjectGPUUsage, Worker

WINDOW = timedelta(hours=24)
"""How far back GPU time counts when it is decided whose turn it is."""


# GPU time


def add_usage(session: Session, organization_id: str, project_id: str, gpu_seconds: float) -> None:
    """Count ``gpu_seconds`` in the hour at hand, of the organisation and of its project."""
    _add_usage(session, GPUUsage, gpu_seconds, organization_id=organization_id)
    _add_usage(session, ProjectGPUUsage, gpu_seconds, organization_id=organization_id, project_id=project_id)


def _add_usage(
    session: Session, table: type[GPUUsage] | type[ProjectGPUUsage], gpu_seconds: float, **whose: str
) -> None:
    statement = insert(table).values(**whose, hour=func.date_trunc("hour", func.now()), gpu_seconds=gpu_seconds)
    total = table.gpu_seconds + statement.excluded.gpu_seconds
    key = [getattr(table, name) for name in (*whose, "hour")]
    session.execute(statement.on_conflict_do_update(index_elements=key, set_={"gpu_seconds": total}))


def recent_use() -> Subquery:
    """The GPU-seconds of the last ``WINDOW`` of every organisation that used any."""
    query = select(GPUUsage.organization_id, func.sum(GPUUsage.gpu_seconds).label("gpu_seconds"))
    return query.where(GPUUsage.hour > func.now() - WINDOW).group_by(GPUUsage.organization_id).subquery()


def used_per_weight(organization_id: Any) -> ScalarSelect[float]:
    """An organisation's GPU-seconds of the last ``WINDOW``, divided by its weight."""
    used = (
        select(func.coalesce(func.sum(GPUUsage.gpu_seconds), 0.0))
        .where(GPUUsage.organization_id == Organization.id, GPUUsage.hour > func.now() - WINDOW)
        .correlate(Organization)
        .scalar_subquery()
    )
    return select(used / Organization.weight).where(Organization.id == organization_id).scalar_subquery()


def within_budget(organization_id: Any) -> ColumnElement[bool]:
    """Whether an organisation may still use GPU time this month."""
    # Nothing is added up where it does not matter.
    unlimited = (Organization.gpu_hours_a_month.is_(None), true())
    query = select(case(unlimited, else_=_used_this_month() < Organization.gpu_hours_a_month * 3600))
    return func.coalesce(query.where(Organization.id == organization_id).scalar_subquery(), True)


def is_within_budget(session: Session, organization_id: str) -> bool:
    return session.scalars(select(within_budget(organization_id))).one()


def _used_this_month() -> ScalarSelect[float]:
    month = func.date_trunc("month", func.timezone("UTC", func.now())).op("AT TIME ZONE")("UTC")
    return (
        select(func.coalesce(func.sum(GPUUsage.gpu_seconds), 0.0))
        .where(GPUUsage.organization_id == Organization.id, GPUUsage.hour >= month)
        .correlate(Organization)
        .scalar_subquery()
    )


@dataclass(frozen=True)
class Account:
    """An organisation's share and budget, and what it used of them."""

    id: str
    name: str
    weight: float
    recent_gpu_seconds: float
    """Of the last ``WINDOW``."""
    gpu_hours_a_month: float | None
    month_gpu_seconds: float
    """Of this calendar month."""

    @property
    def within_budget(self) -> bool:
        return self.gpu_hours_a_month is None or self.month_gpu_seconds < self.gpu_hours_a_month * 3600


def accounts(session: Session, *, deleted: bool = False) -> list[Account]:
    """Every organisation's, by name; those of ``deleted`` ones too, whose jobs may not have ended yet."""
    recent = (
        select(func.coalesce(func.sum(GPUUsage.gpu_seconds), 0.0))
        .where(GPUUsage.organization_id == Organization.id, GPUUsage.hour > func.now() - WINDOW)
        .correlate(Organization)
        .scalar_subquery()
    )
    query = select(Organization, recent, _used_this_month())
    if not deleted:
        query = query.where(Organization.deleted_at.is_(None))
    return [
        Account(each.id, each.name, each.weight, used, each.gpu_hours_a_month, month)
        for each, used, month in session.execute(query.order_by(Organization.name))
    ]


def set_weight(session: Session, name: str, weight: float) -> bool:
    """False where there is no organisation of this name."""
    query = (
        update(Organization).where(Organization.name == name, Organization.deleted_at.is_(None)).values(weight=weight)
    )
    return session.scalar(query.returning(Organization.id)) is not None


def set_budget(session: Session, name: str, gpu_hours_a_month: float | None) -> bool:
    """False where there is no organisation of this name."""
    query = (
        update(Organization)
        .where(Organization.name == name, Organization.deleted_at.is_(None))
        .values(gpu_hours_a_month=gpu_hours_a_month)
    )
    return session.scalar(query.returning(Organization.id)) is not None


# Workers


def register(session: Session, name: str, *, gpus: int, engines: Sequence[str], gpu_bytes: int = 0) -> None:
    """Say that a worker has started. Whether it takes jobs stays as it was."""
    has = {"gpus": gpus, "engines": list(engines), "gpu_bytes": gpu_bytes}
    statement = insert(Worker).values(name=name, **has)
    again = {"started_at": func.now(), "seen_at": func.now(), **has}
    session.execute(statement.on_conflict_do_update(index_elements=[Worker.name], set_=again))


def see(session: Session, name: str) -> Worker | None:
    """Note that a worker is there; None where nobody knows it any more."""
    query = update(Worker).where(Worker.name == name).values(seen_at=func.now())
    return session.scalar(query.returning(Worker), execution_options={"populate_existing": True})


def is_draining(session: Session, name: str) -> bool:
    return session.scalar(select(Worker.draining_since).where(Worker.name == name)) is not None


def set_draining(session: Session, name: str, *, draining: bool) -> bool:
    """False where there is no worker of this name."""
    since = func.coalesce(Worker.draining_since, func.now()) if draining else None
    query = update(Worker).where(Worker.name == name).values(draining_since=since)
    return session.scalar(query.returning(Worker.name)) is not None


def workers(session: Session, seen_within: timedelta | None = None) -> Sequence[Worker]:
    """All workers, or those that were heard of so lately."""
    query = select(Worker).order_by(Worker.name)
    if seen_within is not None:
        query = query.where(Worker.seen_at > func.now() - seen_within)
    return session.scalars(query).all()


def forget_workers(session: Session, unseen_for: timedelta) -> None:
    for worker in session.scalars(select(Worker).where(Worker.seen_at <= func.now() - unseen_for)):
        session.delete(worker)
