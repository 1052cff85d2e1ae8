"""A serving worker: takes questions from Redis while it has room, and passes on what the hosts of their models say.

It keeps nothing: when it dies its hosts end with it and its readers notice that it does not breathe.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from service.core import live
from service.core.ids import new_id
from service.inference import exchange, wire
from service.inference.wire import Accepted, End, Event, Failed, Question
from service.settings import Settings
from workers.serving.hosted import Host, Identity, Lost
from workers.serving.hosts import Hosts
from workers.serving.lines import Options, Said

BREATH_SECONDS = 1.0
WAIT_SECONDS = 1.0
POLL_SECONDS = 0.05
USUAL_RANK = 64
"""Room for adapters that vLLM is started with at least, so that one engine takes most of a base's adapters."""
UNREAD_SECONDS = 60.0
"""A reader that has not emptied its list for so long is gone."""

log = logging.getLogger(__name__)


@dataclass
class Taken:
    """A question in hand."""

    question: Question
    open: int
    """Choices that are not complete."""
    host: Host | None = None
    unread_since: float | None = None


class Worker:
    def __init__(self, settings: Settings) -> None:
        self.id = new_id("worker_")
        self._settings = settings
        self._taken: dict[str, Taken] = {}
        self._room = asyncio.Semaphore(settings.serving_concurrency)
        self._hosts = Hosts(settings.serving_memory_share, settings.serving_idle_seconds, self._follow)
        self._redis: Any = live.asynchronous()
        self._stopping = asyncio.Event()
        self._placing: set[asyncio.Task[None]] = set()
        self._running: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Take nothing more, finish what is in hand, and end. Asked twice, end at once."""
        if self._stopping.is_set() and self._running is not None:
            self._running.cancel()
        self._stopping.set()

    async def run(self) -> None:
        """Work until asked to stop."""
        breathing = asyncio.create_task(self._live())
        listening = asyncio.create_task(self._listen())
        self._running = asyncio.create_task(self._work())
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        finally:
            breathing.cancel()
            listening.cancel()
            await self._hosts.close()
            with contextlib.suppress(RedisError):
                await self._redis.delete(exchange.alive_key(self.id))
            await self._redis.aclose()

    async def _work(self) -> None:
        """Take questions until asked to stop, then wait for those in hand."""
        while not self._stopping.is_set():
            await self._room.acquire()
            payload = await self._next(exchange.QUEUE)
            if payload is None:
                self._room.release()
                continue
            question = Question.model_validate_json(payload)
            if question.expires_at < time.time():
                self._room.release()
                continue
            self._taken[question.id] = Taken(question, question.choices)
            # A reader must not find us dead because Redis has just been restarted.
            await self._breathe()
            await self._tell({question.id: [Accepted(worker=self.id)]})
            task = asyncio.create_task(self._place(question))
            self._placing.add(task)
            task.add_done_callback(self._placing.discard)
        while self._taken:
            await asyncio.sleep(POLL_SECONDS)

    async def _listen(self) -> None:
        """Forget the questions whose readers have hung up."""
        while True:
            id = await self._next(exchange.control_key(self.id))
            if id is not None:
                self._forget(id.decode())

    async def _next(self, key: str) -> bytes | None:
        try:
            found = await self._redis.blpop([key], timeout=WAIT_SECONDS)
        except RedisError as error:
            log.warning("Redis is away: %s", error)
            await asyncio.sleep(WAIT_SECONDS)
            return None
        return None if found is None else found[1]

    async def _live(self) -> None:
        """Say that we live, for as long as we do, and unload what nobody uses."""
        while True:
            await self._breathe()
            self._hosts.close_idle()
            await asyncio.sleep(BREATH_SECONDS)

    async def _breathe(self) -> None:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in (exchange.alive_key(self.id), exchange.ANY_WORKER):
                    pipe.set(key, "1", px=int(exchange.ALIVE_SECONDS * 1000))
                await pipe.execute()
        except RedisError as error:
            log.warning("Redis is away: %s", error)

    async def _place(self, question: Question) -> None:
        """Have the model loaded and ask it."""
        try:
            identity, options = self._identify(question)
            host = await self._hosts.get(identity, options, question.id)
            if host.lost is not None:
                raise Lost(host.lost)
        except Lost as lost:
            await self._tell({question.id: [lost.failed]})
            return
        taken = self._taken.get(question.id)
        if taken is None:
            self._hosts.leave(host, question.id)
            return
        taken.host = host
        host.ask(question)

    def _identify(self, question: Question) -> tuple[Identity, Options]:
        folder = Path(question.model_path)
        roots = (self._settings.data_dir.absolute(), self._settings.models_dir.absolute())
        if not any(folder.is_relative_to(root) for root in roots) or not (folder / "config.json").is_file():
            message = f"The weights of '{question.model}' are not where the serving worker looks for them."
            raise Lost(Failed(status=404, code="model_not_found", message=message, param="model"))
        changed, engine = (folder / "config.json").stat().st_mtime_ns, self._settings.serving_engine
        rank = 0
        if question.adapter_path is not None and engine == "vllm":
            config = json.loads((Path(question.adapter_path) / "adapter_config.json").read_bytes())
            rank = max(USUAL_RANK, int(config["r"]))
        identity = Identity(str(folder), changed, rank)
        if rank == 0:
            identity = self._hosts.any_of(str(folder), changed) or identity
        share = self._settings.serving_memory_share
        return identity, Options(model_path=str(folder), engine=engine, lora_rank=rank, memory_share=share)

    async def _follow(self, host: Host) -> None:
        """Pass on what ``host`` says, until it ends."""
        try:
            async for said in host.said():
                await self._pass_on(said)
        except Lost as lost:
            self._hosts.remove(host)
            mine = [id for id, taken in self._taken.items() if taken.host is host]
            await self._tell({id: [lost.failed] for id in mine})

    async def _pass_on(self, said: Sequence[Said]) -> None:
        events: dict[str, list[Event]] = {}
        for each in said:
            if each.id in self._taken:
                events.setdefault(each.id, []).extend(each.events)
        await self._tell(events)

    async def _tell(self, events: dict[str, list[Event]]) -> None:
        """Give readers their events, and let go of the questions that are complete or that nobody reads."""
        if not events:
            return
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for id, some in events.items():
                    pipe.rpush(exchange.events_key(id), wire.events.dump_json(wire.merged(some)))
                    pipe.expire(exchange.events_key(id), exchange.EVENTS_TTL_SECONDS)
                lengths = (await pipe.execute())[::2]
        except RedisError as error:
            log.warning("Redis is away, %d requests are given up: %s", len(events), error)
            for id in events:
                self._forget(id)
            return
        for (id, some), length in zip(events.items(), lengths, strict=True):
            self._note(id, some, length)

    def _note(self, id: str, events: list[Event], unread: int) -> None:
        taken = self._taken.get(id)
        if taken is None:
            return
        taken.open -= sum(isinstance(event, End) for event in events)
        if taken.open == 0 or any(isinstance(event, Failed) for event in events):
            self._let_go(id)
            return
        now = time.monotonic()
        taken.unread_since = None if unread <= 1 else taken.unread_since or now
        if taken.unread_since is not None and now - taken.unread_since > UNREAD_SECONDS:
            log.warning("nobody reads the answer to %s", id)
            self._forget(id)

    def _forget(self, id: str) -> None:
        taken = self._taken.get(id)
        if taken is not None:
            if taken.host is not None:
                taken.host.forget(id)
            self._let_go(id)

    def _let_go(self, id: str) -> None:
        taken = self._taken.pop(id)
        self._room.release()
        if taken.host is not None:
            self._hosts.leave(taken.host, id)
