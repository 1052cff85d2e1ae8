"""In which order workers get questions, and how many of them may wait."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.core.errors import DomainError
from service.inference import exchange, queue
from service.inference.wire import Question, Sampling
from service.settings import Settings, settings

PLACES = 8


class Waiting:
    """A queue with one worker that keeps what it takes."""

    def __init__(self, client: Any) -> None:
        self.client, self.places = client, PLACES
        self.held: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()

    async def put(self, organization: str, choices: int = 1) -> Question:
        self._numbers[organization] += 1
        question = Question(
            id=f"{organization}{self._numbers[organization]}",
            model="m",
            model_path="/m",
            prompts=["x"],
            sampling=Sampling(seed=1, n=choices),
            organization=organization,
        )
        await queue.put(self.client, question, question.model_dump_json().encode())
        return question

    async def take(self) -> str | None:
        found = await queue.take(self.client, self.places, self.held)
        if found is None:
            return None
        question = Question.model_validate_json(found[0])
        self.held[question.organization] += found[1]
        return question.id

    async def take_all(self) -> list[str]:
        taken = []
        while (id := await self.take()) is not None:
            taken.append(id)
        return taken


Case = Callable[[Waiting], Awaitable[None]]


@pytest.fixture
def run(own_redis: object) -> Callable[[Case], None]:
    def it(case: Case) -> None:
        async def main() -> None:
            client = exchange.connect()
            try:
                await case(Waiting(client))
            finally:
                await client.aclose()

        asyncio.run(main())

    return it


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def it(most: int) -> None:
        changed: Settings = settings().model_copy(update={"serving_queue": most})
        monkeypatch.setattr(queue, "settings", lambda: changed)

    return it


def test_organizations_take_turns_and_each_is_served_in_its_order(run: Callable[[Case], None]) -> None:
    async def case(waiting: Waiting) -> None:
        waiting.places = 64
        for organization in "aaabbc":
            await waiting.put(organization)
        assert await waiting.take_all() == ["a1", "b1", "c1", "a2", "b2", "a3"]

    run(case)


def test_one_organization_leaves_places_for_those_that_come_new(run: Callable[[Case], None]) -> None:
    async def case(waiting: Waiting) -> None:
        for _ in range(300):
            await waiting.put("a", 1)
            if waiting.held["a"] < PLACES // 2:
                await waiting.take()
        assert await waiting.take_all() == []
        assert waiting.held == {"a": 4}
        for newcomer, places in (("b", 2), ("c", 1), ("d", 1)):
            for _ in range(10):
                await waiting.put(newcomer)
            assert len(await waiting.take_all()) == places
        assert waiting.held.total() == PLACES

    run(case)


def test_those_who_want_all_they_can_get_end_up_with_the_same(run: Callable[[Case], None]) -> None:
    async def case(waiting: Waiting) -> None:
        for _ in range(60):
            await waiting.put("a")
        await waiting.take_all()
        for _ in range(60):
            await waiting.put("b")
        for _ in range(40):
            await waiting.take_all()
            busiest = waiting.held.most_common(1)[0][0]
            waiting.held[busiest] -= 1
        await waiting.take_all()
        assert abs(waiting.held["a"] - waiting.held["b"]) <= 1

    run(case)


def test_a_question_takes_a_place_for_each_choice(run: Callable[[Case], None]) -> None:
    async def case(waiting: Waiting) -> None:
        await waiting.put("a", 3)
        await waiting.put("a", 2)
        await waiting.put("a", 1)
        assert await waiting.take_all() == ["a1"]
        assert waiting.held == {"a": 3}
        waiting.held["a"] = 0
        assert await waiting.take_all() == ["a2", "a3"]

    run(case)


def test_more_choices_than_places_are_taken_when_the_organization_has_nothing_else(
    run: Callable[[Case], None],
) -> None:
    async def case(waiting: Waiting) -> None:
        await waiting.put("a", 128)
        await waiting.put("a")
        await waiting.put("b")
        assert await waiting.take_all() == ["a1", "b1"]
        assert waiting.held == {"a": PLACES // 2, "b": 1}

    run(case)


def test_a_worker_with_one_place_serves_everybody(run: Callable[[Case], None]) -> None:
    async def case(waiting: Waiting) -> None:
        for organization in "aab":
            await waiting.put(organization, 5)
        taken = []
        while (found := await queue.take(waiting.client, 1, {})) is not None:
            taken.append(Question.model_validate_json(found[0]).id)
            assert found[1] == 1
            assert await queue.take(waiting.client, 1, {"a": 1}) is None
        assert taken == ["a1", "b1", "a2"]

    run(case)


def test_what_nobody_waits_for_any_more_is_passed_over(run: Callable[[Case], None]) -> None:
    async def case(waiting: Waiting) -> None:
        dropped, late = await waiting.put("a"), await waiting.put("a")
        await waiting.put("a")
        assert await queue.drop(waiting.client, dropped)
        assert not await queue.drop(waiting.client, dropped)
        # As Redis does when its time has run out.
        await waiting.client.delete(f"serving:question:{late.id}")
        assert await waiting.take_all() == ["a3"]
        assert not await waiting.client.keys("serving:*")

    run(case)


def test_a_question_runs_out_by_the_clock_of_redis(run: Callable[[Case], None]) -> None:
    async def case(waiting: Waiting) -> None:
        question = await waiting.put("a")
        left = await waiting.client.pttl(f"serving:question:{question.id}")
        assert 0 < left <= queue.QUEUE_SECONDS * 1000

    run(case)


def test_what_may_wait_is_bounded_for_each_and_for_all(
    run: Callable[[Case], None], allow: Callable[[int], None]
) -> None:
    async def case(waiting: Waiting) -> None:
        allow(3)
        await waiting.put("a", 2)
        await waiting.put("a")
        with pytest.raises(DomainError) as own:
            await waiting.put("a")
        assert (own.value.status, own.value.code) == (429, "too_many_waiting")
        await waiting.put("b", 3)
        await waiting.put("c", 3)
        await waiting.put("d", 3)
        # However many are there, a newcomer's first question is taken.
        await waiting.put("e")
        await waiting.put("f", 2)
        with pytest.raises(DomainError) as all:
            await waiting.put("e")
        assert (all.value.status, all.value.code) == (503, "overloaded")
        assert all.value.headers == {"Retry-After": "5"}

    run(case)


def test_where_all_queues_are_full_newcomers_share_one(
    run: Callable[[Case], None], allow: Callable[[int], None]
) -> None:
    async def case(waiting: Waiting) -> None:
        allow(12)
        for each in "abcd":
            await waiting.put(each, 12)
        for each, most in (("e", 2), ("f", 2), ("g", 1)):
            for _ in range(most):
                await waiting.put(each)
            with pytest.raises(DomainError):
                await waiting.put(each)

    run(case)


def test_what_has_run_out_does_not_count_as_waiting(run: Callable[[Case], None], allow: Callable[[int], None]) -> None:
    async def case(waiting: Waiting) -> None:
        allow(1)
        first = await waiting.put("a")
        await waiting.client.delete(f"serving:question:{first.id}")
        await waiting.put("a")
        assert await waiting.take_all() == ["a2"]

    run(case)


def test_more_choices_than_may_wait_wait_alone(run: Callable[[Case], None], allow: Callable[[int], None]) -> None:
    async def case(waiting: Waiting) -> None:
        allow(3)
        await waiting.put("a", 20)
        with pytest.raises(DomainError):
            await waiting.put("a")

    run(case)
