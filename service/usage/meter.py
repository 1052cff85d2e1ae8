"""Counting tokens without making anybody wait: they are added up in memory and written each second.

What a process that is killed had not written yet, the tokens of its last second, is lost.
"""

import logging
import threading
import time
from dataclasses import replace

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from service.core.db import WholeOrganization, tenant
from service.usage import repository
from service.usage.repository import Tokens

WRITE_SECONDS = 1.0

log = logging.getLogger(__name__)

_counted: dict[str, dict[tuple[str, str], Tokens]] = {}
"""By organisation, and by project and model."""
_lock = threading.Lock()
_writing = threading.Lock()
_wanted = threading.Event()
_thread: threading.Thread | None = None


def count(organization_id: str, project_id: str, model: str, *, input: int, output: int) -> None:
    """Count one request and its tokens."""
    global _thread
    with _lock:
        tokens = _counted.setdefault(organization_id, {}).setdefault((project_id, model), Tokens())
        tokens.requests += 1
        tokens.input += input
        tokens.output += output
        if _thread is None:
            _thread = threading.Thread(target=_keep_writing, daemon=True, name="meter")
            _thread.start()
    _wanted.set()


def pending(organization_id: str) -> int:
    """Tokens that this process has counted and not written yet."""
    with _lock:
        return sum(each.input + each.output for each in _counted.get(organization_id, {}).values())


def write() -> None:
    """Write down what was counted, under the minute at hand. What cannot be written is kept for the next time."""
    with _writing:
        with _lock:
            counted = {id: {key: replace(each) for key, each in mine.items()} for id, mine in _counted.items()}
        for organization_id, mine in counted.items():
            try:
                with tenant(WholeOrganization(organization_id)) as session:
                    # Whoever locks several does it in one order.
                    for (project_id, model), tokens in sorted(mine.items(), key=lambda each: each[0][::-1]):
                        repository.add_tokens(session, organization_id, project_id, model, tokens)
            except IntegrityError:
                log.warning("%s is gone, and the tokens it used last with it", organization_id)
            except SQLAlchemyError as error:
                log.warning("tokens are not written yet, and kept: %s", error)
                _wanted.set()
                continue
            _subtract(organization_id, mine)


def _subtract(organization_id: str, written: dict[tuple[str, str], Tokens]) -> None:
    with _lock:
        left = _counted[organization_id]
        for key, tokens in written.items():
            left[key].requests -= tokens.requests
            left[key].input -= tokens.input
            left[key].output -= tokens.output
            if not left[key].requests:
                del left[key]
        if not left:
            del _counted[organization_id]


def _keep_writing() -> None:
    while True:
        _wanted.wait()
        time.sleep(WRITE_SECONDS)
        _wanted.clear()
        try:
            write()
        except Exception:
            # Whatever it is, the tokens are kept, and this thread is the only one that writes them.
            log.exception("tokens are not written yet, and kept")
            _wanted.set()
