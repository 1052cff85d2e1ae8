"""PostgreSQL and Redis for a data folder: those that the environment names, else private ones."""

import os
from dataclasses import dataclass

from service.embedded import postgres, redis
from service.embedded.folder import Folder
from service.embedded.processes import Children

PASSED_ON = ("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "FORWARDED_ALLOW_IPS")
PASSED_ON_PREFIXES = ("LC_", "TROLL_", "OMP_", "MKL_", "CUDA_", "NVIDIA_", "NCCL_")


@dataclass(frozen=True)
class Servers:
    """Where the servers are. ``database_owner_url`` is the login that migrates, ``database_url`` everybody else's."""

    database_url: str
    database_owner_url: str
    redis_url: str

    def environment(self) -> dict[str, str]:
        return {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}


def start(folder: Folder, children: Children, durable: bool = True) -> Servers:
    """Start what the environment (``DATABASE_URL``, ``DATABASE_OWNER_URL``, ``REDIS_URL``) does not name."""
    sockets = folder.sockets()
    database_url = os.environ.get("DATABASE_URL") or os.environ.get("TROLL_DATABASE_URL")
    redis_url = os.environ.get("REDIS_URL") or os.environ.get("TROLL_REDIS_URL")
    owner_url = os.environ.get("DATABASE_OWNER_URL") or database_url
    if redis_url is None:
        socket = sockets / "redis" / "redis.sock"
        redis.start(folder.redis, socket, children, inherited())
        redis_url = redis.url(socket)
    if database_url is None or owner_url is None:
        postgres.start(folder.cluster, sockets / "postgres", children, inherited(), durable)
        database_url, owner_url = postgres.login_url(sockets / "postgres"), postgres.owner_url(sockets / "postgres")
    return Servers(database_url, owner_url, redis_url)


def inherited() -> dict[str, str]:
    """The part of our environment that children get. Credentials of the person at the terminal are not among it."""
    return {
        name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }
