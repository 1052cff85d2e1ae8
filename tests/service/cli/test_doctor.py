"""What the doctor says of real servers and folders, sound and broken."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import make_url
from typer.testing import CliRunner

from service.cli import app, backends, machine
from service.contracts.finding import Finding
from service.core.db import LOGINS
from service.embedded.servers import Servers
from tests import factories

doctor: Any = importlib.import_module("service.cli.doctor")
"""The module; the package has its command under the same name."""


def states(findings: Any) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


@pytest.mark.parametrize("role", LOGINS)
def test_a_sound_database_holds_for_each_login(database: Servers, role: Any) -> None:
    found = states(backends.postgres(database.database_url(role)))
    assert found == dict.fromkeys(("PostgreSQL", "login", "migrations", "clock"), "holds")


def test_a_login_that_may_do_everything_is_told(database: Servers) -> None:
    found = {each.what: each for each in backends.postgres(database.database_owner_url)}
    assert found["login"].state == "warning"
    assert "troll_api" in found["login"].remedy
    assert found["migrations"].found.endswith("the newest")


@pytest.mark.parametrize("statement", ["ALTER ROLE troll_api BYPASSRLS", "ALTER ROLE troll_api CREATEROLE"])
def test_rights_that_a_login_must_not_have_are_told(database: Servers, statement: str) -> None:
    owner = make_url(database.database_owner_url).set(drivername="postgresql")
    with psycopg.connect(owner.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(statement)
        try:
            found = states(backends.postgres(database.database_url("troll_api")))
        finally:
            connection.execute("ALTER ROLE troll_api NOBYPASSRLS NOCREATEROLE")
    assert found["login"] == "fails"


def test_a_database_that_was_not_migrated_is_told(database: Servers) -> None:
    empty = make_url(database.database_owner_url).set(database="template1").render_as_string(hide_password=False)
    assert states(backends.postgres(empty))["migrations"] == "fails"


def test_a_server_that_is_not_there_is_told_without_its_password() -> None:
    (postgres,) = backends.postgres("postgresql://troll_api:secret@127.0.0.1:9/troll")
    (server,) = backends.redis_server("redis://:secret@127.0.0.1:9/0")
    (api,) = backends.api("http://127.0.0.1:9/v1")
    assert {each.state for each in (postgres, server, api)} == {"fails"}
    assert "secret" not in f"{postgres} {server}"


@pytest.mark.parametrize(
    ("setting", "value", "what", "state"),
    [
        ("maxmemory-policy", "allkeys-lru", "Redis eviction", "fails"),
        ("save", "3600 1", "Redis persistence", "warning"),
    ],
)
def test_a_redis_that_forgets_or_writes_down_is_told(
    database: Servers, setting: str, value: str, what: str, state: str
) -> None:
    sound = states(backends.redis_server(database.redis_url))
    assert sound == dict.fromkeys(("Redis", "Redis eviction", "Redis persistence"), "holds")
    with redis.Redis.from_url(database.redis_url) as client:
        before = client.config_get(setting)[setting]
        client.config_set(setting, value)
        try:
            assert states(backends.redis_server(database.redis_url)) == sound | {what: state}
        finally:
            client.config_set(setting, before)


def test_models_that_are_broken_or_missing_are_told(tmp_path: Path) -> None:
    factories.offer_model(tmp_path, "owner/sound")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("no JSON")
    assert states(machine.models_folder(tmp_path)) == {"model owner/sound": "holds", "model broken": "fails"}
    assert states(machine.models_folder(tmp_path / "none")) == {"models": "fails"}
    (tmp_path / "empty").mkdir()
    assert states(machine.models_folder(tmp_path / "empty")) == {"models": "warning"}


@pytest.mark.parametrize(("free", "state"), [(10**8, "fails"), (10**10, "warning"), (10**11, "holds")])
def test_a_disk_that_fills_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (found,) = machine.data_folder(tmp_path)
    assert (found.state, bool(found.remedy)) == (state, state != "holds")


@pytest.mark.parametrize(("state", "code"), [("holds", 0), ("warning", 0), ("fails", 1)])
def test_the_exit_code_says_whether_everything_holds(monkeypatch: pytest.MonkeyPatch, state: Any, code: int) -> None:
    finding = Finding(what="moon", state=state, found="[bold]full[/]", remedy="wait")
    monkeypatch.setattr(doctor, "_findings", lambda _: iter([finding]))
    plain, as_json = (CliRunner().invoke(app, ["doctor", *more]) for more in ([], ["--json"]))
    assert (plain.exit_code, as_json.exit_code) == (code, code)
    assert plain.stdout.split("\t")[1:] == ["moon", "[bold]full[/]", "wait\n"]
    assert json.loads(as_json.stdout) == [finding.model_dump()]


def test_workers_libraries_that_are_missing_are_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").touch()
    said = '{"what": "a", "state": "holds", "found": "b"}'
    (tmp_path / "workers" / "doctor.py").write_text(f"print({said!r}, flush=True)\nimport no_such_library\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert states(doctor._of_workers()) == {"a": "holds", "workers": "warning"}
