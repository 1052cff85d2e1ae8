"""Blocking work on a fixed number of threads, shared fairly between tenants.

Whoever asks for much waits in a queue of its own: a thread that becomes free goes to the tenant whose turn it is, and
no tenant ever has all threads. Queues are bounded: too much work is refused at once. There are more database
connections than threads that use them, so none of these threads waits for one.
"""

import asyncio
import contextvars
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from service.core.errors import DomainError

Result = TypeVar("Result")

REQUEST_SECONDS = 8.0
"""How long a request may wait for its thread and its database together; what is frozen is told of within 10 seconds."""
BULK_QUEUE_SECONDS = 60.0
"""How long an upload or a download may wait for a thread before it begins."""


@dataclass
class _Work:
    run: Callable[[], Any]
    future: "Future[Any]"


class OverloadedError(DomainError):
    """The queue is full, or this has waited for too long. Nothing was done."""

    def __init__(self, message: str = "Too many requests wait already. Try again shortly.") -> None:
        super().__init__(503, "overloaded", message, headers={"Retry-After": "1"})


class TookTooLongError(DomainError):
    """It was begun and has not ended in time; it may end yet."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "database_unavailable",
            "The database does not answer in time. The request may still be carried out; look before you repeat it.",
            headers={"Retry-After": "5"},
        )


class FairThreads:
    """``threads`` threads, of which one tenant has at most ``each``, and a queue of ``waiting`` (``waiting_each``).

    The last ``kept`` of them are for tenants that have none: where work takes long, few tenants would have all.
    """

    def __init__(self, name: str, *, threads: int, each: int, waiting: int, waiting_each: int, kept: int = 0) -> None:
        self.threads, self.each, self.waiting, self.waiting_each = threads, each, waiting, waiting_each
        self.kept = kept
        self._executor = ThreadPoolExecutor(threads, name)
        self._lock = threading.Lock()
        # Tenants that wait, the one whose turn is next first.
        self._queues: OrderedDict[str, deque[_Work]] = OrderedDict()
        self._waiting = 0
        self._running: Counter[str] = Counter()

    def submit(
        self, tenant: str, function: Callable[..., Result], *arguments: Any, begun: bool = False
    ) -> "Future[Result]":
        """Have ``function`` run on behalf of ``tenant``. Raises ``OverloadedError`` when too much waits already.

        What belongs to a request that was ``begun`` is not refused: what was done for it would be lost.
        """
        context = contextvars.copy_context()
        work = _Work(lambda: context.run(function, *arguments), Future())
        with self._lock:
            if not begun and self.is_full(tenant):
                raise OverloadedError
            self._queues.setdefault(tenant, deque()).append(work)
            self._waiting += 1
            self._start_next()
        return work.future

    def is_full(self, tenant: str) -> bool:
        """Whether so much waits that ``tenant`` would be refused now."""
        own = len(self._queues.get(tenant, ()))
        return own >= self.waiting_each or self._waiting >= self.waiting

    async def run(
        self,
        tenant: str,
        function: Callable[..., Result],
        *arguments: Any,
        seconds: float | None = None,
        begun: bool = False,
    ) -> Result:
        """What ``function`` returns, within ``seconds`` in all, ``REQUEST_SECONDS`` unless given.

        Raises ``OverloadedError`` when it was not begun in that time, and ``TookTooLongError`` when it was and goes on:
        its thread is left to it, and stays taken until it ends.
        """
        future = self.submit(tenant, function, *arguments, begun=begun)
        seconds = REQUEST_SECONDS if seconds is None else seconds
        return await _result(future, seconds, lambda: _too_slow(begun=not future.cancel()))

    async def run_to_end(self, tenant: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """``run`` for work that may take as long as it takes once it has begun. Raises ``OverloadedError``."""
        future = self.submit(tenant, function, *arguments)
        return await _result(future, BULK_QUEUE_SECONDS, lambda: _too_slow(begun=False) if future.cancel() else None)

    def _start_next(self) -> None:
        """Give free threads to those whose turn it is. The lock is held."""
        while self._running.total() < self.threads:
            tenant = next((each for each in self._queues if self._may_have_another(each)), None)
            if tenant is None:
                return
            work = self._queues[tenant].popleft()
            self._waiting -= 1
            if self._queues[tenant]:
                self._queues.move_to_end(tenant)
            else:
                del self._queues[tenant]
            if work.future.set_running_or_notify_cancel():
                self._running[tenant] += 1
                self._executor.submit(self._work, tenant, work)

    def _may_have_another(self, tenant: str) -> bool:
        mine, free = self._running[tenant], self.threads - self._running.total()
        return mine == 0 or (mine < self.each and free > self.kept)

    def _work(self, tenant: str, work: _Work) -> None:
        try:
            result = work.run()
        except BaseException as error:
            self._end(tenant)
            work.future.set_exception(error)
        else:
            self._end(tenant)
            work.future.set_result(result)

    def _end(self, tenant: str) -> None:
        with self._lock:
            self._running[tenant] -= 1
            if not self._running[tenant]:
                del self._running[tenant]
            self._start_next()


async def _result(future: "Future[Result]", seconds: float, too_slow: Callable[[], DomainError | None]) -> Result:
    """The result of ``future``. After ``seconds`` the error of ``too_slow`` is raised, if it has one."""
    waiting = asyncio.wrap_future(future)
    try:
        done, _ = await asyncio.wait([waiting], timeout=seconds)
        error = None if done else too_slow()
        if error is None:
            return await waiting
    except asyncio.CancelledError:
        future.cancel()
        raise
    # Nobody is there any more for what may still come of it.
    waiting.add_done_callback(lambda late: late.cancelled() or late.exception())
    raise error


def _too_slow(*, begun: bool) -> DomainError:
    if not begun:
        return OverloadedError(
            "The server is busy: this request waited for too long and was not begun. Try again shortly."
        )
    return TookTooLongError()


# What every request of the API runs on, each with one connection to the database.
request_threads = FairThreads("request", threads=4, each=3, waiting=1000, waiting_each=200)
# What reads or writes whole files, without a connection.
bulk_threads = FairThreads("bulk", threads=8, each=2, waiting=200, waiting_each=50, kept=4)
# What makes sense of large bodies and of graders' sources, which takes nothing but a processor.
parsing_threads = FairThreads("parsing", threads=4, each=1, waiting=200, waiting_each=50)
# What reads whole models, which takes minutes once for each.
digest_threads = FairThreads("digest", threads=4, each=1, waiting=100, waiting_each=20)
