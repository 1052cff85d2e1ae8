"""Who is asking, and the keys they ask with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from service.accounts import keys, known, repository
from service.accounts.known import Asked, Principal
from service.accounts.models import APIKey, Organization, Project, ServiceAccount, User
from service.accounts.scopes import ADMIN, PROJECT_SCOPES, Scope, granted
from service.audit import repository as audit
from service.core import clock
from service.core.db import EVERY_PROJECT, Owner, across_projects, act_for, bind, transaction
from service.core.errors import DomainError, invalid, not_found
from service.core.ids import new_id

TOUCH_EVERY = timedelta(minutes=1)
OVERLAP = timedelta(days=1)
"""How long a key that was rotated is good beside the new one, unless something else is said."""
MAX_OVERLAP = timedelta(days=90)


def presented_key(authorization: str | None) -> str:
    """The API key of an ``Authorization`` header, which may still be a wrong one. Raises a 401 for what is none."""
    token = keys.bearer(authorization)
    if token is None:
        raise _unauthorized("You did not provide an API key. Send it as 'Authorization: Bearer sk-troll-…'.")
    if not keys.is_well_formed(token):
        raise _wrong_key()
    return token


def identify(session: Session, key_hash: str, asked: Asked = Asked()) -> Principal:
    """Whose the key of this hash is; the rest of the transaction sees only its project's rows.

    Raises a 401 that never says which part of a key was wrong, and a 403 where the key may not do what is ``asked``.
    """
    found = repository.identify(session, key_hash, TOUCH_EVERY)
    if found is None:
        known.forget(key_hash)
        raise _wrong_key()
    principal = Principal(
        organization_id=found.organization_id,
        organization_name=found.organization_name,
        project_id=found.project_id or EVERY_PROJECT,
        key_id=found.key_id,
        key_hash=key_hash,
        scopes=granted(found.project_id, found.scopes, found.role),
        user_id=found.user_id,
        user_email=found.user_email,
        service_account_id=found.service_account_id,
        role=found.role,
        asked=asked,
    )
    known.remember(principal)
    principal = _as_administrator(session, principal)
    check_scope(principal)
    bind(session, principal)
    audit.act_as(session, principal.actor())
    return principal


def _as_administrator(session: Session, principal: Principal) -> Principal:
    """Whoever signed in as an owner of the organisation is its administrator, where administrators are asked for.

    This holds for their browser's session only: keys of theirs are of one project, whoever has them.
    """
    if "admin" not in principal.asked.needs or principal.is_admin or principal.role != "owner":
        return principal
    if principal.user_id is None or not administers(session, principal):
        return principal
    whole = replace(principal, project_id=EVERY_PROJECT, scopes=ADMIN)
    act_for(session, whole)
    return whole


def administers(session: Session, principal: Principal) -> bool:
    """Whether somebody may administer the organisation, with an admin key or by having signed in as its owner."""
    if principal.is_admin:
        return True
    bind(session, principal)
    with across_projects(session):
        return repository.is_session_of_owner(session, principal.key_hash)


@contextmanager
def acting(principal: Principal) -> Iterator[Session]:
    """A transaction on behalf of somebody who was identified before, if they may still do what they asked for then.

    Raises as ``identify`` does: meanwhile the key may have ended, or its owner's role.
    """
    with transaction("troll_api") as session:
        identify(session, principal.key_hash, principal.asked)
        yield session


def check_scope(principal: Principal) -> None:
    """Raises a 403 where the key may not do what is asked."""
    asked = principal.asked
    if not asked.needs or asked.needs & principal.scopes:
        return
    if principal.is_admin:
        why = "admin keys administer their organization and do nothing in projects. Use a project's key."
    elif asked.needs == ADMIN:
        why = "only admin keys may. An operator makes one with 'troll admin keys create'."
    elif principal.role == "none":
        why = "the key's owner is no member of its project any more. Ask whoever administers your organization."
    else:
        wanted = " or ".join(f"'{scope}'" for scope in PROJECT_SCOPES if scope in asked.needs)
        has = ", ".join(f"'{scope}'" for scope in PROJECT_SCOPES if scope in principal.scopes) or "none"
        role = f", and its owner is {principal.role} of the project" if principal.role else ""
        why = f"it needs the scope {wanted}, and the key has {has}{role}. Use a key that may, or ask for one."
    raise DomainError(403, "missing_scope", f"This API key may not do {asked.what}: {why}")


def check_headers(principal: Principal, organization: str | None, project: str | None) -> None:
    """Raises a 401 where a header of the official client names somebody else."""
    if organization and organization != principal.organization_id:
        what = "an organization that this API key does not belong to"
        raise _another("wrong_organization", "OpenAI-Organization", organization, what, "OPENAI_ORG_ID")
    # An admin key is of no project, and what it does in one is said by the path.
    if project and not principal.is_admin and project != principal.project_id:
        what = "a project that this API key does not belong to"
        raise _another("wrong_project", "OpenAI-Project", project, what, "OPENAI_PROJECT_ID")


def organization_for(session: Session, name: str) -> Organization:
    """The organisation of this name, made when there is none."""
    owner = repository.organization_named(session, name)
    if owner is None:
        owner = Organization(id=new_id("org-"), name=name)
        repository.add(session, owner)
    return owner


def default_project(organization_id: str) -> str:
    """The id of the project that PostgreSQL makes with an organisation."""
    return f"proj_{organization_id.removeprefix('org-')}"


def create_project(session: Session, organization_id: str, name: str) -> Project:
    project = Project(id=new_id("proj_"), organization_id=organization_id, name=name)
    repository.add(session, project)
    audit.record(
        session,
        "project.created",
        project.id,
        organization_id=organization_id,
        project_id=project.id,
        data={"name": name, "title": name},
    )
    return project


def is_default(owner: Owner) -> bool:
    """Whether it is the default project of its organisation."""
    return owner.project_id == default_project(owner.organization_id)


@dataclass(frozen=True)
class KeyOwner:
    """For whom a key is made: a project, the user or service account that owns it; without a project it administers."""

    organization_id: str
    project_id: str | None
    user_id: str | None = None
    service_account_id: str | None = None

    @classmethod
    def of(cls, member: User | ServiceAccount, project: Project) -> "KeyOwner":
        name = "user_id" if isinstance(member, User) else "service_account_id"
        return cls(project.organization_id, project.id, **{name: member.id})


def make_key(
    session: Session,
    owner: KeyOwner,
    *,
    name: str,
    scopes: Sequence[Scope] | None = None,
    expires_in: timedelta | None = None,
) -> tuple[str, APIKey]:
    """A new key. The first value is shown once."""
    plain = keys.generate(keys.PREFIX if owner.project_id else keys.ADMIN_PREFIX)
    row = APIKey(
        id=new_id("key_"),
        kind="project" if owner.project_id else "admin",
        organization_id=owner.organization_id,
        project_id=owner.project_id,
        user_id=owner.user_id,
        service_account_id=owner.service_account_id,
        scopes=None if scopes is None else [scope for scope in PROJECT_SCOPES if scope in scopes],
        name=name,
        hint=keys.hint(plain),
        hash=keys.hashed(plain),
        expires_at=clock.now(session) + expires_in if expires_in else None,
    )
    repository.add(session, row)
    _record(session, "api_key.created", row, data={"scopes": row.scopes or list(_all_scopes(row))})
    return plain, row


def create_key(
    session: Session, *, organization: str, name: str, expires_in: timedelta | None = None
) -> tuple[str, APIKey, Organization]:
    """A key for the default project of the organisation of this name, made when there is none."""
    owner = organization_for(session, organization)
    plain, row = make_key(session, KeyOwner(owner.id, default_project(owner.id)), name=name, expires_in=expires_in)
    return plain, row, owner


def rotate_key(session: Session, id: str, overlap: timedelta = OVERLAP) -> tuple[str, APIKey, APIKey]:
    """A new key in place of the key ``id``, which is good for ``overlap`` more, if it does not expire before.

    The first value is shown once; then come the new key and the old one.
    """
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        raise invalid(f"The old key may be good for at most {MAX_OVERLAP.days} days more.", "overlap_seconds")
    old = repository.key_locked(session, id)
    now = clock.now(session)
    if old is None or (old.expires_at is not None and old.expires_at <= now):
        raise not_found("api key", id)
    lifetime = old.expires_at - old.created_at if old.expires_at else None
    owner = KeyOwner(old.organization_id, old.project_id, old.user_id, old.service_account_id)
    plain, new = make_key(session, owner, name=old.name, scopes=old.scopes, expires_in=lifetime)  # type: ignore[arg-type]
    old.expires_at = min(now + overlap, old.expires_at or datetime.max.replace(tzinfo=now.tzinfo))
    session.flush()
    _record(
        session,
        "api_key.updated",
        old,
        changes_requested={"expires_in_seconds": round((old.expires_at - now).total_seconds())},
        rotated_to=new.id,
    )
    return plain, new, old


def change_key(session: Session, id: str, changed: Mapping[str, Any]) -> APIKey:
    """Give a key of a project another name, or other scopes, from its next request on."""
    row = repository.key_locked(session, id)
    if row is None or row.project_id is None:
        raise not_found("api key", id)
    for name, value in changed.items():
        is_list = name == "scopes" and value is not None
        setattr(row, name, [scope for scope in PROJECT_SCOPES if scope in value] if is_list else value)
    session.flush()
    if changed:
        _record(session, "api_key.updated", row, changes_requested=dict(changed))
    return row


def revoke_key(session: Session, id: str) -> datetime:
    row = repository.revoke(session, id)
    if row is None or row.revoked_at is None:
        raise not_found("api key", id)
    _record(session, "api_key.deleted", row)
    return row.revoked_at


def revoke_keys(session: Session, **whose: str) -> None:
    """Revoke the keys of an organisation, a project, a user or a service account, at once."""
    for row in repository.revoke_all(session, **whose):
        if not row.is_session:
            _record(session, "api_key.deleted", row)


def start_session(session: Session, user: User, project_id: str, lifetime: timedelta) -> str:
    """A key of a user in a project for the browser in which they signed in."""
    plain = keys.generate()
    row = APIKey(
        id=new_id("key_"),
        organization_id=user.organization_id,
        project_id=project_id,
        user_id=user.id,
        is_session=True,
        name="browser session",
        hint=keys.hint(plain),
        hash=keys.hashed(plain),
        expires_at=clock.now(session) + lifetime,
    )
    repository.add(session, row)
    return plain


def end_session(session: Session, key_hash: str) -> None:
    """Sign out the browser that has this key. A key that is no session stays as it is."""
    row = repository.session_key(session, key_hash)
    if row is not None:
        row.revoked_at = clock.now(session)
        session.flush()
        _record(session, "logout.succeeded", row)
        known.forget(key_hash)


def _record(session: Session, type: str, key: APIKey, **details: object) -> None:
    audit.record(session, type, key.id, organization_id=key.organization_id, project_id=key.project_id, **details)


def _all_scopes(key: APIKey) -> Sequence[Scope]:
    return PROJECT_SCOPES if key.project_id else sorted(ADMIN)


def _wrong_key() -> DomainError:
    return _unauthorized("Incorrect API key provided. An operator creates keys with 'troll keys create'.")


def _another(code: str, header: str, value: str, what: str, variable: str) -> DomainError:
    """The client sends these headers by itself where its environment is still that of another service."""
    message = (
        f"The request's header '{header}: {value[:100]}' names {what}. The official client takes it from the "
        f"environment: unset {variable}. The API key alone says who you are."
    )
    return DomainError(401, code, message)


def _unauthorized(message: str) -> DomainError:
    return DomainError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
