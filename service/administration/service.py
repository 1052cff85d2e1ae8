"""What administrators change in an organisation: its projects, who belongs to them, and their keys.

Each change is written down in the audit log by the transaction that makes it.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from service.accounts import repository
from service.accounts import service as accounts
from service.accounts.models import APIKey, Organization, Project, ProjectUser, ServiceAccount, User
from service.accounts.scopes import Scope
from service.accounts.service import KeyOwner, default_project
from service.audit import repository as audit
from service.core import clock
from service.core.db import within_project
from service.core.errors import DomainError, invalid, not_found
from service.core.ids import new_id
from service.jobs import repository as jobs
from service.jobs import service as job_service
from service.jobs.states import TERMINAL
from service.models import repository as models
from service.models.schemas import ModelObject

T = TypeVar("T")

# Organisations and projects


def project(session: Session, id: str) -> Project:
    return _found(repository.project(session, id), not_found("project", id))


def active_project(session: Session, id: str) -> Project:
    """Raises a 400 for one that is archived: nothing in it changes any more."""
    found = _found(repository.project_locked(session, id), not_found("project", id))
    if found.archived_at is not None:
        raise invalid(f"Project {id} is archived.", None, "invalid_project_state")
    return found


def rename_project(session: Session, id: str, name: str) -> Project:
    found = active_project(session, id)
    found.name = name
    session.flush()
    _record(session, "project.updated", found, found.id, changes_requested={"name": name, "title": name})
    return found


def archive_project(session: Session, id: str) -> Project:
    """End a project: its keys at once, and its jobs, which are cancelled. What it made stays where it is."""
    found = archivable_project(session, id)
    end_project(session, found)
    for job_id in jobs.unfinished_of(session, id):
        _call_off(session, job_id)
    return found


def archived_project(session: Session, id: str) -> Project:
    """Raises a 400 for one that is not archived: there its own keys do what there is to do."""
    found = project(session, id)
    if found.archived_at is None:
        raise invalid(f"Project {id} is not archived. Use a key of its own.", None, "invalid_project_state")
    return found


def models_of(session: Session, project_id: str) -> list[ModelObject]:
    """Tuned models and checkpoints that an archived project made."""
    archived_project(session, project_id)
    with within_project(session, project_id):
        tuned = [(row.id, row.created_at) for row in models.all_tuned(session) if row.project_id == project_id]
        saved = [(row.model, row.created_at) for row in jobs.all_checkpoints(session) if row.project_id == project_id]
        owner = project(session, project_id).organization_id
    return [
        ModelObject(id=name, created=int(created_at.timestamp()), owned_by=owner)
        for name, created_at in [*tuned, *saved]
    ]


def archivable_project(session: Session, id: str) -> Project:
    """Raises a 400 for the default project: an organisation always has that."""
    found = active_project(session, id)
    if id == default_project(found.organization_id):
        message = "The default project cannot be archived. An operator deletes an organization: 'troll admin delete'."
        raise invalid(message, None, "invalid_project_state")
    return found


def end_project(session: Session, found: Project) -> None:
    """Archive a project and end its keys. The sweep cancels the jobs that it still has."""
    found.archived_at = clock.now(session)
    session.flush()
    accounts.revoke_keys(session, project_id=found.id)
    _record(session, "project.archived", found, found.id)


def _call_off(session: Session, job_id: str) -> None:
    """Cancel a job that did not end meanwhile."""
    job = jobs.locked(session, job_id)
    if job is not None and job.status not in TERMINAL:
        audit.record(
            session,
            "fine_tuning.job.cancelled",
            job.id,
            organization_id=job.organization_id,
            project_id=job.project_id,
        )
        job_service.forget_answers(job)
        job_service.call_off(session, job)


def delete_organization(session: Session, organization: Organization) -> None:
    """End an organisation: its keys and projects at once; the sweep cancels its jobs, and pruning removes its data."""
    organization.deleted_at = clock.now(session)
    session.flush()
    accounts.revoke_keys(session, organization_id=organization.id)
    for each in repository.projects(session, organization.id):
        if each.archived_at is None:
            end_project(session, each)
    audit.record(session, "organization.deleted", organization.id, organization_id=organization.id)


# Users


def add_user(session: Session, organization_id: str, *, email: str, name: str, role: str) -> User:
    user = User(id=new_id("user-"), organization_id=organization_id, email=email, name=name, role=role)
    if not repository.added(session, user):
        raise invalid(f"{email} is a user of this organization already.", "email", "user_exists")
    audit.record(session, "user.added", user.id, organization_id=organization_id, data={"email": email, "role": role})
    return user


def user(session: Session, id: str) -> User:
    return _found(repository.user(session, id), not_found("user", id))


def change_user(session: Session, id: str, role: str) -> User:
    found = user(session, id)
    found.role = role
    session.flush()
    repository.end_sessions(session, id)
    audit.record(session, "user.updated", id, organization_id=found.organization_id, changes_requested={"role": role})
    return found


def delete_user(session: Session, found: User) -> None:
    """Their keys end at once."""
    accounts.revoke_keys(session, user_id=found.id)
    repository.end_memberships(session, found.id)
    found.deleted_at = clock.now(session)
    session.flush()
    audit.record(session, "user.deleted", found.id, organization_id=found.organization_id)


# Members of projects


def add_member(
    session: Session, project_id: str, *, user_id: str | None, email: str | None, role: str
) -> tuple[ProjectUser, User]:
    where = active_project(session, project_id)
    if (user_id is None) == (email is None):
        raise invalid("Name the user by exactly one of 'user_id' and 'email'.", "user_id")
    if user_id is not None:
        who = user(session, user_id)
    else:
        assert email is not None
        who = _found(repository.user_with(session, where.organization_id, email), not_found("user", email))
    row = ProjectUser(organization_id=where.organization_id, project_id=project_id, user_id=who.id, role=role)
    if not repository.added(session, row):
        raise invalid(f"{who.email} is a member of this project already.", "user_id", "user_exists")
    _record(session, "user.added", where, who.id, data={"role": role})
    return row, who


def member(session: Session, project_id: str, user_id: str) -> tuple[ProjectUser, User]:
    project(session, project_id)
    row = _found(repository.membership(session, project_id, user_id), not_found("user", user_id))
    return row, user(session, user_id)


def change_member(session: Session, project_id: str, user_id: str, role: str) -> tuple[ProjectUser, User]:
    where = active_project(session, project_id)
    row, who = member(session, project_id, user_id)
    row.role = role
    session.flush()
    repository.end_sessions(session, user_id, project_id)
    _record(session, "user.updated", where, user_id, changes_requested={"role": role})
    return row, who


def remove_member(session: Session, project_id: str, user_id: str) -> None:
    """Their keys in the project end at once."""
    where = active_project(session, project_id)
    if not repository.end_memberships(session, user_id, project_id):
        raise not_found("user", user_id)
    accounts.revoke_keys(session, user_id=user_id, project_id=project_id)
    _record(session, "user.deleted", where, user_id)


# Service accounts


def make_service_account(
    session: Session, project_id: str, name: str, *, with_key: bool, expires_in: timedelta | None
) -> tuple[ServiceAccount, tuple[str, APIKey] | None]:
    """A program's account, and a key of it, of which the first value is its plain text."""
    where = active_project(session, project_id)
    row = ServiceAccount(
        id=new_id("svc_acct_"),
        organization_id=where.organization_id,
        project_id=project_id,
        name=name,
        role="member" if with_key else "none",
    )
    repository.add(session, row)
    _record(session, "service_account.created", where, row.id, data={"role": row.role})
    if not with_key:
        return row, None
    return row, accounts.make_key(session, KeyOwner.of(row, where), name=name, expires_in=expires_in)


def service_account(session: Session, project_id: str, id: str) -> ServiceAccount:
    project(session, project_id)
    return _found(repository.service_account(session, project_id, id), not_found("service account", id))


def change_service_account(
    session: Session, project_id: str, id: str, *, name: str | None, role: str | None
) -> ServiceAccount:
    where = active_project(session, project_id)
    row = service_account(session, project_id, id)
    row.name, row.role = name or row.name, role or row.role
    session.flush()
    _record(session, "service_account.updated", where, id, changes_requested={"name": name, "role": role})
    return row


def delete_service_account(session: Session, project_id: str, id: str) -> None:
    """Its keys end at once."""
    where = active_project(session, project_id)
    row = service_account(session, project_id, id)
    accounts.revoke_keys(session, service_account_id=id)
    row.deleted_at = clock.now(session)
    session.flush()
    _record(session, "service_account.deleted", where, id)


# Keys


def make_account_key(
    session: Session,
    project_id: str,
    id: str,
    *,
    name: str,
    scopes: Sequence[Scope] | None,
    expires_in: timedelta | None,
) -> tuple[str, APIKey]:
    owner = KeyOwner.of(service_account(session, project_id, id), active_project(session, project_id))
    return accounts.make_key(session, owner, name=name, scopes=scopes, expires_in=expires_in)


def make_key(
    session: Session,
    project_id: str,
    *,
    user_id: str | None,
    name: str,
    scopes: Sequence[Scope] | None,
    expires_in: timedelta | None,
) -> tuple[str, APIKey]:
    where = active_project(session, project_id)
    owner = KeyOwner(where.organization_id, project_id)
    if user_id is not None:
        owner = KeyOwner.of(user(session, user_id), where)
    return accounts.make_key(session, owner, name=name, scopes=scopes, expires_in=expires_in)


def key(session: Session, project_id: str | None, id: str) -> APIKey:
    """A key of a project, or without one a key that administers."""
    if project_id is not None:
        project(session, project_id)
    row = repository.key(session, id)
    return _found(row if row is not None and row.project_id == project_id else None, not_found("api key", id))


def owners(session: Session, rows: Sequence[APIKey]) -> list[tuple[User | ServiceAccount | None, str | None]]:
    """Who owns each of these keys, and their role in its project."""
    found = repository.owners_of_keys(session, rows)
    roles = repository.roles_in(session, {(row.project_id, row.user_id) for row in rows})
    result: list[tuple[User | ServiceAccount | None, str | None]] = []
    for row in rows:
        owner = found.get(row.user_id or row.service_account_id or "")
        role = owner.role if owner is not None else None
        if isinstance(owner, User) and owner.role != "owner":
            role = roles.get((row.project_id, owner.id))
        result.append((owner, None if owner is None or owner.deleted_at is not None else role))
    return result


def _record(session: Session, type: str, where: Project, object_id: str, **details: Any) -> None:
    audit.record(session, type, object_id, organization_id=where.organization_id, project_id=where.id, **details)


def _found(row: T | None, error: DomainError) -> T:
    if row is None:
        raise error
    return row
