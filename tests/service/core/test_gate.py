"""The way in: tenants begin in turn, and what would find its queue full is refused before anything is done for it."""

import asyncio
import json
from typing import Any

import pytest

from service.core import gate
from service.core.gate import Gate


def scope(tenant: str, path: str = "/v1/models") -> dict[str, Any]:
    return {"type": "http", "path": path, "tenant": tenant}


async def receive() -> Any:
    raise AssertionError("nobody reads the body")


class Recorded:
    """An app that notes whose requests begin, and the answers that go out without it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.sent: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.append(scope["tenant"])

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def through_gate(app: Recorded, *scopes: dict[str, Any]) -> None:
    way_in = Gate(app, lambda scope: str(scope["tenant"]))

    async def main() -> None:
        await asyncio.gather(*(way_in(each, receive, app.send) for each in scopes))

    asyncio.run(main())


def test_tenants_begin_in_turn() -> None:
    app = Recorded()
    through_gate(app, *(scope(tenant) for tenant in "aaaabbc"))
    assert app.begun == ["a", "b", "c", "a", "b", "a", "a"]


def test_other_paths_wait_for_nobody() -> None:
    app = Recorded()
    through_gate(app, scope("a"), scope("a"), scope("health", "/healthz"))
    assert app.begun[0] == "health"


def test_what_would_find_its_queue_full_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate.request_threads, "is_full", lambda tenant: tenant == "a")
    app = Recorded()
    through_gate(app, scope("a"), scope("b"))
    assert app.begun == ["b"]
    start, body = app.sent
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert json.loads(body["body"])["error"]["code"] == "overloaded"


def test_a_request_whose_client_left_holds_up_nobody() -> None:
    app = Recorded()

    async def main() -> None:
        way_in = Gate(app, lambda scope: str(scope["tenant"]))
        first = asyncio.create_task(way_in(scope("a"), receive, app.send))
        gone = asyncio.create_task(way_in(scope("b"), receive, app.send))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(first, way_in(scope("c"), receive, app.send))

    asyncio.run(main())
    assert app.begun == ["a", "c"]
