"""``python shifted_clock.py SECONDS ARGUMENTS``: Celery in a process whose clock is so many seconds ahead."""

import datetime
import sys
import time
from typing import TypeAlias

AHEAD = float(sys.argv.pop(1))
_time = time.time
_datetime: TypeAlias = datetime.datetime


class _Kind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _datetime)


class Shifted(_datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _datetime:  # type: ignore[override]
        return _datetime.now(tz) + datetime.timedelta(seconds=AHEAD)

    @classmethod
    def utcnow(cls) -> _datetime:  # type: ignore[override]
        return cls.now(datetime.UTC).replace(tzinfo=None)


# Before anything else takes a copy of them.
time.time = lambda: _time() + AHEAD
datetime.datetime = Shifted  # type: ignore[misc]

from celery.__main__ import main  # noqa: E402

main()
