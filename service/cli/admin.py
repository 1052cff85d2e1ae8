"""``troll admin``: organisations and what they are due."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from service.cli.connection import AsJSON
from service.cli.failure import CommandError
from service.cli.operator import OperatorFolder, use_database
from service.cli.output import show_table
from service.cli.usage import limits, usage_of_all
from service.core.db import transaction
from service.scheduling import repository

commands = typer.Typer(no_args_is_help=True, help="Organisations. For operators: needs the database, not a key.")

commands.command("limits")(limits)
commands.command("usage")(usage_of_all)


@commands.command("organizations")
def organizations(data_dir: OperatorFolder = None, as_json: AsJSON = False) -> None:
    """Show the organisations, their weights, and the GPU time that they used in the last 24 hours."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        rows = repository.accounts(session)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    show_table(
        ("id", "name", "weight", "GPU-hours of the last 24 h", "of this month", "budget a month"),
        [
            (
                row.id,
                row.name,
                f"{row.weight:g}",
                f"{row.recent_gpu_seconds / 3600:.2f}",
                f"{row.month_gpu_seconds / 3600:.2f}",
                "none" if row.gpu_hours_a_month is None else f"{row.gpu_hours_a_month:g}",
            )
            for row in rows
        ],
    )


@commands.command("weight")
def weight(
    organization: Annotated[str, typer.Argument(help="The organisation's name.")],
    weight: Annotated[float, typer.Argument(min=0.001, max=1000, help="1 is usual; 2 is due twice as much.")],
    data_dir: OperatorFolder = None,
) -> None:
    """Set how much GPU time an organisation is due beside the others."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        if not repository.set_weight(session, organization, weight):
            raise CommandError(f"There is no organisation '{organization}'. 'troll admin organizations' lists them.")
    typer.echo(f"{organization} has the weight {weight:g}.")


@commands.command("budget")
def budget(
    organization: Annotated[str, typer.Argument(help="The organisation's name.")],
    gpu_hours: Annotated[
        float | None, typer.Argument(min=0, help="A calendar month of UTC; left out: no limit.")
    ] = None,
    data_dir: OperatorFolder = None,
) -> None:
    """Set how many GPU-hours an organisation may use a month. Beyond that its jobs wait for the next, or for more."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        if not repository.set_budget(session, organization, gpu_hours):
            raise CommandError(f"There is no organisation '{organization}'. 'troll admin organizations' lists them.")
    typer.echo(
        f"{organization} may use {'any number of' if gpu_hours is None else f'{gpu_hours:g}'} GPU-hours a month."
    )
