"""Which models are loaded: on demand, within a share of the memory, the one used longest ago making room."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from workers.serving import memory
from workers.serving.hosted import Host
from workers.serving.identity import Identity, ModelUnavailableError
from workers.serving.lines import Options

POLL_SECONDS = 0.05
REFUSED_SECONDS = 30.0
"""How long a folder that cannot be loaded is not tried again, unless a file in it changes."""

log = logging.getLogger(__name__)


class Hosts:
    """The hosts of one worker.

    Args:
        follow: is run beside each host from when its model is loaded, until it ends.
    """

    def __init__(self, memory_share: float, idle_seconds: float, follow: Callable[[Host], Awaitable[None]]) -> None:
        self._memory_share, self._idle_seconds, self._follow = memory_share, idle_seconds, follow
        self._hosts: dict[Identity, Host] = {}
        self._loading: dict[Identity, asyncio.Task[None]] = {}
        self._refused: dict[Identity, tuple[ModelUnavailableError, float]] = {}
        """Why, and until when."""
        self._one_at_a_time = asyncio.Lock()
        self._leaving: dict[Host, asyncio.Task[None]] = {}
        """Those that make room, and still are at work."""
        self._closing: set[asyncio.Task[None]] = set()
        self._running: set[Host] = set()
        """All that have a model loaded, those that nobody gets any more too."""

    async def get(self, identity: Identity, options: Options, user: str) -> Host:
        """The host of a model, loaded, with ``user`` among its users. Raises ``ModelUnavailableError``."""
        identity = self._suitable(identity)
        host = self._hosts.get(identity)
        if host is None:
            self._check(identity)
            host = self._hosts[identity] = Host(identity, options)
            self._loading[identity] = asyncio.create_task(self._load(host))
        host.users.add(user)
        loading = self._loading.get(identity)
        if loading is not None:
            await asyncio.shield(loading)
        return host

    def _suitable(self, identity: Identity) -> Identity:
        """A loaded host of this model, whatever adapters it takes, where none are needed."""
        if identity.lora_rank:
            return identity
        wanted = (identity.model_path, identity.changed_ns)
        return next((each for each in self._hosts if (each.model_path, each.changed_ns) == wanted), identity)

    def _check(self, identity: Identity) -> None:
        """Raises ``ModelUnavailableError`` again for a folder that could not be loaded a moment ago."""
        now = time.monotonic()
        self._refused = {each: found for each, found in self._refused.items() if found[1] > now}
        if identity in self._refused:
            raise self._refused[identity][0]

    def end_those_that_grow(self) -> None:
        for host in self._running:
            host.end_if_grown()

    def leave(self, host: Host, user: str) -> None:
        host.users.discard(user)
        host.used_at = time.monotonic()

    def close_idle(self) -> None:
        for identity, host in list(self._hosts.items()):
            idle = not host.users and host.ready is not None and time.monotonic() - host.used_at > self._idle_seconds
            if idle:
                log.info("unloading %s, which nobody uses", identity.model_path)
                self._close_later(self.remove(host))

    def remove(self, host: Host) -> Host:
        """Forget ``host``, so that nobody gets it any more."""
        if self._hosts.get(host.identity) is host:
            del self._hosts[host.identity]
        return host

    async def close(self) -> None:
        leaving = list(self._leaving.values())
        for task in (*self._loading.values(), *leaving):
            task.cancel()
        await asyncio.gather(*(host.close() for host in self._hosts.values()))
        await asyncio.gather(*leaving, return_exceptions=True)

    def _close_later(self, host: Host) -> None:
        task = asyncio.create_task(host.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _load(self, host: Host) -> None:
        try:
            while not await self._start_if_it_fits(host):
                # Another that fits may be loaded meanwhile.
                await asyncio.wait(self._leaving.values(), return_when=asyncio.FIRST_COMPLETED)
        except BaseException as error:
            await self.remove(host).close()
            if isinstance(error, ModelUnavailableError):
                log.error("%s could not be loaded: %s", host.identity.model_path, error)
                if error.failed.status < 500:
                    self._refused[host.identity] = error, time.monotonic() + REFUSED_SECONDS
            raise
        finally:
            del self._loading[host.identity]
        task = asyncio.create_task(self._watch(host))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _watch(self, host: Host) -> None:
        self._running.add(host)
        try:
            await self._follow(host)
        finally:
            self._running.discard(host)

    async def _start_if_it_fits(self, host: Host) -> bool:
        """Load ``host``, or have another begin to make room for it and return False."""
        async with self._one_at_a_time:
            if not self._fits(host):
                if not self._leaving:
                    self._unload_one_for(host)
                return False
            began = time.monotonic()
            log.info("loading %s", host.identity.model_path)
            await host.start()
            log.info("loaded %s in %.1f s", host.identity.model_path, time.monotonic() - began)
            return True

    def _unload_one_for(self, host: Host) -> None:
        """The one used longest ago, of those that are not at work if there is any."""
        loaded = [other for other in self._hosts.values() if other is not host and other.ready is not None]
        victim = min(loaded, key=lambda other: (bool(other.users), other.used_at))
        log.info("unloading %s to make room for %s", victim.identity.model_path, host.identity.model_path)
        self._leaving[self.remove(victim)] = asyncio.create_task(self._let_go(victim))

    async def _let_go(self, host: Host) -> None:
        """Unload a host that takes no more, once it has answered all that it is at work on."""
        try:
            while host.users:
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await host.close()
            del self._leaving[host]

    def _fits(self, host: Host) -> bool:
        """Whether it may be loaded beside what is; the first always may."""
        there = [*self._hosts.values(), *self._leaving]
        ready = [other.ready for other in there if other.ready is not None]
        if not ready:
            return True
        needed = memory.weights(Path(host.identity.model_path)) + sum(each.used_bytes for each in ready)
        return needed <= self._memory_share * ready[0].total_bytes
