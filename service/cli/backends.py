"""What ``troll doctor`` sees of PostgreSQL, Redis and the API."""

import time
from collections.abc import Iterator
from typing import Any

import httpx2
import psycopg
import redis
from alembic.script import ScriptDirectory
from psycopg import sql
from redis.exceptions import RedisError
from sqlalchemy import make_url

from migrations.tables import Base
from migrations.upgrade import config
from service.contracts.finding import Finding
from service.core.clock import TOLERATED_SECONDS
from service.core.db import LOGINS

OLDEST_POSTGRES, OLDEST_REDIS = 14, (6, 2)
SECONDS = 5.0
REVISIONS = "alembic_version"


def postgres(url: str) -> Iterator[Finding]:
    """Whether it answers, is migrated, and lets this login do no more than it has to."""
    address = make_url(url).set(drivername="postgresql")
    try:
        connection = psycopg.connect(address.render_as_string(hide_password=False), connect_timeout=int(SECONDS))
    except psycopg.Error as error:
        told = str(error).strip().splitlines()[-1]
        remedy = f"Start it, and look at DATABASE_URL ({address.render_as_string()})."
        yield Finding(what="PostgreSQL", state="fails", found=told, remedy=remedy)
        return
    with connection:
        major = connection.info.server_version // 10_000
        found = f"{connection.info.parameter_status('server_version')} at {address.host or 'a socket'}"
        old = major < OLDEST_POSTGRES
        remedy = f"Use version {OLDEST_POSTGRES} or newer." if old else ""
        yield Finding(what="PostgreSQL", state="fails" if old else "holds", found=found, remedy=remedy)
        yield from _login(connection)
        yield from _migrations(connection)
        yield from _clock(connection)


def _login(connection: psycopg.Connection[Any]) -> Iterator[Finding]:
    name = connection.info.user
    query = """SELECT rolsuper, rolbypassrls, rolcreaterole, EXISTS (
        SELECT FROM pg_class WHERE relowner = pg_roles.oid AND relkind = 'r'
    ) FROM pg_roles WHERE rolname = current_user"""
    row = connection.execute(query).fetchone()
    assert row is not None
    may = [
        what
        for what, it_may in zip(
            ("be superuser", "pass over row-level security", "make logins", "change tables, which it owns"),
            row,
            strict=True,
        )
        if it_may
    ]
    if name not in LOGINS:
        remedy = f"Give each process a login of its own ({', '.join(LOGINS)}): see docs/operations.md, 'Databases'."
        yield Finding(what="login", state="warning", found=f"{name} is no process's", remedy=remedy)
    elif may:
        remedy = f"Take it from it, as the database's owner: ALTER ROLE {name} NOSUPERUSER NOBYPASSRLS NOCREATEROLE."
        yield Finding(what="login", state="fails", found=f"{name} may {', '.join(may)}", remedy=remedy)
    else:
        yield Finding(what="login", state="holds", found=f"{name} may do what its process needs, and no more")


def _migrations(connection: psycopg.Connection[Any]) -> Iterator[Finding]:
    wanted = ScriptDirectory.from_config(config()).get_current_head()
    remedy = "Run 'python -m migrations' with DATABASE_OWNER_URL, or start 'troll up', which does."
    try:
        row = connection.execute(sql.SQL("SELECT version_num FROM {}").format(sql.Identifier(REVISIONS))).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        connection.rollback()
        yield from _tables(connection, remedy)
        return
    except psycopg.errors.UndefinedTable:
        connection.rollback()
        row = None
    found = row[0] if row else "none"
    behind = found != wanted
    told = f"at {found}, and this version is at {wanted}" if behind else f"at {wanted}, the newest"
    yield Finding(what="migrations", state="fails" if behind else "holds", found=told, remedy=remedy if behind else "")


def _tables(connection: psycopg.Connection[Any], remedy: str) -> Iterator[Finding]:
    """For a login that may not see which revision the database has: whether all columns of this version are there."""
    query = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
    missing = []
    for table in Base.metadata.sorted_tables:
        there = {row[0] for row in connection.execute(query, [table.name])}
        missing += [f"{table.name}.{column.name}" for column in table.columns if column.name not in there]
    if missing:
        found = f"without {', '.join(missing[:3])}" + (" and more" if len(missing) > 3 else "")
        yield Finding(what="migrations", state="fails", found=found, remedy=remedy)
    else:
        yield Finding(what="migrations", state="holds", found="all tables and columns of this version are there")


def _clock(connection: psycopg.Connection[Any]) -> Iterator[Finding]:
    before = time.time()
    row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert row is not None
    ahead = (before + time.time()) / 2 - row[0]
    off = abs(ahead) > TOLERATED_SECONDS
    remedy = (
        "Set it right (NTP): times in logs, and under which scoring services are asked, depend on it." if off else ""
    )
    found = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} PostgreSQL's"
    yield Finding(what="clock", state="warning" if off else "holds", found=found, remedy=remedy)


def redis_server(url: str) -> Iterator[Finding]:
    """Whether it answers, throws nothing away and writes nothing down."""
    with redis.Redis.from_url(url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS) as client:
        try:
            told: Any = client.info()
        except RedisError as error:
            remedy = "Start it, and look at REDIS_URL."
            yield Finding(what="Redis", state="fails", found=str(error), remedy=remedy)
            return
        version = str(told["redis_version"])
        old = tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS
        remedy = "Use version 6.2 or newer." if old else ""
        yield Finding(what="Redis", state="fails" if old else "holds", found=version, remedy=remedy)
        policy = str(told["maxmemory_policy"])
        evicts = policy != "noeviction"
        remedy = "Set maxmemory-policy to noeviction: what it throws away is a doorbell or an answer." if evicts else ""
        yield Finding(what="Redis eviction", state="fails" if evicts else "holds", found=policy, remedy=remedy)
        yield _written(client, told)


def _written(client: redis.Redis, told: Any) -> Finding:
    """Whether it keeps on disk what it may lose at any time, and which users wrote."""
    what = "Redis persistence"
    try:
        saves = client.config_get("save").get("save")
    except RedisError:
        saves = None
    if told["aof_enabled"] or saves:
        found = "append-only file" if told["aof_enabled"] else f"snapshots ({saves})"
        remedy = "Set appendonly no and save '': nothing there has to last, and prompts and answers would be on disk."
        return Finding(what=what, state="warning", found=found, remedy=remedy)
    if saves is None:
        remedy = "It does not tell this user: look that save is ''."
        return Finding(what=what, state="warning", found="no append-only file; snapshots not known", remedy=remedy)
    return Finding(what=what, state="holds", found="nothing is written down")


def api(base_url: str) -> Iterator[Finding]:
    """Whether it answers, with what it depends on."""
    address = base_url.rstrip("/").removesuffix("/v1")
    try:
        answer = httpx2.get(f"{address}/readyz", timeout=2 * SECONDS)
    except httpx2.HTTPError as error:
        remedy = "Start it with 'troll up', or look at OPENAI_BASE_URL."
        yield Finding(what="API", state="fails", found=f"{address}: {error}", remedy=remedy)
        return
    if answer.status_code == 200:
        yield Finding(what="API", state="holds", found=f"{address} is ready")
    else:
        remedy = "Its log says more; the lines above say what is missing."
        yield Finding(what="API", state="fails", found=f"{address}: {answer.text[:200]}", remedy=remedy)
