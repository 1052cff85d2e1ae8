"""``troll workers``: what trains, and taking it out for maintenance."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime

import typer
from sqlalchemy.orm import Session

from service.cli.connection import AsJSON
from service.cli.failure import CommandError
from service.cli.operator import OperatorFolder, use_database
from service.cli.output import show_table, shown_bytes
from service.core import clock
from service.core.db import transaction
from service.jobs import repository as jobs
from service.scheduling import repository
from service.scheduling.service import state

commands = typer.Typer(no_args_is_help=True, help="Training workers. For operators: needs the database, not a key.")


@dataclass(frozen=True)
class Shown:
    """A worker as it is listed."""

    name: str
    state: str
    job: str | None
    gpus: int
    gpu_bytes: int
    engines: list[str]
    started_at: str
    seen_at: str


@commands.command("list")
def list_workers(data_dir: OperatorFolder = None, as_json: AsJSON = False) -> None:
    """Show the training workers, what they have and what they do."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        rows = _shown(session)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    show_table(
        ("name", "state", "job", "GPUs", "memory", "engines", "last seen"),
        [
            (
                row.name,
                row.state,
                row.job or "",
                str(row.gpus),
                shown_bytes(row.gpu_bytes) if row.gpu_bytes else "",
                ", ".join(row.engines),
                row.seen_at,
            )
            for row in rows
        ],
    )


@commands.command("drain")
def drain(name: str, data_dir: OperatorFolder = None) -> None:
    """Give a worker no further job. The one that it has goes on to its end."""
    use_database(data_dir)
    _set(name, draining=True)
    typer.echo(f"{name} takes no further job. 'troll workers list' says when it has none any more.")


@commands.command("resume")
def resume(name: str, data_dir: OperatorFolder = None) -> None:
    """Give a drained worker jobs again."""
    use_database(data_dir)
    _set(name, draining=False)
    typer.echo(f"{name} takes jobs again.")


def _set(name: str, *, draining: bool) -> None:
    with transaction("troll_operator") as session:
        if not repository.set_draining(session, name, draining=draining):
            known = ", ".join(worker.name for worker in repository.workers(session)) or "none"
            raise CommandError(f"There is no worker '{name}'. Known are: {known}.")


def _shown(session: Session) -> list[Shown]:
    now, at_work = clock.now(session), jobs.at_work(session)
    return [
        Shown(
            name=worker.name,
            state=state(worker, now),
            job=at_work.get(worker.name),
            gpus=worker.gpus,
            gpu_bytes=worker.gpu_bytes,
            engines=worker.engines,
            started_at=_told(worker.started_at),
            seen_at=_told(worker.seen_at),
        )
        for worker in repository.workers(session)
    ]


def _told(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
