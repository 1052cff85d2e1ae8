"""Queries on limits and on what was used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.accounts.models import Organization
from service.scheduling.models import GPUUsage, ProjectGPUUsage
from service.scheduling.repository import accounts
from service.usage.models import OrganizationLimits, ProjectTokenUsage, TokenUsage

Group = Literal["model", "project_id"]
Width = Literal["minute", "hour", "day"]


# The rooms of files, uploads, jobs and exports are above this one: their tables are named, not imported.
def _stored_of(owner: str, column: str) -> list[str]:
    """Bytes of the files, uploads, jobs and exports whose ``column`` is the id of ``owner``."""
    return [
        f"(SELECT coalesce(sum(bytes), 0) FROM files f WHERE f.{column} = {owner}.id "
        "AND (f.expires_at IS NULL OR f.expires_at > now()))",
        f"(SELECT coalesce(sum(bytes), 0) FROM uploads u WHERE u.{column} = {owner}.id "
        "AND u.status = 'pending' AND u.expires_at > now())",
        f"(SELECT coalesce(sum(stored_bytes), 0) FROM fine_tuning_jobs j WHERE j.{column} = {owner}.id)",
        f"(SELECT coalesce(sum(bytes), 0) FROM exports e WHERE e.{column} = {owner}.id AND e.expires_at > now())",
    ]


_STORAGE = f"SELECT o.id, {' + '.join(_stored_of('o', 'organization_id'))} FROM organizations o"


# Limits


def limits(session: Session, organization_id: str) -> OrganizationLimits | None:
    query = select(OrganizationLimits).where(OrganizationLimits.organization_id == organization_id)
    return session.scalar(query, execution_options={"populate_existing": True})


def set_limits(session: Session, organization_id: str, changed: Mapping[str, int | None]) -> None:
    statement = insert(OrganizationLimits).values(organization_id=organization_id, **changed)
    session.execute(
        statement.on_conflict_do_update(index_elements=[OrganizationLimits.organization_id], set_=dict(changed))
        if changed
        else statement.on_conflict_do_nothing()
    )


# Storage


def lock_storage(session: Session, organization_id: str) -> None:
    """Let nobody else add to what an organisation stores until the transaction ends."""
    query = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
    session.execute(query, {"name": f"storage/{organization_id}"})


def stored_bytes(session: Session, organization_id: str) -> int:
    """Bytes of an organisation's files, of uploads that it announced, of its jobs' checkpoints and results, and
    of exports."""
    found = session.execute(text(f"{_STORAGE} WHERE o.id = :id"), {"id": organization_id}).one()
    return int(found[1])


def stored_bytes_of_all(session: Session) -> dict[str, int]:
    return {id: int(size) for id, size in session.execute(text(_STORAGE))}


@dataclass(frozen=True)
class Stored:
    """Bytes that a project stores."""

    project_id: str
    files: int
    uploads: int
    jobs: int
    exports: int


def stored_by_project(session: Session) -> list[Stored]:
    """Of every project that the session sees, the oldest first."""
    rows = session.execute(
        text(f"SELECT p.id, {', '.join(_stored_of('p', 'project_id'))} FROM projects p ORDER BY sequence")
    )
    return [Stored(id, *map(int, sizes)) for id, *sizes in rows]


@dataclass(frozen=True)
class Standing:
    """Where an organisation stands."""

    queued_jobs: int
    running_jobs: int
    gpu_seconds: float
    """Of this calendar month of UTC."""
    gpu_seconds_a_month: float | None


def standing(session: Session, organization_id: str) -> Standing:
    query = """
        SELECT count(*) FILTER (WHERE status IN ('queued', 'validating_files')),
            count(*) FILTER (WHERE status = 'running')
        FROM fine_tuning_jobs
        WHERE organization_id = :id AND status IN ('queued', 'validating_files', 'running')
    """
    queued, running = session.execute(text(query), {"id": organization_id}).one()
    [account] = [each for each in accounts(session) if each.id == organization_id]
    budget = None if account.gpu_hours_a_month is None else account.gpu_hours_a_month * 3600
    return Standing(queued, running, account.month_gpu_seconds, budget)


# Tokens


@dataclass
class Tokens:
    requests: int = 0
    input: int = 0
    output: int = 0


def add_tokens(session: Session, organization_id: str, project_id: str, model: str, tokens: Tokens) -> None:
    """Count ``tokens`` in the minute at hand, of the organisation and of its project."""
    _add_tokens(session, TokenUsage, tokens, organization_id=organization_id, model=model)
    _add_tokens(session, ProjectTokenUsage, tokens, organization_id=organization_id, project_id=project_id, model=model)


def _add_tokens(
    session: Session, table: type[TokenUsage] | type[ProjectTokenUsage], tokens: Tokens, **whose: str
) -> None:
    statement = insert(table).values(
        **whose,
        minute=func.date_trunc("minute", func.now()),
        requests=tokens.requests,
        input_tokens=tokens.input,
        output_tokens=tokens.output,
    )
    total = {
        name: getattr(table, name) + getattr(statement.excluded, name)
        for name in ("requests", "input_tokens", "output_tokens")
    }
    key = [getattr(table, name) for name in (*whose, "minute")]
    session.execute(statement.on_conflict_do_update(index_elements=key, set_=total))


def tokens_since(session: Session, organization_id: str, since: datetime) -> int:
    query = select(func.coalesce(func.sum(TokenUsage.input_tokens + TokenUsage.output_tokens), 0))
    query = query.where(TokenUsage.organization_id == organization_id, TokenUsage.minute >= since)
    return int(session.scalars(query).one())


@dataclass(frozen=True)
class Span:
    """From ``begin`` to before ``end``, in buckets of a ``width`` of UTC."""

    width: Width
    begin: datetime
    end: datetime


def tokens_in_buckets(
    session: Session, span: Span, *, models: Sequence[str], project_ids: Sequence[str], by: Sequence[Group]
) -> list[tuple[datetime, dict[Group, str], Tokens]]:
    """Sums of the minutes of ``span``, by the time in UTC at which their bucket begins, and by ``by``.

    A project's session finds what that project used, and an administrator's what the organisation did.
    """
    used = ProjectTokenUsage
    bucket = func.date_trunc(span.width, used.minute, "UTC").label("bucket")
    groups: list[Any] = [getattr(used, name) for name in by]
    sums = [func.sum(each) for each in (used.requests, used.input_tokens, used.output_tokens)]
    query = select(bucket, *groups, *sums).where(used.minute >= span.begin, used.minute < span.end)
    if models:
        query = query.where(used.model.in_(models))
    if project_ids:
        query = query.where(used.project_id.in_(project_ids))
    rows = session.execute(query.group_by(bucket, *groups).order_by(bucket, *groups))
    return [(row[0], dict(zip(by, row[1:], strict=False)), Tokens(*map(int, row[-3:]))) for row in rows]


# GPU time


def gpu_seconds_in_buckets(
    session: Session, span: Span, *, project_ids: Sequence[str], by_project: bool
) -> list[tuple[datetime, str | None, float]]:
    """Sums of the hours of ``span``, by the time in UTC at which their bucket begins, and by project."""
    used = ProjectGPUUsage
    bucket = func.date_trunc(span.width, used.hour, "UTC").label("bucket")
    groups: list[Any] = [used.project_id] if by_project else []
    query = select(bucket, *groups, func.sum(used.gpu_seconds)).where(used.hour >= span.begin, used.hour < span.end)
    if project_ids:
        query = query.where(used.project_id.in_(project_ids))
    rows = session.execute(query.group_by(bucket, *groups).order_by(bucket, *groups))
    return [(row[0], row[1] if by_project else None, row[-1]) for row in rows]


# Everything, for operators


@dataclass(frozen=True)
class Used:
    """What an organisation used from one time to another, and stores now."""

    id: str
    name: str
    gpu_seconds: float
    requests: int
    input_tokens: int
    output_tokens: int
    stored_bytes: int


def used(session: Session, begin: datetime, end: datetime) -> list[Used]:
    """Of every organisation, by name."""
    gpu = dict(
        session.execute(
            select(GPUUsage.organization_id, func.sum(GPUUsage.gpu_seconds))
            .where(GPUUsage.hour >= begin, GPUUsage.hour < end)
            .group_by(GPUUsage.organization_id)
        ).all()
    )
    sums = [func.sum(each) for each in (TokenUsage.requests, TokenUsage.input_tokens, TokenUsage.output_tokens)]
    inside = (TokenUsage.minute >= begin, TokenUsage.minute < end)
    query = select(TokenUsage.organization_id, *sums).where(*inside).group_by(TokenUsage.organization_id)
    tokens = {row[0]: (int(row[1]), int(row[2]), int(row[3])) for row in session.execute(query)}
    stored = stored_bytes_of_all(session)
    organizations = session.scalars(select(Organization).order_by(Organization.name))
    found = []
    for each in organizations:
        requests, input_tokens, output_tokens = tokens.get(each.id, (0, 0, 0))
        seconds, size = gpu.get(each.id, 0.0), stored.get(each.id, 0)
        found.append(Used(each.id, each.name, seconds, requests, input_tokens, output_tokens, size))
    return found
