"""Who is asking, and the keys they ask with."""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from service.accounts import keys, known, repository
from service.accounts.known import Principal
from service.accounts.models import APIKey, Organization
from service.core import clock
from service.core.errors import DomainError, not_found
from service.core.ids import new_id

TOUCH_EVERY = timedelta(minutes=1)


def presented_key(authorization: str | None) -> str:
    """The API key of an ``Authorization`` header, which may still be a wrong one. Raises a 401 for what is none."""
    token = keys.bearer(authorization)
    if token is None:
        raise _unauthorized("You did not provide an API key. Send it as 'Authorization: Bearer sk-troll-…'.")
    if not keys.is_well_formed(token):
        raise _wrong_key()
    return token


def identify(session: Session, key_hash: str) -> Principal:
    """Whose the key of this hash is; the rest of the transaction sees only its organisation's rows.

    Raises a 401 that never says which part of a key was wrong.
    """
    found = repository.identify(session, key_hash, TOUCH_EVERY)
    if found is None:
        known.forget(key_hash)
        raise _wrong_key()
    key_id, organization_id, organization_name = found
    principal = Principal(organization_id, organization_name, key_id, key_hash)
    known.remember(principal)
    return principal


def check_headers(principal: Principal, organization: str | None, project: str | None) -> None:
    """Raises a 401 where a header of the official client names somebody else."""
    if organization and organization != principal.organization_id:
        what = "an organization that this API key does not belong to"
        raise _another("wrong_organization", "OpenAI-Organization", organization, what, "OPENAI_ORG_ID")
    if project:
        what = "a project, and there are none here"
        raise _another("wrong_project", "OpenAI-Project", project, what, "OPENAI_PROJECT_ID")


def create_key(
    session: Session, *, organization: str, name: str, expires_in: timedelta | None = None
) -> tuple[str, APIKey, Organization]:
    """A new key for the organisation of this name, made when there is none. The first value is shown once."""
    owner = repository.organization_named(session, organization)
    if owner is None:
        owner = Organization(id=new_id("org-"), name=organization)
        repository.add(session, owner)
    plain = keys.generate()
    row = APIKey(
        id=new_id("key_"),
        organization_id=owner.id,
        name=name,
        hint=keys.hint(plain),
        hash=keys.hashed(plain),
        expires_at=clock.now(session) + expires_in if expires_in else None,
    )
    repository.add(session, row)
    return plain, row, owner


def revoke_key(session: Session, id: str) -> datetime:
    revoked_at = repository.revoke(session, id)
    if revoked_at is None:
        raise not_found("API key", id)
    return revoked_at


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
