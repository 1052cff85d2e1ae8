"""The database's clock, the only one that rows are compared with: those of several machines need not agree."""

import logging
import time
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

TOLERATED_SECONDS = 5.0

log = logging.getLogger(__name__)


def now(session: Session) -> datetime:
    """When the transaction began, on PostgreSQL's clock."""
    value: datetime | None = session.scalar(select(func.now()))
    assert value is not None
    return value


def warn_if_off(session: Session) -> float:
    """By how many seconds this machine's clock is ahead of PostgreSQL's; more than a few are told in the log."""
    before = time.time()
    theirs: datetime | None = session.scalar(select(func.clock_timestamp()))
    assert theirs is not None
    # What the answer took to arrive is no difference.
    ahead = (before + time.time()) / 2 - theirs.timestamp()
    if abs(ahead) > TOLERATED_SECONDS:
        direction = "ahead of" if ahead > 0 else "behind"
        log.warning(
            "this machine's clock is %.0f seconds %s the database's: set it right (NTP). Jobs do not depend on it, but "
            "the times in this log, and those under which scoring services are sent requests, do",
            abs(ahead),
            direction,
        )
    return ahead
