"""The dependencies that routes under ``/v1`` take: an authenticated caller, with a transaction or without."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from service.accounts.service import Principal, authenticate
from service.core.db import tenant, transaction

Token = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, scheme_name="API key", description="`sk-troll-…`, made by `troll keys`")),
]
OrganizationHeader = Annotated[str | None, Header(include_in_schema=False)]


@dataclass(frozen=True)
class CallContext:
    principal: Principal
    session: Session
    """One transaction for the whole request; it sees the principal's organisation only."""


def _known(token: Token, openai_organization: OrganizationHeader = None) -> Principal:
    authorization = None if token is None else f"{token.scheme} {token.credentials}"
    with transaction("troll_api") as session:
        return authenticate(session, authorization, openai_organization)


# For routes that take long (reading an upload, waiting for a worker): no transaction stays open meanwhile.
Known = Annotated[Principal, Depends(_known)]


def _caller(known: Known) -> Iterator[CallContext]:
    with tenant(known.organization_id) as session:
        yield CallContext(known, session)


# With function scope the transaction commits before the answer is sent: a 200 is never given for a row that is lost.
Caller = Annotated[CallContext, Depends(_caller, scope="function")]
