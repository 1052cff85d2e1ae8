"""What a worker does about readers that are gone, questions that are too late, and models whose processes end."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from service.inference import exchange, queue, wire
from service.inference.wire import Chat, Delta, End, Failed, Question, Sampling, Started
from service.settings import settings
from tests.workers.bounded.test_bounded import ENDLESS
from workers.serving import hosted, memory
from workers.serving import worker as module
from workers.serving.active import ActiveQuestion
from workers.serving.hosted import Host
from workers.serving.identity import Identity, ModelUnavailableError
from workers.serving.lines import Options, QuestionEvents, Ready
from workers.serving.worker import Worker

DIED = Failed(status=503, code="model_process_ended", message="It ended.")


def question(id: str, model_path: Path, organization: str = "org_1", **changes: Any) -> Question:
    fields = {"id": id, "model": "m", "model_path": str(model_path), "sampling": Sampling(seed=1)}
    return Question(**{**fields, "organization": organization, **({"prompts": ["a"]} | changes)})


class Scripted:
    """Hosts without processes. They die of questions named ``kill…`` and say one word to the others."""

    def __init__(self, patch: pytest.MonkeyPatch, template: str | None = None) -> None:
        self.asked: list[list[str]] = []
        """Questions, by host."""
        self.held_back: set[str] = set()
        """Questions whose answers do not come."""
        self.texts: dict[str, str | None] = {}
        queued: dict[Host, asyncio.Queue[QuestionEvents | None]] = {}

        async def start(host: Host) -> Ready:
            queued[host] = asyncio.Queue()
            self.asked.append([])
            host.ready = Ready(used_bytes=1, total_bytes=100, chat_template=template)
            return host.ready

        def ask(host: Host, asked: Question, text: str | None) -> None:
            self.asked[-1].append(asked.id)
            self.texts[asked.id] = text
            started, word, end = Started(prompt_tokens=1), Delta(content="word"), End(finish_reason="stop", tokens=1)
            events: list[Any] = [started] if asked.id in self.held_back else [started, word, end]
            if "talks" in asked.id:
                events = [started, word]
            queued[host].put_nowait(None if asked.id.startswith("kill") else QuestionEvents(id=asked.id, events=events))

        async def events_of(host: Host) -> AsyncIterator[list[QuestionEvents]]:
            while (one := await queued[host].get()) is not None:
                yield [one]
            host.lost = DIED
            raise ModelUnavailableError(DIED)

        async def close(host: Host) -> None:
            return

        patch.setattr(Host, "start", start)
        patch.setattr(Host, "ask", ask)
        patch.setattr(Host, "events", events_of)
        patch.setattr(Host, "close", close)

    def everything_asked(self) -> list[str]:
        return [id for asked in self.asked for id in asked]


@pytest.fixture
def folder(own_redis: redis.Redis, models_dir: Path) -> Path:
    made = models_dir / "scripted"
    made.mkdir(exist_ok=True)
    (made / "config.json").write_text("{}")
    return made


def work(case: Callable[[Worker, Any], Awaitable[None]]) -> None:
    """Run ``case`` beside a worker, with a client of Redis."""

    async def main() -> None:
        worker, client = Worker(settings()), exchange.connect()
        running = asyncio.create_task(worker.run())
        try:
            async with asyncio.timeout(60):
                await case(worker, client)
        finally:
            worker.stop()
            worker.stop()
            await running
            await client.aclose()

    asyncio.run(main())


async def put(client: Any, *questions: Question) -> None:
    for each in questions:
        await queue.put(client, each, each.model_dump_json().encode())


async def outcome(client: Any, id: str) -> wire.Event:
    """The last event of a question."""
    while True:
        found = await client.blpop([exchange.events_key(id)], timeout=1)
        events = [] if found is None else wire.events.validate_json(found[1])
        if events and isinstance(events[-1], End | Failed):
            return events[-1]


def test_a_question_whose_reader_stopped_reading_is_given_up(
    own_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "UNREAD_SECONDS", 0.05)

    async def main() -> None:
        worker = Worker(settings())
        for id in ("read", "unread"):
            worker._active[id] = ActiveQuestion(question(id, tmp_path), places=1, open=1)
        for _ in range(4):
            await worker._tell({id: [Delta(content="x")] for id in ("read", "unread")})
            own_redis.delete(exchange.events_key("read"))
            await asyncio.sleep(0.05)
        assert worker._active.keys() == {"read"}
        await worker._redis.aclose()

    asyncio.run(main())


def test_what_is_late_or_outside_the_folders_is_not_served(own_redis: redis.Redis, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    async def case(worker: Worker, client: Any) -> None:
        await put(client, question("outside", tmp_path))
        refused = await outcome(client, "outside")
        assert isinstance(refused, Failed)
        assert refused.code == "model_not_found"

    own_redis.set("serving:question:late", question("late", tmp_path).model_dump_json(), px=1)
    own_redis.rpush("serving:waiting:org_1", "late 1")
    own_redis.rpush("serving:turns", "org_1")
    time.sleep(0.01)
    work(case)
    assert not own_redis.exists(exchange.events_key("late"))


def test_a_question_of_another_version_is_refused_by_what_is_not_known_and_the_next_is_answered(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    Scripted(monkeypatch)
    plain = question("newer", folder).model_dump(mode="json")
    spoiled: dict[str, bytes] = {
        "newer": json.dumps(plain | {"foresight": 1}).encode(),
        "sampling": json.dumps(plain | {"id": "sampling", "sampling": {"seed": 1, "oracle": 1}}).encode(),
        "missing": json.dumps({"id": "missing"}).encode(),
        "nameless": b"[]",
        "broken": b"{",
    }

    async def case(worker: Worker, client: Any) -> None:
        for id, payload in spoiled.items():
            await queue.put(client, question(id, folder), payload)
        for id, unknown in {"newer": "foresight", "sampling": "sampling.oracle", "missing": "model"}.items():
            refused = await outcome(client, id)
            assert isinstance(refused, Failed)
            assert (refused.status, refused.code) == (503, "no_serving_worker")
            assert unknown in refused.message
        await put(client, question("known", folder))
        assert isinstance(await outcome(client, "known"), End)
        # Its places are free a moment after its reader has been told.
        while worker._held.total():
            await asyncio.sleep(0.01)

    work(case)


def test_a_process_that_ends_costs_an_error_only_to_who_has_read_a_part_of_the_answer(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    hosts = Scripted(monkeypatch)
    hosts.held_back = {"silent", "other"}

    async def case(worker: Worker, client: Any) -> None:
        await put(client, question("talks", folder), question("silent", folder), question("other", folder))
        while sorted(hosts.everything_asked()) != ["other", "silent", "talks"]:
            await asyncio.sleep(0.01)
        hosts.held_back = set()
        await put(client, question("kill", folder, "org_2"))
        lost, killer = await outcome(client, "talks"), await outcome(client, "kill")
        assert isinstance(lost, Failed)
        assert lost == DIED
        for id in ("silent", "other"):
            assert isinstance(await outcome(client, id), End)
        assert isinstance(killer, Failed)
        assert killer.status == 400
        assert killer.code == "model_process_ended"
        assert hosts.everything_asked().count("kill") == 2

    work(case)


def test_those_who_were_beside_it_do_not_end_a_second_process_together(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    hosts = Scripted(monkeypatch)
    hosts.held_back = {f"silent{number}" for number in range(4)}

    async def case(worker: Worker, client: Any) -> None:
        await put(client, *(question(f"silent{n}", folder, f"org_{n}") for n in range(4)))
        while len(hosts.everything_asked()) < 4:
            await asyncio.sleep(0.01)
        hosts.held_back = set()
        await put(client, question("kill", folder, "org_9"))
        for number in range(4):
            assert isinstance(await outcome(client, f"silent{number}"), End)
        assert isinstance(await outcome(client, "kill"), Failed)
        # Each was asked twice: the first process died, and what ended the second was asked alone.
        assert sorted(hosts.everything_asked()) == sorted(["kill"] * 2 + [f"silent{n}" for n in range(4)] * 2)

    work(case)


def test_a_reader_that_hangs_up_ends_the_rendering_at_once(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    hosts = Scripted(monkeypatch, template="{% if messages[0].content == 'endless' %}" + ENDLESS + "{% endif %}ok")

    def rendering(worker: Worker) -> list[psutil.Process]:
        return psutil.Process(worker._preparation._server.pid).children()

    async def case(worker: Worker, client: Any) -> None:
        asked = Chat(messages=[{"role": "user", "content": "endless"}])
        await put(client, question("endless", folder, chat=asked, prompts=[]))
        while not rendering(worker):
            await asyncio.sleep(0.01)
        (process,) = rendering(worker)
        began = process.cpu_times().user
        # Another organisation's is not held up meanwhile.
        plain = Chat(messages=[{"role": "user", "content": "short"}])
        await put(client, question("short", folder, "org_2", chat=plain, prompts=[]))
        assert isinstance(await outcome(client, "short"), End)
        assert hosts.texts == {"short": "ok"}
        await client.rpush(exchange.control_key(worker.id), "endless")
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)
        assert began < 1
        assert not worker._active
        assert not worker._held

    work(case)


def test_an_endless_rendering_is_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    Scripted(monkeypatch, template=ENDLESS)

    async def case(worker: Worker, client: Any) -> None:
        chat = Chat(messages=[{"role": "user", "content": "x"}])
        await put(client, question("endless", folder, chat=chat, prompts=[]))
        refused = await outcome(client, "endless")
        assert isinstance(refused, Failed)
        assert (refused.status, refused.param) == (400, "messages")
        assert "chat template takes more than" in refused.message

    work(case)


def test_a_schema_that_takes_all_memory_never_reaches_the_model(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    hosts = Scripted(monkeypatch)

    async def case(worker: Worker, client: Any) -> None:
        sampling = Sampling(seed=1, json_schema={"type": "array", "minItems": 10**9})
        await put(client, question("large", folder, sampling=sampling), question("small", folder))
        refused = await outcome(client, "large")
        assert isinstance(refused, Failed)
        assert (refused.status, refused.param, refused.code) == (400, "response_format", "invalid_json_schema")
        assert isinstance(await outcome(client, "small"), End)
        assert hosts.asked == [["small"]]

    work(case)


def test_a_process_that_takes_too_much_memory_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    sizes = iter([10, 10 + hosted.WORKING_BYTES, 11 + hosted.WORKING_BYTES, 12 + hosted.WORKING_BYTES])
    monkeypatch.setattr(memory, "resident", lambda pid: next(sizes))
    monkeypatch.setattr(os, "killpg", lambda pid, number: ended.append(number))
    monkeypatch.setattr(Host, "pid", 1)
    host = Host(Identity("m", 0), Options(model_path="m", engine="transformers", memory_share=1))
    host.ready, host._most_bytes = Ready(used_bytes=1, total_bytes=1), memory.resident(1) + hosted.WORKING_BYTES
    for _ in range(3):
        host.end_if_grown()
    assert ended == [signal.SIGKILL]


@pytest.mark.parametrize("missing", ["adapter_config.json", "rank"])
def test_a_broken_adapter_is_told_as_one(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, missing: str
) -> None:
    Scripted(monkeypatch)
    if missing == "rank":
        (tmp_path / "adapter_config.json").write_text(json.dumps([5]))

    async def case(worker: Worker, client: Any) -> None:
        worker._settings = settings().model_copy(update={"serving_engine": "vllm"})
        await put(client, question("adapted", folder, adapter_path=str(tmp_path)))
        refused = await outcome(client, "adapted")
        assert isinstance(refused, Failed)
        assert (refused.status, refused.code) == (400, "invalid_model")

    work(case)


def test_a_worker_goes_on_when_a_frozen_redis_does(
    own_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    Scripted(monkeypatch)
    monkeypatch.setattr(exchange, "ANSWER_SECONDS", 0.5)
    server = int(own_redis.info()["process_id"])

    async def case(worker: Worker, client: Any) -> None:
        await put(client, question("before", folder))
        assert isinstance(await outcome(client, "before"), End)
        os.kill(server, signal.SIGSTOP)
        try:
            with pytest.raises(redis.exceptions.RedisError):
                await client.ping()
            await asyncio.sleep(2)
        finally:
            os.kill(server, signal.SIGCONT)
        await put(client, question("after", folder))
        assert isinstance(await outcome(client, "after"), End)

    work(case)


def test_it_gives_signs_of_life_while_redis_is_frozen(
    own_redis: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: Callable[..., None]
) -> None:
    file = tmp_path / "pulse"
    faster(pulse_file=file)
    monkeypatch.setattr(exchange, "ANSWER_SECONDS", 0.1)
    server = int(own_redis.info()["process_id"])

    async def case(worker: Worker, client: Any) -> None:
        os.kill(server, signal.SIGSTOP)
        try:
            for _ in range(2):
                file.unlink(missing_ok=True)
                while not file.exists():
                    await asyncio.sleep(0.05)
        finally:
            os.kill(server, signal.SIGCONT)

    work(case)
