"""``troll up``, ``troll down``, ``troll demo``."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import DEFAULT_DATA_DIR
from service.cli.failure import CommandError, ExitCode
from service.embedded.jail import Jail

if TYPE_CHECKING:
    from service.embedded.stack import Options, Ready

JailChoice = Annotated[
    Jail,
    typer.Option(
        "--jail",
        help="Whether python graders and code tests run, in a jail. auto: where it proves itself on this machine, or "
        "as TROLL_GRADERS says; on: no start without it.",
    ),
]
DataDir = Annotated[Path, typer.Option("--data-dir", envvar="TROLL_DATA_DIR", help="Where everything is kept.")]


def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Put a TLS proxy in front of any but loopback.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free port.")] = 8000,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when all is ready; print JSON as the last line.")
    ] = False,
    demo_model: Annotated[bool, typer.Option("--demo-model", help="Also build the demo's base model.")] = False,
    jail: JailChoice = Jail.AUTO,
    api_processes: Annotated[int, typer.Option(min=1, max=64, help="Processes of the API, which share its port.")] = 1,
) -> None:
    """Start PostgreSQL, Redis, the API and the workers on this machine, on one data folder.

    DATABASE_URL and REDIS_URL, where set, are used instead of private servers.
    """
    _require_embedded()
    from service.core import storage
    from service.embedded.detached import start_detached
    from service.embedded.stack import Options

    storage.restrict_umask()
    options = Options(data_dir.absolute(), host, port, demo_model, jail, api_processes)
    typer.secho(f"Starting on {options.data_dir} …", err=True)
    with _told():
        if detach:
            ready = start_detached(options)
            typer.secho(ready["jail_note"], err=True)
            typer.echo(json.dumps(ready))
        else:
            _run(options)


def down(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Stop the stack of a data folder. Running jobs save a checkpoint first and go on at the next 'troll up'."""
    _require_embedded()
    from service.embedded.detached import stop_stack

    typer.secho(f"Stopping the stack on {data_dir.absolute()} …", err=True)
    typer.secho("Stopped." if stop_stack(data_dir) else "No stack was up.", err=True)


def demo(
    data_dir: Annotated[
        Path, typer.Option("--data-dir", help="A folder for this demo; an earlier demo there is replaced.")
    ] = Path(".data/demo"),
    jail: JailChoice = Jail.AUTO,
) -> None:
    """Teach a tiny language model two-digit additions through the whole service, and show it before and after."""
    _require_embedded()
    from service.cli.demo import run
    from service.core import storage

    storage.restrict_umask()
    with _told():
        code = run(data_dir.absolute(), jail)
    raise typer.Exit(code)


@contextmanager
def _told() -> Iterator[None]:
    """A stack that does not come up is told in a sentence."""
    from service.embedded.processes import StartError

    try:
        yield
    except StartError as error:
        raise CommandError(str(error)) from error


def _run(options: "Options") -> None:
    from service.embedded.processes import StoppedError
    from service.embedded.stack import Stack

    stack = Stack(options)
    stack.folder.prepare()
    _log_to(stack.folder.logs / "stack.log")
    stack.stop_on_signals()
    try:
        stack.run(_announce)
    except StoppedError:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    typer.secho("Stopped.", err=True)


def _announce(ready: "Ready") -> None:
    typer.echo(f"OPENAI_BASE_URL={ready.base_url}")
    typer.echo(f"OPENAI_API_KEY={ready.api_key}")
    if ready.model:
        typer.echo(f"Demo model: {ready.model}")
    typer.secho(ready.jail_note, err=True)
    typer.secho(f"In a browser: {ready.base_url.removesuffix('/v1')}/", err=True)
    typer.secho(f"Ready. Data and logs are in {ready.data_dir}. Ctrl-C stops everything.", err=True)


def _log_to(path: Path) -> None:
    """The stack's own log: to its file, and to the terminal what a person has to know."""
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("service").addHandler(file)
    logging.getLogger("service").setLevel(logging.INFO)
    if sys.stderr.isatty():
        terminal = logging.StreamHandler()
        terminal.setLevel(logging.WARNING)
        logging.getLogger("service").addHandler(terminal)


def _require_embedded() -> None:
    try:
        import psutil  # noqa: F401
    except ModuleNotFoundError as error:
        raise CommandError("The embedded stack needs 'pip install troll-rft[embedded,worker]'.") from error
