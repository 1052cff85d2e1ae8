"""The way in: requests are begun one at a time, those of different tenants in turn.

Beginning a request takes the event loop about a millisecond. If all of a burst were begun at once, everybody else's
requests, and even the question whether this process lives, would wait until that is done. Here each waits for its turn
at almost no cost, and what would find all queues full is refused before anything is done for it. While other tenants
are there, the requests of one that sends many are begun with pauses, so that they take half of this process at most.
"""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple
from weakref import WeakKeyDictionary

from starlette.types import ASGIApp, Receive, Scope, Send

from service.core.answers import error_answer
from service.core.threads import OverloadedError, request_threads

SHARED_SECONDS = 10.0
"""How long a tenant counts as being there after its last request."""
PAUSE = 2.0
"""How long a tenant's next request waits for its turn, in units of the processor's time that a request takes."""
LONGEST_PAUSE = 0.05
WEIGHT_OF_NEWEST = 0.1
"""In the average of what requests take."""
LOOK_SECONDS = 0.002
STRANGERS_WAITING = 1.5
"""How many unknown callers of one address may wait together, in units of what one tenant may have waiting."""


class Tenant(NamedTuple):
    """On whose turn a request is begun."""

    name: str
    address: str | None = None
    """Where it comes from, unless it is known whose it is."""


class Gate:
    """``tenant`` tells, at little cost, on whose turn a request is begun."""

    def __init__(self, app: ASGIApp, tenant: Callable[[Scope], Tenant]) -> None:
        self.app, self.tenant = app, tenant
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        tenant, turns = self.tenant(scope), self._turns.setdefault(asyncio.get_running_loop(), Turns())
        if not request_threads.is_full(tenant.name) and not turns.is_full(tenant):
            await turns.wait(tenant)
            # Whose it is may have become known meanwhile.
            if not request_threads.is_full(self.tenant(scope).name):
                await self.app(scope, receive, send)
                return
        full = OverloadedError()
        await error_answer(full.status, full.code, full.message, headers=full.headers)(scope, receive, send)


class Turns:
    """Who waits to begin, of one event loop."""

    def __init__(self) -> None:
        # The tenant whose turn is next first.
        self._queues: OrderedDict[Tenant, deque[asyncio.Future[None]]] = OrderedDict()
        self._waiting = 0
        # How many of those come from each address, of callers that are not known.
        self._strangers: Counter[str] = Counter()
        # When a request of each tenant that is known began last; latest last. A key that was not known a moment ago is
        # no other tenant than the one whose it turned out to be.
        self._began: OrderedDict[str, float] = OrderedDict()
        # Seconds of a processor that this process uses for each request that begins, and what it had used at the last.
        self._cost, self._used = 0.0, time.process_time()
        self._letting_in: asyncio.Task[None] | None = None

    def is_full(self, tenant: Tenant) -> bool:
        """Whether as many wait here as may wait for a thread."""
        each, own = request_threads.waiting_each, len(self._queues.get(tenant, ()))
        beside = self._strangers[tenant.address] if tenant.address else 0
        return own >= each or beside >= STRANGERS_WAITING * each or self._waiting >= request_threads.waiting

    async def wait(self, tenant: Tenant) -> None:
        """Return when it is this request's turn."""
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(turn)
        self._waiting += 1
        if self._letting_in is None:
            self._letting_in = asyncio.create_task(self._let_in())
        if tenant.address is None:
            await turn
            return
        self._strangers[tenant.address] += 1
        try:
            await turn
        finally:
            self._strangers[tenant.address] -= 1
            if not self._strangers[tenant.address]:
                del self._strangers[tenant.address]

    async def _let_in(self) -> None:
        while self._queues:
            tenant = next((each for each in self._queues if self._may_begin(each.name)), None)
            if tenant is None:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            queue = self._queues[tenant]
            turn = queue.popleft()
            self._waiting -= 1
            if queue:
                self._queues.move_to_end(tenant)
            else:
                del self._queues[tenant]
            if not turn.cancelled():
                self._note(tenant.name, known=tenant.address is None)
                turn.set_result(None)
            # What the loop has to do otherwise is done before the next one begins.
            await asyncio.sleep(0)
        self._letting_in = None

    def _may_begin(self, tenant: str) -> bool:
        """Whether ``tenant`` is alone, or its last request began long enough ago."""
        now = time.monotonic()
        if tenant not in self._began or self._is_alone(tenant, now):
            return True
        return now - self._began[tenant] >= min(PAUSE * self._cost, LONGEST_PAUSE)

    def _is_alone(self, tenant: str, now: float) -> bool:
        if any(other.name != tenant for other in islice(self._queues, 2)):
            return False
        other = next((each for each in islice(reversed(self._began), 2) if each != tenant), None)
        return other is None or now - self._began[other] > SHARED_SECONDS

    def _note(self, tenant: str, *, known: bool = True) -> None:
        now, used = time.monotonic(), time.process_time()
        # What was used while nothing began, by streams for instance, is no more than a request's either.
        self._cost += WEIGHT_OF_NEWEST * (min(used - self._used, LONGEST_PAUSE) - self._cost)
        self._used = used
        if not known:
            return
        self._began[tenant] = now
        self._began.move_to_end(tenant)
        oldest = next(iter(self._began))
        if now - self._began[oldest] > SHARED_SECONDS:
            del self._began[oldest]
