"""Writing the audit log, and reading it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Table, func, insert, select
from sqlalchemy.orm import Session

from service.audit.models import AuditLog
from service.core import pagination
from service.core.db import EVERY_PROJECT, owner_of
from service.core.ids import new_id
from service.core.logs import request_id

_TABLE = cast(Table, AuditLog.__table__)


@dataclass(frozen=True)
class Actor:
    """Who does something. ``shown`` is what the API tells of it."""

    shown: dict[str, Any]
    id: str | None = None
    email: str | None = None
    address: str | None = None


OPERATOR = Actor({"type": "session", "session": {"user": {"id": "operator"}}}, "operator")
"""Whoever works on the database itself, with the command line."""


def act_as(session: Session, actor: Actor) -> None:
    """Whatever is recorded in this session was done by ``actor``."""
    session.info["actor"] = actor


def record(
    session: Session,
    type: str,
    object_id: str | None,
    *,
    organization_id: str | None = None,
    project_id: str | None = None,
    **details: Any,
) -> None:
    """Write down what this transaction does. Whose it is follows from the session, unless it is given."""
    actor: Actor = session.info.get("actor", OPERATOR)
    owner = owner_of(session)
    if owner is not None:
        organization_id = organization_id or owner.organization_id
        project_id = project_id or (owner.project_id if owner.project_id != EVERY_PROJECT else None)
    assert organization_id is not None, "operators say whose it is"
    values = {
        "id": new_id("audit_log-"),
        "organization_id": organization_id,
        "project_id": project_id,
        "type": type,
        "actor": actor.shown,
        "actor_id": actor.id,
        "actor_email": actor.email,
        "object_id": object_id,
        "details": details,
        "address": actor.address,
        "request_id": None if request_id.get() == "-" else request_id.get(),
    }
    # A project may write what it may not read, so that nothing is asked back.
    session.execute(insert(_TABLE).values(values))


@dataclass(frozen=True)
class Wanted:
    """Which entries to list; what is None or empty does not restrict."""

    types: Sequence[str] = ()
    project_ids: Sequence[str] = ()
    actor_ids: Sequence[str] = ()
    actor_emails: Sequence[str] = ()
    object_ids: Sequence[str] = ()
    bounds: Sequence[tuple[str, datetime]] = ()
    """Comparisons with the time of an entry: gt, gte, lt or lte, and a time."""


def page(
    session: Session, wanted: Wanted, *, after: str | None, before: str | None, limit: int
) -> tuple[Sequence[AuditLog], bool]:
    """Newest first; those behind the entry ``after``, or the ones just before the entry ``before``."""
    query = select(AuditLog)
    for column, values in (
        (AuditLog.type, wanted.types),
        (AuditLog.project_id, wanted.project_ids),
        (AuditLog.actor_id, wanted.actor_ids),
        (AuditLog.actor_email, wanted.actor_emails),
        (AuditLog.object_id, wanted.object_ids),
    ):
        if values:
            query = query.where(column.in_(values))
    second = func.date_trunc("second", AuditLog.created_at)
    compared = {
        "gt": second.__gt__,
        "gte": second.__ge__,
        "lt": second.__lt__,
        "lte": second.__le__,
    }
    for how, time in wanted.bounds:
        query = query.where(compared[how](time))
    if before is not None:
        rows, more = pagination.fetch(session, query, AuditLog, after=before, limit=limit, ascending=True)
        return rows[::-1], more
    return pagination.fetch(session, query, AuditLog, after=after, limit=limit)
