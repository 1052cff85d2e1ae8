"""What an organisation may use, and refusals that say how much it has used and what to do."""

import logging
import math
import time
from dataclasses import dataclass, fields
from datetime import UTC

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.core import clock
from service.core.db import WholeOrganization, across_projects, tenant
from service.core.errors import DomainError
from service.settings import settings
from service.usage import meter, repository
from service.usage.models import OrganizationLimits

REMEMBERED_SECONDS = 10.0
"""How old limits may be where asking the database each time would cost more than they are worth."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What an organisation may use. Bytes stored, requests and tokens are not limited where that is 0."""

    storage_bytes: int
    """Of files, announced uploads, checkpoints and results together."""
    upload_bytes: int
    """Of one file."""
    queued_jobs: int
    running_jobs: int
    streams: int
    """Event streams and chats that each key may have open."""
    requests_a_minute: int
    """Of each key."""
    chat_tokens_a_day: int
    """Of prompts and answers, in a day of UTC."""


NAMES = tuple(field.name for field in fields(Limits))


def of_installation() -> Limits:
    """What holds for organisations of which nothing else was said."""
    ours = settings()
    return Limits(
        storage_bytes=ours.max_storage_bytes,
        upload_bytes=ours.max_upload_bytes,
        queued_jobs=ours.max_queued_jobs,
        running_jobs=ours.max_running_jobs,
        streams=ours.max_streams_per_key,
        requests_a_minute=ours.requests_per_minute,
        chat_tokens_a_day=ours.chat_tokens_per_day,
    )


def limits(session: Session, organization_id: str) -> Limits:
    return merged(repository.limits(session, organization_id))


def merged(own: OrganizationLimits | None) -> Limits:
    """``own`` limits, and the installation's where there are none."""
    ours = of_installation()
    given = {name: getattr(own, name, None) for name in NAMES}
    return Limits(**{name: getattr(ours, name) if value is None else value for name, value in given.items()})


def check_upload(session: Session, organization_id: str, size: int, param: str) -> None:
    """Raise where one file has more bytes than it may."""
    most = limits(session, organization_id).upload_bytes
    if size > most:
        message = f"A file of your organization may have at most {most} bytes, and this one has {size}. Split it."
        raise DomainError(413, "file_too_large", message, param)


def check_storage(session: Session, organization_id: str, more: int) -> None:
    """Raise where an organisation has no room for ``more`` bytes, or for any at all.

    It stays so until the transaction ends.
    """
    most = limits(session, organization_id).storage_bytes
    if not most:
        return
    repository.lock_storage(session, organization_id)
    with across_projects(session):
        used = repository.stored_bytes(session, organization_id)
    if used + more > most or used >= most:
        needed = f", and this needs {more} more" if more else ""
        raise _exhausted(
            f"Your organization stores {used} of the {most} bytes that it may{needed}. Delete files, models or "
            "checkpoints, cancel uploads that are pending, or ask your operator for more."
        )


def check_chat_tokens(session: Session, organization_id: str) -> None:
    """Raise where an organisation has used the tokens of the day. Answers that are under way may go beyond them."""
    most = limits(session, organization_id).chat_tokens_a_day
    if not most:
        return
    used = chat_tokens_today(session, organization_id)
    if used >= most:
        raise _exhausted(
            f"Your organization used {used} tokens of chats today and may use {most}. Go on after midnight UTC, or ask "
            "your operator for more."
        )


def chat_tokens_today(session: Session, organization_id: str) -> int:
    """In the day of UTC, with what this process has not written yet."""
    midnight = clock.now(session).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return repository.tokens_since(session, organization_id, midnight) + meter.pending(organization_id)


def _exhausted(message: str) -> DomainError:
    # The official client would try a 429 again, and nothing changes by waiting a second.
    return DomainError(429, "insufficient_quota", message, headers={"x-should-retry": "false"})


# Where the database is not asked each time

_remembered: dict[str, tuple[Limits, float]] = {}
_told_to_ask: dict[str, float] = {}


def remembered(organization_id: str) -> Limits:
    """The limits as they were some seconds ago at most, or, while the database is away, when it was last there."""
    known = _remembered.get(organization_id)
    if known is not None and time.monotonic() - known[1] < REMEMBERED_SECONDS:
        return known[0]
    try:
        with tenant(WholeOrganization(organization_id)) as session:
            found = limits(session, organization_id)
    except SQLAlchemyError as error:
        log.warning("limits are not known, and those known before hold: %s", error)
        found = of_installation() if known is None else known[0]
    _remembered[organization_id] = found, time.monotonic()
    return found


def at_hand(organization_id: str) -> tuple[Limits, bool]:
    """The limits as they were last known, without asking anybody, and whether the caller should have them asked for.

    Of many callers one is told to.
    """
    limits, asked_at = _remembered.get(organization_id, (None, -math.inf))
    now = time.monotonic()
    is_due = now - max(asked_at, _told_to_ask.get(organization_id, -math.inf)) >= REMEMBERED_SECONDS
    if is_due:
        _told_to_ask[organization_id] = now
    return limits or of_installation(), is_due
