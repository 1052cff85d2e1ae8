"""A serving worker: takes questions from Redis while it has places, and passes on what the hosts of their models say.

It keeps nothing: when it dies its hosts end with it and its readers notice that it does not breathe.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from redis.exceptions import RedisError

from service.core import pulse
from service.core.ids import new_id
from service.inference import exchange, queue, wire
from service.inference.wire import Accepted, Delta, End, Event, Failed, Question, Started
from service.settings import Settings
from workers.serving.active import ActiveQuestion
from workers.serving.hosted import Host
from workers.serving.hosts import Hosts
from workers.serving.identity import ModelUnavailableError, identify
from workers.serving.lines import QuestionEvents
from workers.serving.preparation import Preparation, PreparationError

BREATH_SECONDS = 1.0
WAIT_SECONDS = 1.0
POLL_SECONDS = 0.05
WATCH_SECONDS = 0.1
TRIES = 3
"""Processes that a question is taken to, when others end before it can be asked."""
UNREAD_SECONDS = 60.0
"""A reader that has not emptied its list for so long is gone."""

log = logging.getLogger(__name__)


class Worker:
    def __init__(self, settings: Settings) -> None:
        self.id = new_id("worker_")
        self._settings = settings
        self._active: dict[str, ActiveQuestion] = {}
        self._held: Counter[str] = Counter()
        """Places that each organisation has."""
        self._hosts = Hosts(settings.serving_memory_share, settings.serving_idle_seconds, self._follow)
        self._preparation = Preparation()
        self._redis: Any = exchange.connect()
        self._stopping = asyncio.Event()
        self._room = asyncio.Event()
        """Set when a place may be free or a question may wait."""
        self._placing: set[asyncio.Task[None]] = set()
        self._suspects: asyncio.Queue[ActiveQuestion] = asyncio.Queue()
        """Questions that a model's process ended over, or beside."""
        self._running: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Take nothing more, finish what is in hand, and end. Asked twice, end at once."""
        if self._stopping.is_set() and self._running is not None:
            self._running.cancel()
        self._stopping.set()

    async def run(self) -> None:
        """Work until asked to stop."""
        self._preparation.start()
        others = [self._live(), self._watch(), self._listen(), self._hear(), self._try_again()]
        beside = [asyncio.create_task(each) for each in others]
        self._running = asyncio.create_task(self._work())
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        finally:
            for task in [*beside, *self._placing]:
                task.cancel()
            await self._hosts.close()
            self._preparation.close()
            with contextlib.suppress(RedisError):
                await self._redis.delete(exchange.alive_key(self.id))
            await self._redis.aclose()

    async def _work(self) -> None:
        """Take questions until asked to stop, then wait for those in hand."""
        while not self._stopping.is_set():
            self._room.clear()
            found = await self._next()
            if found is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._room.wait(), WAIT_SECONDS)
                continue
            payload, places = found
            question = await self._read(payload)
            if question is None:
                continue
            active = self._active[question.id] = ActiveQuestion(question, places, question.choices)
            self._held[question.organization] += places
            # A reader must not find us dead because Redis has just been restarted.
            await self._breathe()
            await self._tell({question.id: [Accepted(worker=self.id)]})
            task = asyncio.create_task(self._place(active))
            self._placing.add(task)
            task.add_done_callback(self._placing.discard)
        while self._active:
            await asyncio.sleep(POLL_SECONDS)

    async def _read(self, payload: bytes) -> Question | None:
        """A question; one of another version is refused by what is not known of it, if it says whose it is."""
        try:
            return Question.model_validate_json(payload)
        except ValidationError as error:
            unknown = ", ".join(".".join(map(str, each["loc"])) or "all of it" for each in error.errors()[:3])
            log.error("a question of another version is refused, for it is not known here: %s", unknown)
        message = (
            "The serving worker is of another version than this server, and does not know what it is asked: "
            f"{unknown}. Try again later."
        )
        try:
            id = json.loads(payload)["id"]
        except (ValueError, LookupError, TypeError):
            return None
        await self._tell({str(id): [Failed(status=503, code="no_serving_worker", message=message)]})
        return None

    async def _next(self) -> tuple[bytes, int] | None:
        places = self._settings.serving_concurrency
        if self._held.total() >= places:
            return None
        try:
            return await queue.take(self._redis, places, self._held)
        except RedisError as error:
            log.warning("Redis is away: %s", error)
            return None

    async def _hear(self) -> None:
        """Wake up when somebody asks."""
        while True:
            try:
                async with self._redis.pubsub() as bell:
                    await bell.subscribe(queue.BELL)
                    while True:
                        await bell.get_message(timeout=WAIT_SECONDS)
                        self._room.set()
            except RedisError as error:
                log.warning("Redis is away: %s", error)
                await asyncio.sleep(WAIT_SECONDS)

    async def _listen(self) -> None:
        """Forget the questions whose readers have hung up."""
        while True:
            try:
                found = await self._redis.blpop([exchange.control_key(self.id)], timeout=WAIT_SECONDS)
            except RedisError as error:
                log.warning("Redis is away: %s", error)
                await asyncio.sleep(WAIT_SECONDS)
                continue
            if found is not None:
                self._forget(found[1].decode())

    async def _live(self) -> None:
        """Say that we live, for as long as we do, and unload what nobody uses."""
        while True:
            pulse.give()
            await self._breathe()
            self._hosts.close_idle()
            await asyncio.sleep(BREATH_SECONDS)

    async def _watch(self) -> None:
        """End hosts that take more memory than they may."""
        while True:
            self._hosts.end_those_that_grow()
            await asyncio.sleep(WATCH_SECONDS)

    async def _breathe(self) -> None:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in (exchange.alive_key(self.id), exchange.ANY_WORKER):
                    pipe.set(key, "1", px=int(exchange.ALIVE_SECONDS * 1000))
                await pipe.execute()
        except RedisError as error:
            log.warning("Redis is away: %s", error)

    async def _place(self, active: ActiveQuestion) -> None:
        """Have the model loaded and ask it, and wait until it has taken the question in or is done with it."""
        question = active.question
        active.host = None
        active.begun.clear()
        active.settled.clear()
        try:
            for _ in range(TRIES):
                identity, options = identify(question, self._settings)
                host = await self._hosts.get(identity, options, question.id)
                try:
                    if await self._ask(active, host):
                        return
                finally:
                    if active.host is None:
                        self._hosts.leave(host, question.id)
            assert host.lost is not None
            raise ModelUnavailableError(host.lost)
        except (ModelUnavailableError, PreparationError) as refusal:
            await self._tell({question.id: [refusal.failed]})
        except Exception as error:
            log.exception("%s cannot be asked", question.model)
            message = f"The serving worker failed: {type(error).__name__}. Its log says more."
            await self._tell({question.id: [Failed(status=500, code="internal_error", message=message)]})

    async def _ask(self, active: ActiveQuestion, host: Host) -> bool:
        """Whether it was asked, or is not wanted any more; False where the host has ended before."""
        question, model = active.question, host.ready
        assert model is not None
        async with self._preparation.slot(question.organization):
            if question.id not in self._active:
                return True
            active.preparing = asyncio.ensure_future(self._preparation.text(question, model))
            try:
                text = await active.preparing
            except asyncio.CancelledError:
                if question.id in self._active:
                    raise
                return True
            if host.lost is not None:
                return False
            active.host = host
            host.ask(question, text)
            await active.begun.wait()
            return True

    async def _follow(self, host: Host) -> None:
        """Pass on what ``host`` says, until it ends."""
        if host.ready is not None:
            await self._preparation.learn(host.ready)
        try:
            async for messages in host.events():
                await self._pass_on(messages)
        except ModelUnavailableError as lost:
            self._hosts.remove(host)
            await self._mourn(host, lost.failed)

    async def _mourn(self, host: Host, failed: Failed) -> None:
        """Tell those who have been answered in part, and see to the others again: who of them ended it is not known."""
        told: dict[str, list[Event]] = {}
        for id, active in self._active.items():
            if active.host is not host:
                continue
            active.host = None
            active.begun.set()
            active.settled.set()
            if active.spoke:
                told[id] = [failed]
                continue
            active.deaths += 1
            if active.deaths > 1:
                # The official client would send it again after a 5xx, to end the next process.
                message = f"{failed.message} That was the second time with this request; it is not tried again."
                told[id] = [failed.model_copy(update={"status": 400, "message": message})]
            else:
                self._suspects.put_nowait(active)
        await self._tell(told)

    async def _try_again(self) -> None:
        """Ask what a process ended beside, one question at a time: then it is known which of them ends the next."""
        while True:
            active = await self._suspects.get()
            if active.question.id in self._active:
                await self._place(active)
                if active.question.id in self._active:
                    await active.settled.wait()

    async def _pass_on(self, messages: Sequence[QuestionEvents]) -> None:
        events: dict[str, list[Event]] = {}
        for each in messages:
            active = self._active.get(each.id)
            if active is None:
                continue
            active.begun.set()
            for event in each.events:
                if isinstance(event, Started) and active.started:
                    continue
                active.started = active.started or isinstance(event, Started)
                active.spoke = active.spoke or isinstance(event, Delta | End)
                events.setdefault(each.id, []).append(event)
            if active.spoke or not each.events:
                active.settled.set()
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
        active = self._active.get(id)
        if active is None:
            return
        active.open -= sum(isinstance(event, End) for event in events)
        if active.open == 0 or any(isinstance(event, Failed) for event in events):
            self._let_go(id)
            return
        now = time.monotonic()
        active.unread_since = None if unread <= 1 else active.unread_since or now
        if active.unread_since is not None and now - active.unread_since > UNREAD_SECONDS:
            log.warning("nobody reads the answer to %s", id)
            self._forget(id)

    def _forget(self, id: str) -> None:
        active = self._active.get(id)
        if active is not None:
            if active.host is not None:
                active.host.forget(id)
            self._let_go(id)

    def _let_go(self, id: str) -> None:
        active = self._active.pop(id)
        organization = active.question.organization
        self._held[organization] -= active.places
        if not self._held[organization]:
            del self._held[organization]
        self._room.set()
        active.begun.set()
        active.settled.set()
        if active.preparing is not None:
            active.preparing.cancel()
        if active.host is not None:
            self._hosts.leave(active.host, id)
