"""The way in: tenants begin in turn, and what would find its queue full is refused before anything is done for it."""

import asyncio
import json
from typing import Any

import pytest

from service.core import gate
from service.core.gate import LONGEST_PAUSE, PAUSE, SHARED_SECONDS, STRANGERS_WAITING, Gate, Tenant, Turns
from service.core.threads import request_threads


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
    way_in = Gate(app, lambda scope: Tenant(scope["tenant"], scope.get("address")))

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
    monkeypatch.setattr(request_threads, "is_full", lambda tenant: tenant == "a")
    app = Recorded()
    through_gate(app, scope("a"), scope("b"))
    assert app.begun == ["b"]
    start, body = app.sent
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert json.loads(body["body"])["error"]["code"] == "overloaded"


def test_no_more_wait_for_their_turn_than_may_wait_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_threads, "waiting_each", 3)
    app = Recorded()
    through_gate(app, *(scope("a") for _ in range(8)), scope("b"))
    assert sorted(app.begun) == ["a", "a", "a", "b"]
    assert [message["status"] for message in app.sent if "status" in message] == [503] * 5


def test_many_unknown_callers_of_one_address_leave_room_for_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_threads, "waiting_each", 2)
    monkeypatch.setattr(request_threads, "waiting", 5)
    app, room = Recorded(), int(STRANGERS_WAITING * 2)
    strangers = [{**scope(f"key {n}"), "address": "here"} for n in range(room + 2)]
    through_gate(app, *strangers, {**scope("key there"), "address": "there"}, scope("known"))
    assert app.begun == [*(f"key {n}" for n in range(room)), "key there", "known"]


def test_an_unknown_caller_finds_room_beside_another_s_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_threads, "waiting_each", 4)
    app = Recorded()
    through_gate(app, *({**scope(key), "address": "here"} for key in "aaaaaaaab"))
    assert sorted(app.begun) == list("aaaab")


def test_a_request_whose_client_left_holds_up_nobody() -> None:
    app = Recorded()

    async def main() -> None:
        way_in = Gate(app, lambda scope: Tenant(scope["tenant"], scope.get("address")))
        first = asyncio.create_task(way_in(scope("a"), receive, app.send))
        gone = asyncio.create_task(way_in(scope("b"), receive, app.send))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(first, way_in(scope("c"), receive, app.send))

    asyncio.run(main())
    assert app.begun == ["a", "c"]


class Clock:
    """Stands in for ``time``: nobody's request takes any but what the test says."""

    def __init__(self) -> None:
        self.now, self.used = 100.0, 10.0

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.used


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(gate, "time", clock)
    return clock


COST = 0.01


def seen(clock: Clock, *tenants: str, cost: float = COST) -> Turns:
    """After many requests of a tenant that has left, which took ``cost`` each, one of each of ``tenants`` began."""
    turns = Turns()
    for _ in range(200):
        clock.used += cost
        turns._note("long ago")
    clock.now += SHARED_SECONDS + 1
    for tenant in tenants:
        clock.used += cost
        turns._note(tenant)
    return turns


def test_a_burst_beside_others_takes_half_of_the_process(clock: Clock) -> None:
    turns = seen(clock, "quiet", "loud")
    clock.now += PAUSE * COST - 0.001
    assert not turns._may_begin("loud")
    clock.now += 0.002
    assert turns._may_begin("loud")


def test_a_tenant_that_is_alone_waits_for_nothing(clock: Clock) -> None:
    assert seen(clock, "loud")._may_begin("loud")


def test_a_key_that_was_not_known_yet_is_no_other_tenant(clock: Clock) -> None:
    turns = seen(clock)
    turns._note("key of loud", known=False)
    turns._note("loud")
    assert turns._may_begin("loud")


def test_who_was_there_long_ago_is_not_there(clock: Clock) -> None:
    turns = seen(clock, "quiet")
    clock.now += SHARED_SECONDS + 1
    turns._note("loud")
    assert turns._may_begin("loud")


def test_what_others_use_makes_no_pause_longer(clock: Clock) -> None:
    turns = seen(clock, "loud")
    for n in range(100):
        clock.used += COST
        turns._note(f"other {n}")
    clock.now += PAUSE * COST + 0.001
    assert turns._may_begin("loud")


def test_no_pause_is_longer_than_the_longest(clock: Clock) -> None:
    turns = seen(clock, "quiet", "loud", cost=5.0)
    clock.now += LONGEST_PAUSE - 0.001
    assert not turns._may_begin("loud")
    clock.now += 0.002
    assert turns._may_begin("loud")


def test_tenants_that_have_gone_are_forgotten(clock: Clock) -> None:
    turns = seen(clock, *(f"address {n}" for n in range(100)))
    clock.now += SHARED_SECONDS + 1
    for n in range(200):
        turns._note(f"organization {n % 3}")
    assert len(turns._began) == 3


def test_requests_that_pause_are_all_begun() -> None:
    app = Recorded()
    through_gate(app, *(scope(tenant) for tenant in "aaaaaaaab"), *(scope("c") for _ in range(3)))
    assert sorted(app.begun) == sorted("aaaaaaaabccc")
