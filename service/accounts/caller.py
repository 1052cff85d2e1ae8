"""The dependency that every route under ``/v1`` takes: an authenticated caller and its transaction."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header
from sqlalchemy.orm import Session

from service.accounts.service import Principal, authenticate
from service.core.db import transaction


@dataclass(frozen=True)
class CallContext:
    principal: Principal
    session: Session
    """One transaction for the whole request; it sees the principal's organisation only."""


def _caller(
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    openai_organization: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Iterator[CallContext]:
    with transaction("troll_api") as session:
        yield CallContext(authenticate(session, authorization, openai_organization), session)


# With function scope the transaction commits before the answer is sent: a 200 is never given for a row that is lost.
Caller = Annotated[CallContext, Depends(_caller, scope="function")]
