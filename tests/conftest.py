"""Fixtures of the whole suite: one private PostgreSQL and one Redis per test process, a clean database per test.

Only tests that ask for them pay for them. The servers are started by the code of the embedded mode, so that the suite
runs on what users run on.
"""

import fcntl
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis

from service.core import broker, db, live
from service.core.ids import new_id
from service.embedded import servers as embedded
from service.embedded.folder import Folder
from service.embedded.processes import Children, end, leftovers
from service.settings import settings

# Read when torch is imported: threads that spin while they wait make a suite on a busy machine many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A suite that runs in the background is born deaf to Ctrl-C, and so would be the processes whose answer it tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)

OUTSIDE = ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL")

# The suite tries the same examples in every run; ``make fuzz`` tries others, many more of them.
hypothesis.register_profile("suite", derandomize=True, deadline=None, database=None)
hypothesis.register_profile(
    "fuzz", deadline=None, max_examples=2000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

TESTS = Path(__file__).parent
SERVERS = frozenset({"servers", "stack"})
"""Fixtures that start a PostgreSQL and a Redis."""
MARKED_BY_PATH = {
    "vllm": ("workers/rollouts/test_vllm*.py", "workers/serving/test_vllm*.py", "workers/training/test_vllm*.py"),
    "gpu": ("troll/kernels/test_on_gpu.py",),
    "e2e": ("e2e/test_*.py", "service/embedded/test_stack.py"),
    # They start servers of their own.
    "db": ("service/embedded/test_servers.py",),
}
"""What the tests of a file need beyond Python, where its path tells."""
PATIENCE = 900
"""How long a test of many processes may take, its fixtures too, on a machine that is busy, in seconds."""
ONE_STACK = ("test_demo.py", "e2e/")
"""Files of one process of a parallel run: the demo makes the base model of the stack that the others share."""
LONGEST = (
    *ONE_STACK,
    "service/embedded/test_stack.py",
    "workers/modeling/test_distributed.py",
    "contract/test_chat.py",
    "workers/training/test_process.py",
    "workers/training/test_vllm.py",
    "troll/kernels/test_interpreted.py",
    "workers/training/",
    "workers/rollouts/",
    "contract/",
)
"""What takes longest is begun first, or one process would be at it long after the others have ended."""


@dataclass(frozen=True)
class Key:
    """An API key and whose it is."""

    plain: str
    id: str
    organization_id: str
    project_id: str


def pytest_configure() -> None:
    # Fixtures are torn down after an interrupt, so being told to end should be one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they need: ``db`` by their fixtures, the rest by their file."""
    for item in items:
        if SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("db")
        file = item.path.relative_to(TESTS)
        for marker, patterns in MARKED_BY_PATH.items():
            if any(file.match(pattern) for pattern in patterns):
                item.add_marker(marker)
        if any(item.get_closest_marker(marker) for marker in ("e2e", "vllm")):
            item.add_marker(pytest.mark.timeout(PATIENCE))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    file = item.path.relative_to(TESTS).as_posix()
    return next((turn for turn, start in enumerate(LONGEST) if file.startswith(start)), len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile`` in the order of collection, with the files of ``ONE_STACK`` as if they were one."""
    from xdist.scheduler import LoadFileScheduling

    if config.getvalue("dist") != "loadfile":
        return None
    own = TESTS.relative_to(config.rootpath).as_posix()

    class ByFile(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return own if file.removeprefix(f"{own}/").startswith(ONE_STACK) else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


@contextmanager
def sharing_demo_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all processes of a run have the demo's base model, which takes most of a minute: one at a time makes it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "demo-model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield shared / "demo-model"


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the demo's base model."""
    with sharing_demo_model(tmp_path_factory) as folder:
        command = [sys.executable, "-m", "workers.demo", "build", str(folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    return folder


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Servers]:
    """Migrated servers of this run's own, and the environment that leads there. Never the developer's own."""
    _end_servers_of_killed_runs(tmp_path_factory.getbasetemp().parent)
    folder = Folder(tmp_path_factory.mktemp("servers"))
    folder.prepare()
    folder.lock()
    children = Children(folder.records, folder.logs)
    with pytest.MonkeyPatch.context() as patch:
        for name in [*OUTSIDE, *(name for name in os.environ if name.startswith("TROLL_"))]:
            patch.delenv(name, raising=False)
        # How long things take here says nothing: other tests run beside.
        patch.setattr("service.submission.service.ANSWER_SECONDS", 60.0)
        patch.setattr("service.core.threads.REQUEST_SECONDS", 60.0)
        try:
            started = embedded.start(folder, children, durable=False)
            _point_to(patch, started, folder)
            _migrate(started)
            yield started
        finally:
            _forget_connections()
            children.stop()
            folder.unlock()


def _end_servers_of_killed_runs(runs: Path) -> None:
    """A run that was killed could not stop its servers. Unlike those of other runs, its folder is not locked."""
    for records in runs.glob("*/servers*/processes.json"):
        if Folder(records.parent).holder() is None:
            end(leftovers(records))


def _point_to(patch: pytest.MonkeyPatch, started: embedded.Servers, folder: Folder) -> None:
    """Settings of every process at once; those that tests start in processes of their own take what they need."""
    for name, value in {
        "DATABASE_OWNER_URL": started.database_owner_url,
        "REDIS_URL": started.redis_url,
        "TROLL_KEY_PEPPER": secrets.token_urlsafe(48),
        "TROLL_WEBHOOK_KEY": secrets.token_hex(32),
        "TROLL_DATA_DIR": str(folder.root),
        "TROLL_MODELS_DIR": str(folder.models),
    }.items():
        patch.setenv(name, value)
    # A process of the service has one login; a process of tests plays all of them.
    patch.setattr(db, "login_url", started.database_url)
    _forget_connections()


def _migrate(started: embedded.Servers) -> None:
    from migrations.upgrade import upgrade
    from service.installation import service as installation

    upgrade()
    started.let_in()
    with db.transaction("troll_control") as session:
        installation.tie(session)


def _forget_connections() -> None:
    """Drop what the service caches per process, so that new settings take effect."""
    for cached in (db.engine, live.client, broker._sender, settings):
        cached.cache_clear()


@pytest.fixture
def database(servers: embedded.Servers) -> embedded.Servers:
    """Servers whose every table is empty, and whose Redis too."""
    empty(servers)
    return servers


def empty(servers: embedded.Servers) -> None:
    """For fixtures that live longer than a test: what earlier tests left is no part of them."""
    with psycopg.connect(servers.database_owner_url, autocommit=True) as connection:
        connection.execute("SET lock_timeout = '10s'")
        query = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'"
        tables = [name for (name,) in connection.execute(query) if name not in ("alembic_version", "installation")]
        # Tests leave few rows: deleting them, in any order, takes a third of the time that TRUNCATE does.
        connection.execute("SET session_replication_role = replica")
        connection.execute("; ".join(f"DELETE FROM {name}" for name in tables))
    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushall()
    live.silence.until = 0.0


@pytest.fixture
def own_redis(database: embedded.Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """A database of Redis for chats alone, in which the serving worker of other tests takes and answers nothing."""
    from service.inference import exchange

    url = f"{database.redis_url}{'&' if '?' in database.redis_url else '?'}db=9"
    monkeypatch.setattr(exchange, "required", lambda name: url)
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def data_dir(database: embedded.Servers) -> Path:
    """Where the service keeps files and jobs. Shared by the whole run; ids are random and never meet."""
    return settings().data_dir


@pytest.fixture
def models_dir(database: embedded.Servers) -> Path:
    """Where the service looks for base models. Shared by the whole run: give every model a name of its own."""
    return settings().models_dir


@pytest.fixture
def new_key(database: embedded.Servers) -> Callable[..., Key]:
    """``new_key(organization="acme", project=None, name="test", scopes=None, expires_in=None, admin=False)`` makes a
    key, and what it belongs to if need be: without ``project`` the default one, for ``admin`` none.
    """
    from service.accounts import repository
    from service.accounts.models import Project
    from service.accounts.service import KeyOwner, default_project, make_key, organization_for

    def make(
        organization: str = "acme",
        project: str | None = None,
        name: str = "test",
        scopes: Sequence[Any] | None = None,
        expires_in: timedelta | None = None,
        admin: bool = False,
    ) -> Key:
        with db.transaction("troll_operator") as session:
            owner = organization_for(session, organization)
            project_id = default_project(owner.id)
            if project is not None:
                found = repository.projects_named(session, owner.id, project)
                project_id = found[0].id if found else new_id("proj_")
                if not found:
                    repository.add(session, Project(id=project_id, organization_id=owner.id, name=project))
            for_whom = KeyOwner(owner.id, None if admin else project_id)
            plain, row = make_key(session, for_whom, name=name, scopes=scopes, expires_in=expires_in)
        return Key(plain, row.id, owner.id, row.project_id or db.EVERY_PROJECT)

    return make


@pytest.fixture
def api_key(new_key: Callable[..., Key]) -> Key:
    """A key of the organisation ``acme``."""
    return new_key()


@pytest.fixture
def client_for(database: embedded.Servers) -> Iterator[Callable[[Key | None], TestClient]]:
    """``client_for(key)`` is an HTTP client of the API that sends this key; ``client_for(None)`` sends none."""
    from service.app import create_app

    opened: list[TestClient] = []

    def make(key: Key | None) -> TestClient:
        headers = {"Authorization": f"Bearer {key.plain}"} if key else {}
        opened.append(TestClient(create_app(), headers=headers, raise_server_exceptions=False))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def client(client_for: Callable[[Key | None], TestClient], api_key: Key) -> TestClient:
    """An HTTP client of the API on behalf of ``acme``."""
    return client_for(api_key)
