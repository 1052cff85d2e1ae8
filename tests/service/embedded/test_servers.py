"""PostgreSQL and Redis for a folder: private, lasting, and up again after the worst."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from service.embedded import servers
from service.embedded.folder import Folder
from service.embedded.processes import Children, exited


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    for name in ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    folder = Folder(tmp_path)
    folder.prepare()
    return folder


@pytest.fixture
def children(folder: Folder) -> Iterator[Children]:
    children = Children(folder.records, folder.logs)
    yield children
    children.stop()


def kill_all(children: Children) -> None:
    """What a power cut looks like to those who come next: no clean-up, records and pid files left."""
    for child in children.running:
        child.process.kill()
        child.process.wait()
    children.running.clear()


def remember(running: servers.Servers, word: str) -> None:
    with psycopg.connect(running.database_owner_url) as connection:
        connection.execute("CREATE TABLE words (word text)")
        connection.execute("INSERT INTO words VALUES (%s)", [word])
    with redis.Redis.from_url(running.redis_url) as client:
        client.set("word", word)


def remembered(running: servers.Servers) -> tuple[str, str]:
    with psycopg.connect(running.database_owner_url) as connection:
        row = connection.execute("SELECT word FROM words").fetchone()
    with redis.Redis.from_url(running.redis_url) as client:
        word = client.get("word")
    assert row is not None
    assert isinstance(word, bytes)
    return str(row[0]), word.decode()


def test_they_keep_their_data_over_a_restart(folder: Folder, children: Children) -> None:
    remember(servers.start(folder, children), "kept")
    children.stop()
    assert remembered(servers.start(folder, children)) == ("kept", "kept")


def test_they_come_back_after_sigkill_even_if_the_pid_has_a_new_owner(folder: Folder, children: Children) -> None:
    remember(servers.start(folder, children), "survived")
    kill_all(children)
    pid_file = folder.cluster / "postmaster.pid"
    stranger = str(os.getpid())
    pid_file.write_text("\n".join([stranger, *pid_file.read_text().splitlines()[1:]]) + "\n")
    assert remembered(servers.start(folder, children)) == ("survived", "survived")


def test_a_server_that_outlived_its_stack_is_ended_first(folder: Folder, children: Children) -> None:
    remember(servers.start(folder, children), "kept")
    forgotten = [child.process for child in children.running]
    children.running.clear()
    running = servers.start(folder, children)
    assert all(exited(process) for process in forgotten)
    assert remembered(running) == ("kept", "kept")


def test_they_listen_on_no_port_and_their_sockets_are_private(folder: Folder, children: Children) -> None:
    servers.start(folder, children)
    for child in children.running:
        assert [one for one in child.process.net_connections("inet") if one.status == psutil.CONN_LISTEN] == []
    for name in ("postgres", "redis"):
        assert stat.S_IMODE((folder.root / "run" / name).stat().st_mode) == 0o700


def test_postgres_never_runs_as_root(folder: Folder, children: Children) -> None:
    servers.start(folder, children)
    [postgres] = [child.process for child in children.running if child.program.name == "postgres"]
    assert postgres.uids().real != 0
    assert postgres.uids().effective != 0


def test_they_start_in_a_folder_that_everybody_may_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        folder = Folder(Path(root))
        folder.prepare()
        children = Children(folder.records, folder.logs)
        try:
            running = servers.start(folder, children)
            with psycopg.connect(running.database_url) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
        finally:
            children.stop()


def test_the_login_of_the_service_is_no_superuser(folder: Folder, children: Children) -> None:
    running = servers.start(folder, children)
    with psycopg.connect(running.database_url) as connection:
        row = connection.execute("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user").fetchone()
    assert row == (False, False)


def test_servers_named_by_the_environment_are_used_instead(
    folder: Folder, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/db")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    assert servers.start(folder, children) == servers.Servers(
        "postgresql://elsewhere/db", "postgresql://elsewhere/db", "redis://elsewhere"
    )
    assert children.running == []


def test_personal_credentials_do_not_reach_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert not servers.inherited().keys() & {"OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"}


def test_a_redis_that_is_killed_keeps_what_it_acknowledged(folder: Folder, children: Children) -> None:
    running = servers.start(folder, children)
    with redis.Redis.from_url(running.redis_url) as client:
        client.rpush("training", *range(100))
    kill_all(children)
    with redis.Redis.from_url(servers.start(folder, children).redis_url) as client:
        assert client.llen("training") == 100
