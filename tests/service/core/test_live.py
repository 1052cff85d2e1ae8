"""Clients of event loops, and what is said of a Redis that writes to disk what passes through it."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Iterator

import pytest
import redis
import redis.asyncio

from service.core import live


@pytest.fixture
def server(database: object) -> Iterator[redis.Redis]:
    """The suite's Redis, which is as it was when the test is over."""
    yield live.client()
    live.client().config_set("save", "")
    live.client().config_set("appendonly", "no")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.WARNING, "service.core.live"):
        live.warn_if_written_down()
    return [record.getMessage() for record in caplog.records]


def test_a_redis_that_keeps_nothing_is_not_spoken_of(server: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(caplog) == []


@pytest.mark.parametrize(("setting", "value"), [("save", "3600 1"), ("appendonly", "yes")])
def test_one_that_writes_to_disk_is(
    server: redis.Redis, caplog: pytest.LogCaptureFixture, setting: str, value: str
) -> None:
    server.config_set(setting, value)
    (said,) = warnings(caplog)
    assert f"{setting} '{value}'" in said


def test_one_that_does_not_tell_is_not_accused(
    server: redis.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.config_set("save", "3600 1")
    server.acl_setuser("mute", enabled=True, nopass=True, categories=["+@all"], commands=["-config"], keys=["*"])
    try:
        path = server.connection_pool.connection_kwargs["path"]
        with redis.Redis(unix_socket_path=path, username="mute", password="x") as mute:
            monkeypatch.setattr(live, "client", lambda: mute)
            assert warnings(caplog) == []
    finally:
        server.acl_deluser("mute")


def test_the_client_of_a_loop_that_ended_is_let_go() -> None:
    made: list[weakref.ref[redis.asyncio.Redis]] = []

    def make() -> redis.asyncio.Redis:
        client = redis.asyncio.Redis()
        made.append(weakref.ref(client))
        return client

    clients = live.ForEachLoop(make)

    async def ask() -> bool:
        return clients.get() is clients.get()

    assert all(asyncio.run(ask()) for _ in range(3))
    gc.collect()
    assert [each() is not None for each in made] == [False, False, True]
