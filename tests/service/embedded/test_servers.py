"""PostgreSQL and Redis for a folder: private, lasting, and up again after the worst."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from celery import Celery
from sqlalchemy import create_engine, text

from service.core.broker import broker_url
from service.core.db import LOGINS, driver_url
from service.embedded import postgres, servers
from service.embedded import redis as embedded_redis
from service.embedded.folder import Folder
from service.embedded.processes import Children, StartError, exited, write_json
from tests.service.embedded.test_folder import UNUSUAL


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


def remembered(running: servers.Servers) -> str:
    """What PostgreSQL has kept; Redis is there, and has kept nothing."""
    with psycopg.connect(running.database_owner_url) as connection:
        row = connection.execute("SELECT word FROM words").fetchone()
    with redis.Redis.from_url(running.redis_url) as client:
        assert client.get("word") is None
    assert row is not None
    return str(row[0])


def test_postgres_keeps_its_data_over_a_restart(folder: Folder, children: Children) -> None:
    remember(servers.start(folder, children), "kept")
    children.stop()
    assert remembered(servers.start(folder, children)) == "kept"


def test_they_come_back_after_sigkill_even_if_the_pid_has_a_new_owner(folder: Folder, children: Children) -> None:
    remember(servers.start(folder, children), "survived")
    kill_all(children)
    pid_file = folder.cluster / "postmaster.pid"
    stranger = str(os.getpid())
    pid_file.write_text("\n".join([stranger, *pid_file.read_text().splitlines()[1:]]) + "\n")
    assert remembered(servers.start(folder, children)) == "survived"


def test_a_server_that_outlived_its_stack_is_ended_first(folder: Folder, children: Children) -> None:
    remember(servers.start(folder, children), "kept")
    forgotten = [child.process for child in children.running]
    children.running.clear()
    running = servers.start(folder, children)
    assert all(exited(process) for process in forgotten)
    assert remembered(running) == "kept"


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
            with psycopg.connect(running.database_owner_url) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
        finally:
            children.stop()


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="others run PostgreSQL as themselves")
PR_CAPBSET_DROP = 24


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        yield Path(root)


@pytest.fixture
def wheel(tmp_path: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PostgreSQL's wheel, installed below a folder that only its owner can enter."""
    package = postgres.installed()
    site = tmp_path / "closed" / "site"
    for name in (f"{package.name}/{postgres.INSTALLATION}", f"{package.name}.libs"):
        shutil.copytree(package.parent / name, site / name, symlinks=True)
    # As an installer leaves it, whatever this process may do with files of its own.
    for path in [site, *(path for path in site.rglob("*") if not path.is_symlink())]:
        path.chmod(path.stat().st_mode | 0o055)
    (tmp_path / "closed").chmod(0o700)
    monkeypatch.setattr(postgres, "installed", lambda: site / package.name)
    monkeypatch.setattr(postgres, "COPIES", open_folder / "copies")
    return site


@as_root
def test_postgres_starts_from_a_wheel_in_a_closed_folder(folder: Folder, children: Children, wheel: Path) -> None:
    running = servers.start(folder, children)
    with psycopg.connect(running.database_owner_url) as connection:
        # Full-text search and PL/pgSQL read files and libraries beside the program.
        query = "SELECT to_tsvector('english', 'trusted regions')::text"
        assert connection.execute(query).fetchone() == ("'region':2 'trust':1",)
        connection.execute("DO $$ BEGIN PERFORM 1; END $$")
    [server] = [child.process for child in children.running if child.program.name == "postgres"]
    assert server.exe().startswith(str(postgres.COPIES))


@as_root
def test_postgres_starts_from_a_wheel_that_was_installed_for_its_owner_alone(
    folder: Folder, children: Children, wheel: Path
) -> None:
    """As pip does under ``umask 077``."""
    for path in wheel.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    remember(servers.start(folder, children), "kept")
    children.stop()
    assert remembered(servers.start(folder, children)) == "kept"


@as_root
def test_the_copy_belongs_to_root_and_is_made_whole_or_not_at_all(
    folder: Folder, children: Children, wheel: Path
) -> None:
    left = postgres.COPIES / (metadata.version(postgres.DISTRIBUTION) + ".partial") / "half"
    left.parent.mkdir(parents=True)
    left.write_text("of a start that was killed")
    servers.start(folder, children)
    (copy,) = postgres.COPIES.iterdir()
    assert copy.name == metadata.version(postgres.DISTRIBUTION)
    assert not (copy / "half").exists()
    modes = [path.lstat() for path in [copy, *copy.rglob("*")] if not path.is_symlink()]
    assert [each for each in modes if each.st_uid != 0 or each.st_mode & 0o022] == []


@as_root
def test_a_wheel_that_every_user_can_run_is_not_copied(
    folder: Folder, children: Children, wheel: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(wheel, open_folder / "site")
    package = open_folder / "site" / postgres.installed().name
    monkeypatch.setattr(postgres, "installed", lambda: package)
    servers.start(folder, children)
    assert not postgres.COPIES.exists()


@as_root
def test_where_no_copy_can_be_made_it_says_what_to_do(
    folder: Folder, children: Children, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.root / "file").touch()
    monkeypatch.setattr(postgres, "COPIES", folder.root / "file" / "copies")
    with pytest.raises(StartError, match=r"cannot be copied to .*copies.*Install where other users can read"):
        servers.start(folder, children)


def starts_without(capability: int, folder: Folder) -> str:
    """What comes of starting the servers where root has not got this capability, as in some containers."""
    code = """
import sys
from pathlib import Path
from service.embedded import servers
from service.embedded.folder import Folder
from service.embedded.processes import Children, StartError
folder = Folder(Path(sys.argv[1]))
children = Children(folder.records, folder.logs)
try:
    servers.start(folder, children)
    print("started")
except StartError as error:
    print(error)
finally:
    children.stop()
"""
    libc = ctypes.CDLL(None)
    done = subprocess.run(
        [sys.executable, "-c", code, folder.root],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        preexec_fn=lambda: libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0),
        check=False,
    )
    return done.stdout + done.stderr


@as_root
def test_it_starts_where_root_has_only_the_stronger_right_to_pass_closed_folders(folder: Folder) -> None:
    assert starts_without(postgres.CAP_DAC_READ_SEARCH, folder) == "started\n"


@as_root
@pytest.mark.parametrize("name", postgres.RIGHTS)
def test_where_root_may_not_run_it_as_another_user_it_says_so(folder: Folder, name: str) -> None:
    said = starts_without(postgres.RIGHTS[name], folder)
    assert f"root lacks here what it needs to run it as another user ({name}). Run as an ordinary user" in said


def test_a_user_without_a_name_is_told_so(folder: Folder, children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers have that are run under a number."""
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(StartError, match=r"54321 has none in /etc/passwd\. Run as one that has"):
        servers.start(folder, children)


EVERY_LOGIN = ["postgres", "troll", *LOGINS]


def connects(folder: Folder, login: str, password: str | None = None) -> bool:
    try:
        sockets = str(folder.root / "run" / "postgres")
        psycopg.connect(host=sockets, user=login, dbname="postgres", password=password).close()
    except psycopg.OperationalError:
        return False
    return True


def test_they_start_below_a_folder_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    folder = Folder(tmp_path / UNUSUAL)
    folder.prepare()
    folder.lock()
    children = Children(folder.records, folder.logs)
    try:
        remember(servers.start(folder, children), "kept")
        children.stop()
        running = servers.start(folder, children)
        assert remembered(running) == "kept"
        with Celery(broker=broker_url(running.redis_url), set_as_current=False).connection_for_write() as broker:
            broker.ensure_connection(max_retries=1)
        engine = create_engine(driver_url(running.database_owner_url))
        with engine.connect() as connection:
            assert connection.execute(text("SELECT word FROM words")).scalar() == "kept"
        engine.dispose()
    finally:
        children.stop()
        folder.unlock()


def test_nobody_is_taken_at_their_word(folder: Folder, children: Children) -> None:
    running = servers.start(folder, children)
    with psycopg.connect(running.database_owner_url) as connection:
        for login in EVERY_LOGIN[1:]:
            connection.execute(f"CREATE ROLE {login} LOGIN SUPERUSER")
    assert [login for login in EVERY_LOGIN if connects(folder, login)] == []
    assert connects(folder, "postgres", folder.password("postgres"))


def test_logins_reach_one_database_with_their_own_password(folder: Folder, children: Children) -> None:
    running = servers.start(folder, children)
    with psycopg.connect(running.database_owner_url) as connection:
        for role in LOGINS:
            connection.execute(f"CREATE ROLE {role}")
    running.let_in()
    for role in LOGINS:
        with psycopg.connect(running.database_url(role)) as connection:
            query = "SELECT current_user::text, rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"
            assert connection.execute(query).fetchone() == (role, False)
        assert not connects(folder, role, folder.password(role)), "the database 'postgres' is the owner's alone"
        assert not connects(folder, "postgres", folder.password(role))


def test_a_cluster_without_passwords_gets_them(
    folder: Folder, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As versions with one login left it: everybody on the socket was taken at their word."""
    monkeypatch.delenv("TROLL_KEY_PEPPER", raising=False)
    running = servers.start(folder, children)
    remember(running, "kept")
    with psycopg.connect(running.database_owner_url) as connection:
        connection.execute("CREATE ROLE troll LOGIN")
        connection.execute("ALTER ROLE postgres PASSWORD NULL")
    children.stop()
    (folder.cluster / "pg_hba.conf").write_text("local all all trust\n")
    write_json(folder.root / "secrets.json", {"key_pepper": "p" * 40})
    assert remembered(servers.start(folder, children)) == "kept"
    assert [login for login in EVERY_LOGIN if connects(folder, login)] == []
    assert folder.pepper() == "p" * 40


def test_it_comes_up_when_its_secrets_were_lost(folder: Folder, children: Children) -> None:
    remember(servers.start(folder, children), "kept")
    children.stop()
    (folder.root / "secrets.json").unlink()
    assert remembered(servers.start(folder, children)) == "kept"


def test_passwords_are_in_no_log(folder: Folder, children: Children) -> None:
    running = servers.start(folder, children)
    with pytest.raises(psycopg.errors.UndefinedObject):
        running.let_in()  # The roles are missing, so the statement is logged as one that failed.
    written = (folder.logs / "postgres.log").read_text()
    assert "ALTER ROLE" in written
    assert [login for login in ("postgres", *LOGINS) if folder.password(login) in written] == []


def test_servers_named_by_the_environment_are_used_instead(
    folder: Folder, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_OWNER_URL", "postgresql://owner:secret@elsewhere/db?sslmode=require")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    started = servers.start(folder, children)
    assert (started.database_owner_url, started.redis_url) == (
        "postgresql://owner:secret@elsewhere/db?sslmode=require",
        "redis://elsewhere",
    )
    password = folder.password("troll_worker")
    assert started.database_url("troll_worker") == (
        f"postgresql://troll_worker:{password}@elsewhere/db?sslmode=require"
    )
    assert children.running == []


def test_personal_credentials_do_not_reach_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert not servers.inherited().keys() & {"OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"}


def test_credentials_of_ours_are_only_for_those_who_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in servers.SECRETS:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("TROLL_GRADERS", "{}")
    assert "secret" not in servers.inherited().values()
    assert servers.inherited()["TROLL_GRADERS"] == "{}"


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_without_the_wheel_the_machines_redis_is_used(
    folder: Folder, children: Children, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / name).symlink_to(embedded_redis._binary())
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    left = embedded_redis.start(folder.redis, folder.root / "redis.sock", children, servers.inherited()).process
    assert left.name() == name
    children.running.clear()
    embedded_redis.start(folder.redis, folder.root / "redis.sock", children, servers.inherited())
    assert exited(left)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StartError, match="install your system's package"):
        embedded_redis.start(folder.redis, folder.root / "redis.sock", children, servers.inherited())


SECRET = "a prompt that must not be found"


def found_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_redis_writes_nothing_down(folder: Folder, children: Children) -> None:
    with redis.Redis.from_url(servers.start(folder, children).redis_url) as client:
        client.rpush("serving:queue", SECRET)
        client.xadd("job:1", {"frame": SECRET})
    kill_all(children)
    assert found_in(folder.redis) == []
    servers.start(folder, children)
    children.stop()
    assert found_in(folder.redis) == []


def test_what_redis_wrote_down_in_earlier_versions_is_removed(folder: Folder, children: Children) -> None:
    for name in ("appendonlydir/appendonly.aof.1.incr.aof", "appendonly.aof", "dump.rdb", "temp-12.rdb"):
        (folder.redis / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.redis / name).write_text(SECRET)
    with redis.Redis.from_url(servers.start(folder, children).redis_url) as client:
        assert client.keys() == []
    assert list(folder.redis.iterdir()) == []
