"""What the API makes of serving workers of another version."""

import asyncio
import json
from typing import Any

import pytest

from service.core.errors import DomainError
from service.inference import exchange, queue
from service.inference.wire import Chat, Delta, End, Event, Question, Sampling, Started

SAID: list[dict[str, Any]] = [
    {"kind": "accepted", "worker": "worker_1"},
    {"kind": "started", "prompt_tokens": 1},
    {"kind": "delta", "content": "word"},
    {"kind": "end", "finish_reason": "stop", "tokens": 1},
]


async def allowed() -> None:
    """The key stays good."""


def asked(*messages: Any) -> list[Event]:
    """What a reader hears of a question on which a worker says ``messages``."""
    question = Question(
        id="q", model="m", model_path="/m", prompts=["x"], sampling=Sampling(seed=1), organization="org_1"
    )

    async def main() -> list[Event]:
        client = exchange.connect()
        try:
            for message in messages:
                await client.rpush(exchange.events_key("q"), json.dumps(message))
            heard = [event async for event in exchange.ask(question, "key_1", allowed) if event is not None]
            assert await queue.take(client, 8, {}) is not None
            return heard
        finally:
            await client.aclose()

    return asyncio.run(main())


def test_what_a_newer_worker_says_besides_is_left_out(own_redis: object) -> None:
    heard = asked([each | {"foresight": 1} for each in SAID])
    assert heard == [Started(prompt_tokens=1), Delta(content="word"), End(finish_reason="stop", tokens=1)]


@pytest.mark.parametrize("message", [[*SAID[:2], {"kind": "oracle"}], [{"kind": "delta", "content": 5}], {}, "text"])
def test_what_is_not_understood_is_a_503(own_redis: object, message: Any) -> None:
    with pytest.raises(DomainError) as refusal:
        asked(message)
    assert (refusal.value.status, refusal.value.code) == (503, "no_serving_worker")
    assert "another version" in refusal.value.message


@pytest.mark.parametrize(("project", "tenant"), [(None, "org_1"), ("proj_2", "proj_2")])
def test_workers_of_before_are_told_of_a_project_only_where_there_is_one(project: str | None, tenant: str) -> None:
    chat = Chat(messages=[{"role": "user", "content": None}])
    asked = Question(
        id="q", model="m", model_path="/m", chat=chat, sampling=Sampling(seed=1), organization="org_1", project=project
    )
    sent = json.loads(asked.to_send())
    assert ("project" in sent) == (project is not None)
    assert Question.model_validate(sent) == asked
    assert asked.tenant == tenant
