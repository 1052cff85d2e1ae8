"""Threads that tenants share: whose turn it is, what is refused, and what becomes of work that takes too long."""

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from service.core import db
from service.core.errors import DomainError
from service.core.threads import FairThreads, OverloadedError, bulk_threads, request_threads

PATIENCE = 20.0


class Gate:
    """Work that begins, tells its name, and ends when it is let through."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._open = threading.Semaphore(0)
        self._began = threading.Condition()

    def work(self, name: str) -> str:
        with self._began:
            self.begun.append(name)
            self._began.notify_all()
        assert self._open.acquire(timeout=PATIENCE)
        return name

    def let_through(self, number: int = 1) -> None:
        self._open.release(number)

    def wait_for(self, number: int) -> list[str]:
        with self._began:
            assert self._began.wait_for(lambda: len(self.begun) >= number, PATIENCE), self.begun
        return self.begun


def shared(**changed: Any) -> FairThreads:
    return FairThreads("test", **{"threads": 1, "each": 1, "waiting": 100, "waiting_each": 50, **changed})


def test_a_newcomer_is_next_however_much_another_has_waiting() -> None:
    threads, gate = shared(), Gate()
    for number in range(40):
        threads.submit("a", gate.work, f"a{number}")
    threads.submit("b", gate.work, "b0")
    gate.let_through(41)
    assert gate.wait_for(41)[:4] == ["a0", "a1", "b0", "a2"]


def test_tenants_take_turns() -> None:
    threads, gate = shared(), Gate()
    for tenant in "abc":
        for number in range(3):
            threads.submit(tenant, gate.work, f"{tenant}{number}")
    gate.let_through(9)
    assert gate.wait_for(9) == ["a0", "a1", "b0", "c0", "a2", "b1", "c1", "b2", "c2"]


def test_no_tenant_has_every_thread() -> None:
    threads, gate = shared(threads=4, each=3), Gate()
    for number in range(10):
        threads.submit("a", gate.work, f"a{number}")
    threads.submit("b", gate.work, "b0")
    assert set(gate.wait_for(4)) == {"a0", "a1", "a2", "b0"}
    gate.let_through(11)
    gate.wait_for(11)


def test_too_much_of_one_tenant_is_refused_and_another_is_not() -> None:
    threads, gate = shared(waiting_each=2), Gate()
    for number in range(3):
        threads.submit("a", gate.work, f"a{number}")
    with pytest.raises(OverloadedError) as refusal:
        threads.submit("a", gate.work, "a3")
    assert (refusal.value.status, refusal.value.headers["Retry-After"]) == (503, "1")
    last = threads.submit("b", gate.work, "b0")
    gate.let_through(4)
    assert last.result(PATIENCE) == "b0"


def test_too_much_in_all_is_refused() -> None:
    threads, gate = shared(waiting=2), Gate()
    for tenant in "abc":
        threads.submit(tenant, gate.work, tenant)
    with pytest.raises(OverloadedError):
        threads.submit("d", gate.work, "d")
    gate.let_through(3)


def test_what_belongs_to_a_request_that_was_begun_is_not_refused() -> None:
    threads, gate = shared(waiting_each=1), Gate()
    for number in range(2):
        threads.submit("a", gate.work, f"a{number}")
    assert threads.is_full("a")
    last = threads.submit("a", gate.work, "a2", begun=True)
    gate.let_through(3)
    assert last.result(PATIENCE) == "a2"


def test_the_last_threads_are_for_those_who_have_none() -> None:
    threads, gate = shared(threads=4, each=2, kept=2), Gate()
    for tenant in "abcd":
        for number in range(3):
            threads.submit(tenant, gate.work, f"{tenant}{number}")
    assert sorted(gate.wait_for(4)) == ["a0", "a1", "b0", "c0"]
    gate.let_through(12)
    assert len(gate.wait_for(12)) == 12


def test_what_was_not_begun_in_time_never_is() -> None:
    threads, gate = shared(), Gate()
    threads.submit("a", gate.work, "a0")
    with pytest.raises(OverloadedError):
        asyncio.run(threads.run("b", gate.work, "b0", seconds=0.05))
    gate.let_through(2)
    assert threads.submit("a", gate.work, "a1").result(PATIENCE) == "a1"
    assert gate.begun == ["a0", "a1"]


def test_what_takes_too_long_is_told_and_keeps_its_thread_until_it_ends() -> None:
    threads, gate = shared(), Gate()
    with pytest.raises(DomainError) as error:
        asyncio.run(threads.run("a", gate.work, "a0", seconds=0.2))
    assert (error.value.status, error.value.code) == (503, "database_unavailable")
    after: Future[str] = threads.submit("b", gate.work, "b0")
    assert gate.begun == ["a0"]
    gate.let_through(2)
    assert after.result(PATIENCE) == "b0"


def test_errors_come_back_and_free_the_thread() -> None:
    threads = shared()

    def fail() -> None:
        raise TimeoutError("its own")

    for _ in range(3):
        with pytest.raises(TimeoutError, match="its own"):
            asyncio.run(threads.run("a", fail))


def test_there_are_more_connections_than_threads_that_use_them() -> None:
    assert request_threads.threads < db.CONNECTIONS
    assert request_threads.each < request_threads.threads
    assert bulk_threads.each < bulk_threads.threads
