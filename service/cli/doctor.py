"""``troll doctor``: whether this machine and its servers have what the service needs, and what to do where not."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from service.cli import backends, machine
from service.cli.connection import AsJSON, default_data_dir
from service.cli.failure import CommandError, ExitCode
from service.contracts.finding import Finding
from service.embedded import jail

SECONDS = 300.0
"""For what a worker's libraries say; torch alone may take a minute where the disk is slow."""
SHOWN = {
    "holds": ("holds", "green"),
    "warning": ("warning", "yellow"),
    "fails": ("does not hold", "red"),
}


def doctor(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            help="A stack's folder. Without it: what DATABASE_URL, REDIS_URL and the TROLL_ settings name.",
        ),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Look at everything that the service needs on this machine. Exit code 1 where something does not hold.

    It changes nothing. Run it where a process runs, as its user and with its environment.
    """
    findings = []
    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
    for finding in _findings(data_dir):
        findings.append(finding)
        if not as_json:
            _show(console, finding)
    if as_json:
        typer.echo(json.dumps([finding.model_dump() for finding in findings]))
    if any(finding.state == "fails" for finding in findings):
        raise typer.Exit(ExitCode.FAILED)


def _findings(data_dir: Path | None) -> Iterator[Finding]:
    state = _state(data_dir)
    yield from machine.python()
    yield from machine.open_files()
    yield from machine.shared_memory()
    yield from machine.data_folder(Path(state["data_dir"]))
    yield from machine.models_folder(Path(state["models_dir"]))
    for what, look in (("database_url", backends.postgres), ("redis_url", backends.redis_server)):
        if state.get(what):
            yield from look(state[what])
        else:
            remedy = f"Set {what.upper()} as the process has it, or name a stack's folder with --data-dir."
            yield Finding(what=what.upper(), state="warning", found="not set", remedy=remedy)
    if state.get("base_url"):
        yield from backends.api(state["base_url"])
    yield from _of_workers()


def _state(data_dir: Path | None) -> dict[str, Any]:
    """Where things are: what the environment says, or what a stack says of itself where it does not."""
    if data_dir is None and "DATABASE_URL" in os.environ:
        # A process of a deployment, whose image may lack what stacks are started with.
        return _told(default_data_dir(), default_data_dir() / "models")
    from service.embedded.folder import Folder

    folder = Folder(data_dir or default_data_dir())
    running = folder.read_state()
    if data_dir is not None and running is None:
        raise CommandError(f"No stack is up on {folder.root}: start it with 'troll up', or leave --data-dir out.")
    return _told(folder.root, folder.models) | (running or {})


def _told(data_dir: Path, models_dir: Path) -> dict[str, Any]:
    """What the environment says, and of folders where they are otherwise."""
    names = {"database_url": "DATABASE_URL", "redis_url": "REDIS_URL", "base_url": "OPENAI_BASE_URL"}
    named = {what: value for what, name in names.items() if (value := os.environ.get(name))}
    return {"data_dir": str(data_dir), "models_dir": os.environ.get("TROLL_MODELS_DIR") or str(models_dir), **named}


def _of_workers() -> Iterator[Finding]:
    """What a process with the libraries of workers says; the command line has none of them."""
    try:
        variables = jail.variables(jail.wanted(jail.Jail.AUTO).settings)
    except (ValueError, ValidationError) as error:
        yield Finding(what="TROLL_GRADERS", state="fails", found=str(error), remedy="See docs/graders.md.")
        return
    # To a file, of which all that was said is left where time runs out.
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        try:
            command = [sys.executable, "-m", "workers.doctor"]
            process = subprocess.run(
                command, env=os.environ | variables, stdout=said, stderr=errors, check=False, timeout=SECONDS
            )
            ended = f"its process ended with {process.returncode}" if process.returncode else None
        except subprocess.TimeoutExpired:
            ended = f"it did not end within {SECONDS:.0f} s"
        said.seek(0)
        errors.seek(0)
        yield from (Finding.model_validate_json(line) for line in said if line.startswith("{"))
        if ended is not None:
            last = (errors.read().strip().splitlines() or [ended])[-1]
            missing = "No module named" in last
            remedy = "Workers need the extra 'worker'; where only the API runs, nothing is missing." if missing else ""
            yield Finding(what="workers", state="warning" if missing else "fails", found=last, remedy=remedy)


def _show(console: Console, finding: Finding) -> None:
    word, colour = SHOWN[finding.state]
    if not console.is_terminal:
        typer.echo("\t".join((word, finding.what, finding.found, finding.remedy)).rstrip("\t"))
        return
    console.print(f"[{colour}]{word:<13}[/]  [bold]{escape(finding.what)}[/]  {escape(finding.found)}")
    if finding.remedy:
        console.print(f"{'':<15}[dim]→ {escape(finding.remedy)}[/]")
