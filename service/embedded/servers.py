"""PostgreSQL and Redis for a data folder: those that the environment names, else private ones."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from service.core.db import LOGINS, Login
from service.embedded import postgres, redis
from service.embedded.folder import Folder
from service.embedded.processes import Children

PASSED_ON = ("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "FORWARDED_ALLOW_IPS")
PASSED_ON_PREFIXES = ("LC_", "TROLL_", "OMP_", "MKL_", "CUDA_", "NVIDIA_", "NCCL_")
TRACKING = ("TROLL_WANDB_API_KEY", "TROLL_MLFLOW_TOKEN", "TROLL_MLFLOW_PASSWORD")
"""Secrets of trackers, which are the training worker's."""
SECRETS = (
    *("TROLL_DATABASE_URL", "TROLL_REDIS_URL", "TROLL_KEY_PEPPER", "TROLL_WEBHOOK_KEY", *TRACKING),
    *("TROLL_OIDC_CLIENT_SECRET", "TROLL_SECRETS_DIR"),
)
"""What of ours only those processes get that use it."""


@dataclass(frozen=True)
class Servers:
    """Where the servers are. ``database_owner_url`` is the login that migrates; ``passwords`` are the others'."""

    database_owner_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    passwords: Mapping[Login, str] = field(repr=False)

    def database_url(self, login: Login) -> str:
        """The URL under which ``login`` logs in, once it was let in."""
        url = make_url(self.database_owner_url).set(username=login, password=self.passwords[login])
        return url.render_as_string(hide_password=False)

    def let_in(self) -> None:
        """Give the logins, which the migrations make, their passwords. Raises ``psycopg.Error``."""
        url = make_url(self.database_owner_url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url) as connection:
            for login, password in self.passwords.items():
                # The server is sent a hash, so the password is in none of its logs.
                hashed = connection.pgconn.encrypt_password(password.encode(), login.encode(), b"scram-sha-256")
                statement = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}")
                connection.execute(statement.format(sql.Identifier(login), sql.Literal(hashed.decode())))


def start(folder: Folder, children: Children, durable: bool = True) -> Servers:
    """Start what the environment (``DATABASE_OWNER_URL`` or ``DATABASE_URL``, ``REDIS_URL``) does not name."""
    sockets = folder.sockets()
    owner_url = named_database()
    redis_url = os.environ.get("REDIS_URL") or os.environ.get("TROLL_REDIS_URL")
    if redis_url is not None:
        redis.forget(folder.redis)
    else:
        socket = sockets / "redis" / "redis.sock"
        redis.start(folder.redis, socket, children, inherited())
        redis_url = redis.url(socket)
    if owner_url is None:
        password = folder.password(postgres.OWNER)
        postgres.start(folder.cluster, sockets / "postgres", password, children, inherited(), durable)
        owner_url = postgres.owner_url(sockets / "postgres", password)
    return Servers(owner_url, redis_url, {login: folder.password(login) for login in LOGINS})


def named_database() -> str | None:
    """The database that the operator named, under the login that owns it."""
    names = ("DATABASE_OWNER_URL", "DATABASE_URL", "TROLL_DATABASE_URL")
    return next((url for name in names if (url := os.environ.get(name))), None)


def inherited() -> dict[str, str]:
    """The part of our environment that all children get. Credentials are not among it, be they ours or a person's."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)) and name not in SECRETS
    }
