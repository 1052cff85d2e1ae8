"""The way in: requests are begun one at a time, those of different tenants in turn.

Beginning a request takes the event loop about a millisecond. If all of a burst were begun at once, everybody else's
requests, and even the question whether this process lives, would wait until that is done. Here each waits for its turn
at almost no cost, and what would find all queues full is refused before anything is done for it.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

from starlette.types import ASGIApp, Receive, Scope, Send

from service.core.answers import error_answer
from service.core.threads import Overloaded, request_threads


class Gate:
    """``tenant`` tells, at little cost, on whose turn a request is begun."""

    def __init__(self, app: ASGIApp, tenant: Callable[[Scope], str]) -> None:
        self.app, self.tenant = app, tenant
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        tenant = self.tenant(scope)
        if not request_threads.is_full(tenant):
            await self._turns.setdefault(asyncio.get_running_loop(), Turns()).wait(tenant)
        if request_threads.is_full(tenant):
            full = Overloaded()
            await error_answer(full.status, full.code, full.message, headers=full.headers)(scope, receive, send)
            return
        await self.app(scope, receive, send)


class Turns:
    """Who waits to begin, of one event loop."""

    def __init__(self) -> None:
        # The tenant whose turn is next first.
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._letting_in: asyncio.Task[None] | None = None

    async def wait(self, tenant: str) -> None:
        """Return when it is this request's turn."""
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(turn)
        if self._letting_in is None:
            self._letting_in = asyncio.create_task(self._let_in())
        await turn

    async def _let_in(self) -> None:
        while self._queues:
            tenant, queue = next(iter(self._queues.items()))
            turn = queue.popleft()
            if queue:
                self._queues.move_to_end(tenant)
            else:
                del self._queues[tenant]
            if not turn.cancelled():
                turn.set_result(None)
            # What the loop has to do otherwise is done before the next one begins.
            await asyncio.sleep(0)
        self._letting_in = None
