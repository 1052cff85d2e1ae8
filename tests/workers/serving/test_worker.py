"""What a worker does about readers that are gone and questions that are too late."""

import asyncio
import time
from pathlib import Path

import pytest

from service.core import live
from service.inference import exchange
from service.inference.wire import Delta, Question, Sampling
from service.settings import settings
from workers.serving import worker as module
from workers.serving.worker import Taken, Worker


def question(id: str, model_path: Path, expires_in: float = 60) -> Question:
    expires_at = time.time() + expires_in
    return Question(
        id=id, model="m", model_path=str(model_path), prompts=["a"], sampling=Sampling(seed=1), expires_at=expires_at
    )


def test_a_question_whose_reader_stopped_reading_is_given_up(
    database: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "UNREAD_SECONDS", 0.05)

    async def main() -> None:
        worker = Worker(settings())
        for id in ("read", "unread"):
            worker._taken[id] = Taken(question(id, tmp_path), open=1)
        for _ in range(4):
            await worker._tell({id: [Delta(content="x")] for id in ("read", "unread")})
            live.client().delete(exchange.events_key("read"))
            await asyncio.sleep(0.05)
        assert worker._taken.keys() == {"read"}
        await worker._redis.aclose()

    asyncio.run(main())


def test_what_is_late_or_outside_the_folders_is_not_served(database: object, tmp_path: Path) -> None:
    late, outside = question("late", tmp_path, expires_in=-1), question("outside", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    for each in (late, outside):
        live.client().rpush(exchange.QUEUE, each.model_dump_json())

    async def main() -> None:
        worker = Worker(settings())
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(10):
            while live.client().llen(exchange.events_key("outside")) < 2:
                await asyncio.sleep(0.01)
        worker.stop()
        await running

    asyncio.run(main())
    said = live.client().lrange(exchange.events_key("outside"), 0, -1)
    assert b"model_not_found" in said[1]
    assert not live.client().exists(exchange.events_key("late"))
