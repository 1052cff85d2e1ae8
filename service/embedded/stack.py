"""``troll up``: servers, then the database, then every process of the project; watched until asked to stop."""

import logging
import os
import secrets
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
from celery import Celery
from celery.app.control import Control

import service
from service.core import storage
from service.core.broker import CONTROL_QUEUE, KEY_PREFIX, TRAINING_QUEUE, broker_url
from service.core.db import Login
from service.embedded import jail, servers
from service.embedded.folder import Folder
from service.embedded.jail import Jail
from service.embedded.processes import (
    Child,
    Children,
    Program,
    StartError,
    describe_exit,
    end,
    leftovers,
    write_json,
)
from service.graders.settings import GraderSettings
from service.webhooks import secret

COMPUTING = 5
"""How far below the servers, which answer in milliseconds, the priority is of what computes for minutes."""
DEMO_MODEL = "troll-demo/additions"
READY_SECONDS = 120.0
PREPARE_SECONDS = 120.0
DEMO_MODEL_SECONDS = 600.0
JAIL_TEST_SECONDS = 150.0
WATCH_SECONDS = 0.25
STOP_GRACE_SECONDS = 300.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What the operator may choose. ``port`` 0 is any free one; ``api_processes`` share it."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    demo_model: bool = False
    jail: Jail = Jail.AUTO
    api_processes: int = 1


@dataclass(frozen=True)
class Ready:
    """A stack that answers. ``model`` is the demo's base model, if it was asked for.

    ``jail`` is the kind that graders' code runs in, or ``off``; ``jail_note`` says so in a line, and why.
    """

    base_url: str
    api_key: str
    data_dir: str
    model: str | None
    jail: str
    jail_note: str


class Stack:
    """All processes of one data folder, as children of this process."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = Folder(options.data_dir)
        self.children = Children(self.folder.records, self.folder.logs)
        self.models = Path(os.environ.get("TROLL_MODELS_DIR") or self.folder.models).absolute()
        self.node = secrets.token_hex(4)
        self.jail = jail.Wanted(GraderSettings())

    def stop(self) -> None:
        """Ask the stack to stop; asked twice, it does so without grace. Safe to call from a signal handler."""
        (self.children.hurry if self.children.stopping.is_set() else self.children.stopping).set()

    def stop_on_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.stop())

    def run(self, on_ready: Callable[[Ready], None]) -> None:
        """Start everything, call ``on_ready``, and return when asked to stop and all is stopped.

        Raises ``StartError`` when something does not come up, or the folder or the port is in use.
        """
        storage.restrict_umask()
        self.folder.prepare()
        self.folder.lock()
        try:
            self._end_leftovers()
            ready = self._start()
            on_ready(ready)
            self._watch()
        finally:
            log.info("stopping")
            self.folder.state.unlink(missing_ok=True)
            self.children.stop()
            log.info("stopped")
            self.folder.unlock()

    def _end_leftovers(self) -> None:
        """A killed ``up`` cannot stop its children; whoever comes next does."""
        if entries := leftovers(self.folder.records):
            log.warning("ending what an earlier, killed stack left: %s", ", ".join(entry["name"] for entry in entries))
            end(entries, self.children.hurry)
        self.folder.state.unlink(missing_ok=True)

    def _start(self) -> Ready:
        began = time.monotonic()
        host, port = self.options.host, free_port(self.options.host, self.options.port)
        self.jail = self._wanted_jail()
        demo = self._build_demo_model() if self.options.demo_model else None
        jail_test = self._test_jail() if self.jail.settings.jail != "off" else None
        running = servers.start(self.folder, self.children)
        given = self._secrets(running)
        self._prepare(given["prepare"])
        if jail_test is not None:
            self._judge_jail(jail_test)
        apps = [
            self.children.start(program, self._environment() | given[program.name])
            for program in self._programs(host, port)
        ]
        self._wait_for(apps, address(host, port), running)
        if demo is not None:
            self.children.finish(demo, DEMO_MODEL_SECONDS)
        ready = Ready(
            base_url=f"{address(host, port)}/v1",
            api_key=self.folder.first_key.read_text(),
            data_dir=str(self.folder.root),
            model=DEMO_MODEL if demo is not None else None,
            jail=self.jail.settings.jail,
            jail_note=jail.note(self.jail.settings.jail, self.jail.why_off),
        )
        self._write_state(ready, running)
        log.info("ready at %s after %.1f s", ready.base_url, time.monotonic() - began)
        return ready

    def _environment(self) -> dict[str, str]:
        folders = {"TROLL_DATA_DIR": str(self.folder.root), "TROLL_MODELS_DIR": str(self.models)}
        return child_environment() | folders | jail.variables(self.jail.settings)

    def _secrets(self, running: servers.Servers) -> dict[str, dict[str, str]]:
        """What each program is given beside the environment of all: its own login, and the secrets that it uses."""
        pepper = self.folder.pepper()
        redis, hashing = {"REDIS_URL": running.redis_url}, {"TROLL_KEY_PEPPER": pepper}
        signing = {"TROLL_WEBHOOK_KEY": os.environ.get("TROLL_WEBHOOK_KEY") or secret.key_of(pepper)}
        tracking, signing_in = (
            {name: key for name in names if (key := os.environ.get(name))}
            for names in (servers.TRACKING, ("TROLL_OIDC_CLIENT_SECRET",))
        )

        def login(role: Login) -> dict[str, str]:
            return {"DATABASE_URL": running.database_url(role)}

        return {
            "prepare": {"DATABASE_OWNER_URL": running.database_owner_url, **login("troll_operator"), **hashing},
            # Uploads are kept in the data folder while they arrive: where /tmp is memory, there is little of it.
            "api": {
                **login("troll_api"),
                **redis,
                **hashing,
                **signing,
                **signing_in,
                "TMPDIR": str(self.folder.root),
            },
            "control-worker": {**login("troll_control"), **redis, **signing},
            "training-worker": {**login("troll_worker"), **redis, **tracking},
            "serving-worker": redis,
            "beat": redis,
        }

    def _prepare(self, given: dict[str, str]) -> None:
        command: list[str | Path] = [sys.executable, "-m", "service.embedded.prepare", self.folder.root]
        child = self.children.start(Program("prepare", command, tier=1), self._environment() | given)
        self.children.finish(child, PREPARE_SECONDS)

    def _build_demo_model(self) -> Child:
        command: list[str | Path] = [sys.executable, "-m", "workers.demo", "build", self.models / DEMO_MODEL]
        return self.children.start(Program("demo-model", command, tier=1, grace=1.0), child_environment())

    def _wanted_jail(self) -> jail.Wanted:
        try:
            return jail.wanted(self.options.jail)
        except ValueError as error:
            raise StartError(str(error)) from error

    def _test_jail(self) -> Child:
        command: list[str | Path] = [sys.executable, "-m", "workers.confined"]
        environment = child_environment() | jail.variables(self.jail.settings)
        return self.children.start(Program("jail-test", command, tier=1, grace=1.0), environment)

    def _judge_jail(self, test: Child) -> None:
        """Go on without a jail that does not hold. Raises ``StartError`` where there has to be one."""
        code = self.children.result(test, JAIL_TEST_SECONDS)
        if code == 0:
            return
        why = self.children.last_words(test) if code > 0 else f"its self-test ended with {describe_exit(code)}"
        if self.jail.required:
            raise StartError(
                f"Graders' code is to run in a jail, and none holds here: {why}. See docs/graders.md, 'The jail'; "
                "with '--jail off' the stack starts without."
            )
        self.jail = jail.Wanted(replace(self.jail.settings, jail="off"), why_off=why)

    def _programs(self, host: str, port: int) -> list[Program]:
        python, celery = [sys.executable, "-m"], [sys.executable, "-m", "celery", "-A"]
        api = ["uvicorn", "--factory", "service.app:create_app", "--host", host, "--port", str(port)]
        api += ["--http", "service.core.connections:Connection", "--ws", "none"]
        api += ["--workers", str(self.options.api_processes)]
        quiet = ["--pool", "threads", "--without-gossip", "--without-mingle", "-l", "INFO"]
        control = ["workers.app", "worker", "-Q", CONTROL_QUEUE, "-n", f"control@{self.node}", "-c", "2", *quiet]
        training = ["workers.app", "worker", "-Q", TRAINING_QUEUE, "-n", f"training@{self.node}", "-c", "1", *quiet]
        beat = ["workers.beat", "beat", "-S", "workers.beat:Scheduler", "-l", "INFO"]
        return [
            Program("api", [*python, *api, "--timeout-graceful-shutdown", "3"], tier=2),
            Program("control-worker", [*celery, *control], tier=2, grace=30.0),
            Program("training-worker", [*celery, *training], tier=2, grace=stop_grace() + 30.0, nice=COMPUTING),
            # It loads a model when somebody first talks to one, and is tiny until then.
            Program("serving-worker", [*python, "workers.serving"], tier=2, nice=COMPUTING),
            Program("beat", [*celery, *beat], tier=2),
        ]

    def _wait_for(self, apps: list[Child], base: str, running: servers.Servers) -> None:
        """Wait until the API is ready and both workers answer; whichever process exits meanwhile is the error."""
        api, control, training, *_ = apps
        celery = Celery(set_as_current=False, broker=broker_url(running.redis_url))
        celery.conf.broker_transport_options = {"global_keyprefix": KEY_PREFIX}
        self.children.wait(api, lambda: _answers(f"{base}/readyz"), READY_SECONDS)
        for child, name in ((control, f"control@{self.node}"), (training, f"training@{self.node}")):
            self.children.wait(child, lambda name=name: _pong(celery.control, name), READY_SECONDS)  # type: ignore[misc]
        celery.close()

    def _write_state(self, ready: Ready, running: servers.Servers) -> None:
        process = {"pid": os.getpid(), "started": psutil.Process().create_time()}
        where = {"models_dir": str(self.models), "database_url": running.database_url("troll_operator")}
        where["redis_url"] = running.redis_url
        write_json(self.folder.state, {**asdict(ready), **process, **where})

    def _watch(self) -> None:
        while not self.children.stopping.wait(WATCH_SECONDS):
            self.children.restart_crashed()


def child_environment() -> dict[str, str]:
    """What every Python child gets: the same code as ours, and no modules from wherever it happens to be started."""
    code = str(Path(next(iter(service.__path__))).parent)
    fixed = {"PYTHONPATH": code, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    # Everything shares this machine's cores, and threads that spin while they wait keep the others from them.
    return {"OMP_WAIT_POLICY": "PASSIVE"} | servers.inherited() | fixed


def stop_grace() -> float:
    """How long the training child may take to save a checkpoint when the stack stops, in seconds."""
    return float(os.environ.get("TROLL_STOP_GRACE_SECONDS", STOP_GRACE_SECONDS))


def free_port(host: str, port: int) -> int:
    """``port``, or a free one for 0. Raises ``StartError`` when it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another with --port (0: any free)."
            ) from error
        return int(probe.getsockname()[1])


def address(host: str, port: int) -> str:
    """Where clients on this machine reach a server that listens on ``host``."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _pong(control: Control, name: str) -> bool:
    return bool(control.ping(destination=[name], timeout=0.5, limit=1))
