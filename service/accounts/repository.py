"""Queries on organisations, their projects and members, and API keys."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from sqlalchemy import ColumnElement, delete, func, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.accounts.models import APIKey, Operator, Organization, Project, ProjectUser, ServiceAccount, User
from service.accounts.scopes import Scope
from service.core import pagination
from service.core.db import Base
from service.core.errors import invalid

_KEYS = (APIKey.revoked_at.is_(None), APIKey.is_session.is_(False))
_LIVE = (APIKey.revoked_at.is_(None), or_(APIKey.expires_at.is_(None), APIKey.expires_at > func.now()))


@dataclass(frozen=True)
class Found:
    """Whose a key is."""

    key_id: str
    organization_id: str
    organization_name: str
    project_id: str | None
    scopes: list[Scope] | None
    user_id: str | None
    user_email: str | None
    service_account_id: str | None
    role: str | None


def is_live_hash(session: Session, hash: str) -> bool:
    """Whether a key with this hash is good. A session that acts for a project sees its own key alone."""
    return session.scalar(select(APIKey.id).where(APIKey.hash == hash, *_LIVE)) is not None


def identify(session: Session, hash: str, touch_every: timedelta) -> Found | None:
    """The key with this hash unless it is revoked or expired, or its project or organisation is no more.

    From here on the transaction sees the rows of that key's project only. Its use is noted, at most once in
    ``touch_every`` so that reading does not become writing. It is asked in the same round trip that begins the
    transaction, for every request does this first.
    """
    driver = session.connection().connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    with driver.pipeline():
        row = driver.execute("SELECT * FROM identify_key(%s, %s)", [hash, touch_every]).fetchone()
    return None if row is None else Found(*row)


def add(session: Session, row: Base) -> None:
    session.add(row)
    session.flush()


def added(session: Session, row: Base) -> bool:
    """Add a row, unless there is one already with which it cannot be, even if somebody adds that just now."""
    try:
        with session.begin_nested():
            add(session, row)
    except IntegrityError:
        return False
    return True


# Organisations and projects


def organization(session: Session, id: str) -> Organization | None:
    return session.scalar(select(Organization).where(Organization.id == id))


def organizations(session: Session, ids: Collection[str]) -> dict[str, Organization]:
    """Those of ``ids``, by id."""
    return {row.id: row for row in session.scalars(select(Organization).where(Organization.id.in_(ids)))}


def organization_named(session: Session, name: str) -> Organization | None:
    return session.scalar(select(Organization).where(Organization.name == name, Organization.deleted_at.is_(None)))


def operates(session: Session, organization_id: str) -> bool:
    """Whether an organisation's administrators see workers and the queue of the whole installation."""
    return session.scalar(select(Operator).where(Operator.organization_id == organization_id)) is not None


def operators(session: Session) -> Sequence[Organization]:
    """Organisations that operate the installation, by name."""
    query = select(Organization).join(Operator, Operator.organization_id == Organization.id)
    return session.scalars(query.where(Organization.deleted_at.is_(None)).order_by(Organization.name)).all()


def set_operating(session: Session, organization_id: str, *, operates: bool) -> None:
    session.execute(delete(Operator).where(Operator.organization_id == organization_id))
    if operates:
        add(session, Operator(organization_id=organization_id))


def projects_named(session: Session, organization_id: str, name: str) -> Sequence[Project]:
    """Those of an organisation that are called so, or have this id, and are not archived."""
    query = select(Project).where(Project.organization_id == organization_id, Project.archived_at.is_(None))
    return session.scalars(query.where(or_(Project.name == name, Project.id == name)).order_by(Project.sequence)).all()


def project(session: Session, id: str) -> Project | None:
    return session.scalar(select(Project).where(Project.id == id))


def project_locked(session: Session, id: str) -> Project | None:
    # Who writes a row that names it need not wait, and is not waited for: its id does not change.
    return session.scalar(select(Project).where(Project.id == id).with_for_update(key_share=True))


def projects(session: Session, organization_id: str) -> Sequence[Project]:
    return session.scalars(
        select(Project).where(Project.organization_id == organization_id).order_by(Project.sequence)
    ).all()


def project_page(session: Session, *, archived: bool, after: str | None, limit: int) -> tuple[Sequence[Project], bool]:
    query = select(Project) if archived else select(Project).where(Project.archived_at.is_(None))
    return pagination.fetch(session, query, Project, after=after, limit=limit)


# Members


def user(session: Session, id: str) -> User | None:
    return session.scalar(select(User).where(User.id == id, User.deleted_at.is_(None)))


def user_with(session: Session, organization_id: str, email: str) -> User | None:
    query = select(User).where(User.organization_id == organization_id, User.deleted_at.is_(None))
    return session.scalar(query.where(func.lower(User.email) == func.lower(email)))


def user_identified(session: Session, organization_id: str, identity: str) -> User | None:
    query = select(User).where(User.organization_id == organization_id, User.deleted_at.is_(None))
    return session.scalar(query.where(User.identity == identity))


def was_removed(session: Session, organization_id: str, identity: str, email: str) -> bool:
    """Whether there was a user of this identity or e-mail."""
    query = select(User.id).where(User.organization_id == organization_id, User.deleted_at.is_not(None))
    query = query.where(or_(User.identity == identity, func.lower(User.email) == func.lower(email)))
    return session.scalar(query.limit(1)) is not None


def projects_of(session: Session, user: User) -> Sequence[tuple[Project, str]]:
    """Projects in which a user has a role, and that role, the oldest project first."""
    query = select(Project, ProjectUser.role).outerjoin(
        ProjectUser, (ProjectUser.project_id == Project.id) & (ProjectUser.user_id == user.id)
    )
    query = query.where(Project.organization_id == user.organization_id, Project.archived_at.is_(None))
    if user.role != "owner":
        query = query.where(ProjectUser.role.is_not(None))
    rows = session.execute(query.order_by(Project.sequence))
    return [(project, "owner" if user.role == "owner" else role) for project, role in rows]


def users(session: Session, organization_id: str) -> Sequence[User]:
    query = select(User).where(User.organization_id == organization_id, User.deleted_at.is_(None))
    return session.scalars(query.order_by(User.sequence)).all()


def user_page(session: Session, *, emails: Sequence[str], after: str | None, limit: int) -> tuple[Sequence[User], bool]:
    query = select(User).where(User.deleted_at.is_(None))
    if emails:
        query = query.where(func.lower(User.email).in_([func.lower(email) for email in emails]))
    return pagination.fetch(session, query, User, after=after, limit=limit)


def membership(session: Session, project_id: str, user_id: str) -> ProjectUser | None:
    mine = (ProjectUser.project_id == project_id, ProjectUser.user_id == user_id)
    return session.scalar(select(ProjectUser).where(*mine))


def member_page(
    session: Session, project_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[tuple[ProjectUser, User]], bool]:
    """Members of a project, the one who came last first."""
    query = select(ProjectUser).where(ProjectUser.project_id == project_id)
    if after is not None:
        cursor = session.scalar(query.with_only_columns(ProjectUser.sequence).where(ProjectUser.user_id == after))
        if cursor is None:
            raise invalid(f"'after' must be the id of an item of this list; '{after}' is not.", "after")
        query = query.where(ProjectUser.sequence < cursor)
    rows = session.scalars(query.order_by(ProjectUser.sequence.desc()).limit(limit + 1)).all()
    users = {each.id: each for each in session.scalars(select(User).where(User.id.in_([row.user_id for row in rows])))}
    return [(row, users[row.user_id]) for row in rows[:limit]], len(rows) > limit


def service_account(session: Session, project_id: str, id: str) -> ServiceAccount | None:
    mine = (ServiceAccount.project_id == project_id, ServiceAccount.id == id, ServiceAccount.deleted_at.is_(None))
    return session.scalar(select(ServiceAccount).where(*mine))


def service_account_page(
    session: Session, project_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[ServiceAccount], bool]:
    query = select(ServiceAccount).where(ServiceAccount.project_id == project_id, ServiceAccount.deleted_at.is_(None))
    return pagination.fetch(session, query, ServiceAccount, after=after, limit=limit)


def owners_of_keys(session: Session, rows: Sequence[APIKey]) -> dict[str, User | ServiceAccount]:
    """Users and service accounts who own these keys, by their ids."""
    users = select(User).where(User.id.in_([key.user_id for key in rows]))
    programs = select(ServiceAccount).where(ServiceAccount.id.in_([key.service_account_id for key in rows]))
    found: dict[str, User | ServiceAccount] = {each.id: each for each in session.scalars(users)}
    return found | {each.id: each for each in session.scalars(programs)}


def roles_in(session: Session, members: Collection[tuple[str | None, str | None]]) -> dict[tuple[str | None, str], str]:
    """What users are in projects, by the ids of both, of which ``members`` are pairs."""
    wanted = tuple_(ProjectUser.project_id, ProjectUser.user_id).in_([pair for pair in members if None not in pair])
    rows = session.scalars(select(ProjectUser).where(wanted))
    return {(row.project_id, row.user_id): row.role for row in rows}


# Keys


def key(session: Session, id: str) -> APIKey | None:
    """A key that is not revoked, and no browser's session."""
    return session.scalar(select(APIKey).where(APIKey.id == id, *_KEYS))


def key_locked(session: Session, id: str) -> APIKey | None:
    return session.scalar(select(APIKey).where(APIKey.id == id, *_KEYS).with_for_update())


def session_key(session: Session, hash: str) -> APIKey | None:
    """The good key of a browser's session."""
    return session.scalar(select(APIKey).where(APIKey.hash == hash, APIKey.is_session, *_LIVE))


def is_session_of_owner(session: Session, hash: str) -> bool:
    """Whether this is the good key of a browser in which an owner of the organisation signed in."""
    query = select(User.role).join(APIKey, APIKey.user_id == User.id)
    query = query.where(APIKey.hash == hash, APIKey.is_session, *_LIVE, User.deleted_at.is_(None))
    return session.scalar(query) == "owner"


def live_keys_of(session: Session, user_id: str, project_id: str) -> Sequence[APIKey]:
    """A user's good keys in a project, newest first."""
    query = select(APIKey).where(APIKey.user_id == user_id, APIKey.project_id == project_id, *_KEYS, *_LIVE)
    return session.scalars(query.order_by(APIKey.sequence.desc())).all()


def keys(session: Session) -> Sequence[tuple[APIKey, Organization, Project | None]]:
    query = (
        select(APIKey, Organization, Project)
        .join(Organization, Organization.id == APIKey.organization_id)
        .outerjoin(Project, Project.id == APIKey.project_id)
        .where(APIKey.is_session.is_(False))
    )
    return [
        (key, organization, project) for key, organization, project in session.execute(query.order_by(APIKey.sequence))
    ]


def key_page(
    session: Session, project_id: str | None, *, after: str | None, limit: int, ascending: bool = False
) -> tuple[Sequence[APIKey], bool]:
    """Keys of a project, or without one those that administer, which are not revoked."""
    query = select(APIKey).where(*_KEYS)
    query = query.where(APIKey.project_id.is_(None) if project_id is None else APIKey.project_id == project_id)
    return pagination.fetch(session, query, APIKey, after=after, limit=limit, ascending=ascending)


def last_use(session: Session, user_ids: Sequence[str]) -> dict[str, datetime]:
    """When keys of these users were used last."""
    query = (
        select(APIKey.user_id, func.max(APIKey.last_used_at))
        .where(APIKey.user_id.in_(user_ids), APIKey.last_used_at.is_not(None))
        .group_by(APIKey.user_id)
    )
    return {user_id: used_at for user_id, used_at in session.execute(query) if user_id and used_at}


def revoke(session: Session, id: str) -> APIKey | None:
    """Revoke a key. None when no key that is still valid has this id."""
    return next(iter(_revoke(session, APIKey.id == id)), None)


def revoke_all(
    session: Session,
    *,
    organization_id: str | None = None,
    project_id: str | None = None,
    user_id: str | None = None,
    service_account_id: str | None = None,
) -> Sequence[APIKey]:
    """Revoke the keys of whatever is named."""
    named: dict[Any, str | None] = {
        APIKey.organization_id: organization_id,
        APIKey.project_id: project_id,
        APIKey.user_id: user_id,
        APIKey.service_account_id: service_account_id,
    }
    conditions = [column == value for column, value in named.items() if value is not None]
    assert conditions, "never those of everybody"
    return _revoke(session, *conditions)


def _revoke(session: Session, *which: ColumnElement[bool]) -> Sequence[APIKey]:
    query = update(APIKey).where(*which, APIKey.revoked_at.is_(None)).values(revoked_at=func.now())
    return session.scalars(query.returning(APIKey), execution_options={"populate_existing": True}).all()


def end_sessions(session: Session, user_id: str, project_id: str | None = None) -> None:
    """Sign a user out of all browsers, or of a project in all of them."""
    where = [] if project_id is None else [APIKey.project_id == project_id]
    _revoke(session, APIKey.user_id == user_id, APIKey.is_session.is_(True), *where)


def end_memberships(session: Session, user_id: str, project_id: str | None = None) -> bool:
    """In all projects, or in one. Whether there was any."""
    query = delete(ProjectUser).where(ProjectUser.user_id == user_id)
    if project_id is not None:
        query = query.where(ProjectUser.project_id == project_id)
    return session.execute(query.returning(ProjectUser.user_id)).first() is not None
