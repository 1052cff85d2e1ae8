"""Who somebody is here whom the provider knows, what they may do, and the session of their browser."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.accounts import repository
from service.accounts import service as accounts
from service.accounts.known import Principal
from service.accounts.models import APIKey, Organization, Project, User
from service.accounts.scopes import ROLES, Scope
from service.accounts.service import KeyOwner, default_project
from service.administration import service as administration
from service.audit import repository as audit
from service.audit.repository import Actor
from service.core import clock
from service.core.db import WholeOrganization, across_projects, act_for, lock
from service.core.errors import DomainError, not_found
from service.dashboard.oidc import SignInError
from service.settings import settings

STRONGEST_FIRST = ("owner", "member", "reader")
LONGEST_NAME = 255


@dataclass(frozen=True)
class Claimed:
    """What a token says of somebody, as far as it is believed."""

    identity: str
    email: str
    name: str
    organizations: list[str]
    role: str | None
    """None where no claim decides it."""


def claimed(claims: dict[str, Any]) -> Claimed:
    """Raises ``SignInError`` for whom the operator lets in under no circumstances."""
    ours = settings()
    if "\\u0000" in json.dumps(claims):
        raise SignInError("refused", "a claim holds a NUL, which cannot be stored")
    email, verified = claims.get("email"), claims.get(ours.oidc_verified_claim)
    if not isinstance(email, str) or "@" not in email or verified not in (True, "true", "1"):
        raise SignInError("unverified", f"'{email}' is not verified by the claim '{ours.oidc_verified_claim}'")
    domain = email.rpartition("@")[2].lower()
    if ours.oidc_allowed_domains and domain not in {each.lower() for each in ours.oidc_allowed_domains}:
        raise SignInError("not_allowed", f"{email} is of none of the allowed domains")
    role = None
    if ours.oidc_role_claim is not None:
        given = _texts(claims.get(ours.oidc_role_claim))
        role = next((each for each in STRONGEST_FIRST if each in given), None)
        if role is None:
            raise SignInError("not_allowed", f"the claim '{ours.oidc_role_claim}' gives {email} no role")
    if ours.oidc_organization_claim is not None:
        organizations = _texts(claims.get(ours.oidc_organization_claim))
    else:
        organizations = [ours.oidc_organization or ""]
    name = claims.get("name")
    shown = name if isinstance(name, str) and name.strip() else email
    return Claimed(f"{claims['iss']} {claims['sub']}", email, shown[:LONGEST_NAME], organizations, role)


def _texts(claim: Any) -> list[str]:
    """Those of a claim that is a text or a list. Keycloak writes groups as paths."""
    given = claim if isinstance(claim, list) else [claim]
    return [each.removeprefix("/") for each in given if isinstance(each, str)]


def sign_in(session: Session, who: Claimed, address: str | None) -> str:
    """The key of a new session of somebody's browser. Raises ``SignInError``."""
    organization = _organization(session, who)
    act_for(session, WholeOrganization(organization.id))
    # Two windows may bring somebody who is new, and both would add them.
    lock(session, f"dashboard.sign_in/{organization.id}/{who.email.lower()}")
    audit.act_as(session, _actor(None, who.email, address))
    user = _user(session, organization, who)
    audit.act_as(session, _actor(user.id, user.email, address))
    if who.role is not None:
        _follow(session, user, who.role)
    projects = repository.projects_of(session, user)
    if not projects:
        raise SignInError("not_allowed", f"{user.email} is a member of no project of {organization.name}")
    audit.record(session, "login.succeeded", user.id, project_id=projects[0][0].id)
    return accounts.start_session(session, user, projects[0][0].id, timedelta(hours=settings().session_hours))


def _organization(session: Session, who: Claimed) -> Organization:
    found = []
    for name in dict.fromkeys(who.organizations):
        session.execute(text("SELECT set_config('app.signing_in_to', :name, true)"), {"name": name})
        organization = repository.organization_named(session, name)
        if organization is not None:
            found.append(organization)
    if len(found) != 1:
        names = ", ".join(who.organizations) or "none"
        raise SignInError(
            "not_allowed", f"{who.email} belongs to {len(found)} organisations here, by the names {names}"
        )
    return found[0]


def _user(session: Session, organization: Organization, who: Claimed) -> User:
    known = repository.user_identified(session, organization.id, who.identity)
    if known is not None:
        return known
    invited = repository.user_with(session, organization.id, who.email)
    if invited is not None:
        issuer = who.identity.partition(" ")[0]
        if invited.identity is not None and invited.identity.partition(" ")[0] == issuer:
            # Whoever has the address now is not who had it.
            raise SignInError("not_allowed", f"{who.email} is known here as somebody else of the provider")
        invited.identity = who.identity
        session.flush()
        return invited
    ours = settings()
    role = who.role or ours.oidc_provision
    if ours.oidc_provision == "off" or repository.was_removed(session, organization.id, who.identity, who.email):
        raise SignInError("not_invited", f"{who.email} is no user of {organization.name}")
    user = administration.add_user(
        session, organization.id, email=who.email, name=who.name, role="owner" if role == "owner" else "reader"
    )
    user.identity = who.identity
    session.flush()
    if role != "owner":
        administration.add_member(session, default_project(organization.id), user_id=user.id, email=None, role=role)
    return user


def _follow(session: Session, user: User, role: str) -> None:
    """Let somebody be in the organisation, or else in its default project, what the provider says."""
    in_organization = "owner" if role == "owner" else "reader"
    if user.role != in_organization:
        administration.change_user(session, user.id, in_organization)
    if role == "owner":
        return
    project_id = default_project(user.organization_id)
    membership = repository.membership(session, project_id, user.id)
    if membership is None:
        administration.add_member(session, project_id, user_id=user.id, email=None, role=role)
    elif membership.role != role:
        administration.change_member(session, project_id, user.id, role)


def _actor(user_id: str | None, email: str, address: str | None) -> Actor:
    shown = {"type": "session", "session": {"user": {"id": user_id, "email": email}, "ip_address": address}}
    return Actor(shown, user_id, email, address)


# Somebody who is signed in


def person(session: Session, caller: Principal) -> tuple[User, Sequence[tuple[Project, str]]]:
    """Whose session it is, and the projects that they may see. Raises a 404 where it is a key that was typed in."""
    if repository.session_key(session, caller.key_hash) is None or caller.user_id is None:
        raise DomainError(404, "person_not_found", "You signed in with an API key, which is nobody's in particular.")
    with across_projects(session):
        user = administration.user(session, caller.user_id)
        return user, repository.projects_of(session, user)


def go_to(session: Session, caller: Principal, project_id: str) -> str:
    """The key of a session in another project, in place of the one at hand, which goes on no longer than that."""
    user, projects = person(session, caller)
    if project_id not in {project.id for project, _ in projects}:
        raise not_found("project", project_id)
    mine = repository.session_key(session, caller.key_hash)
    assert mine is not None
    assert mine.expires_at is not None
    now = clock.now(session)
    mine.revoked_at = now
    with across_projects(session):
        return accounts.start_session(session, user, project_id, mine.expires_at - now)


def own_keys(session: Session, caller: Principal) -> Sequence[APIKey]:
    user, _ = person(session, caller)
    with across_projects(session):
        return repository.live_keys_of(session, user.id, caller.project_id)


def make_own_key(
    session: Session, caller: Principal, *, name: str, scopes: Sequence[Scope] | None, expires_in: timedelta | None
) -> tuple[str, APIKey]:
    """A key of the person's own in the project at hand, which does no more than their role there allows."""
    user, _ = person(session, caller)
    owner = KeyOwner(caller.organization_id, caller.project_id, user_id=user.id)
    if scopes is not None and not set(scopes) <= ROLES[caller.role or "none"]:
        raise DomainError(400, "invalid_value", f"You are {caller.role} of this project and may not do that.", "scopes")
    with across_projects(session):
        return accounts.make_key(session, owner, name=name, scopes=scopes, expires_in=expires_in)


def end_own_key(session: Session, caller: Principal, id: str) -> None:
    with_id = [key for key in own_keys(session, caller) if key.id == id]
    if not with_id:
        raise not_found("api key", id)
    with across_projects(session):
        accounts.revoke_key(session, id)
