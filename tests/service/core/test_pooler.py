"""Behind a pooler that gives out connections for a transaction: PgBouncer where it is installed, and its rules."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import make_url, text

from service.core import db
from service.embedded.servers import Servers
from service.settings import settings
from tests.conftest import Key


@pytest.fixture
def pooling(database: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The settings of an operator with a pooler."""
    monkeypatch.setenv("TROLL_TRANSACTION_POOLING", "true")
    settings.cache_clear()
    db.engine.cache_clear()
    yield
    db.engine("troll_api").dispose()
    monkeypatch.undo()
    settings.cache_clear()
    db.engine.cache_clear()


@pytest.mark.usefixtures("pooling")
def test_nothing_is_left_behind_in_a_session() -> None:
    db.engine("troll_api").dispose()
    for number in range(20):
        with db.transaction("troll_api") as session:
            assert session.scalar(text("SELECT :number"), {"number": number}) == number
    with db.transaction("troll_api") as session:
        assert session.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0
        assert (
            session.scalar(
                text(
                    "SELECT count(*) FROM pg_settings WHERE source IN ('client', 'session') AND name IN "
                    "('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout')"
                )
            )
            == 0
        )


@pytest.mark.usefixtures("pooling")
def test_timeouts_that_the_login_lacks_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), db.transaction("troll_api") as session:
        db.warn_if_unbounded(session)
        session.execute(text("SET LOCAL lock_timeout = '10s'"))
        db.warn_if_unbounded(session)
    told = "ALTER ROLE troll_api SET {}"
    assert [told.format(name) in caplog.text for name in db.TIMEOUTS] == [True] * 3
    assert caplog.text.count(told.format("lock_timeout")) == 1


def test_without_a_pooler_sessions_have_them(database: Servers, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), db.transaction("troll_api") as session:
        db.warn_if_unbounded(session)
    assert not caplog.text


@pytest.fixture
def pgbouncer(database: Servers, tmp_path: Path, pooling: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two connections of PostgreSQL for everybody, through PgBouncer."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("PgBouncer is not installed")
    to = make_url(database.database_url("troll_api"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n{to.database} = host={to.query['host']} dbname={to.database}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
        f"auth_file = {tmp_path}/users\npool_mode = transaction\ndefault_pool_size = 2\n"
    )
    (tmp_path / "users").write_text(f'"troll_api" "{to.password}"\n')
    # It does not run as root, and has to be let in where PostgreSQL's socket is.
    let_in = ["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *let_in]
    running = subprocess.Popen([*(as_nobody if os.geteuid() == 0 else ()), program, config])
    url = f"postgresql://troll_api:{to.password}@127.0.0.1:{port}/{to.database}"
    monkeypatch.setattr(db, "login_url", lambda role: url if role == "troll_api" else database.database_url(role))
    db.engine.cache_clear()
    deadline = time.monotonic() + 30
    while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield
    running.send_signal(signal.SIGINT)
    running.wait(30)


@pytest.mark.usefixtures("pgbouncer")
def test_requests_share_the_connections_of_pgbouncer(client: TestClient, api_key: Key) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: client.get("/v1/fine_tuning/jobs"), range(120)))
    assert {answer.status_code for answer in answers} == {200}
    with db.transaction("troll_operator") as session:
        others = text("SELECT count(*) FROM pg_stat_activity WHERE usename = 'troll_api'")
        assert int(session.scalar(others) or 0) <= 2
