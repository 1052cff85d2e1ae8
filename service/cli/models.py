"""``troll models``."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from service.cli.connection import AsJSON, StackFolder, connect, stack_state
from service.cli.failure import CommandError
from service.cli.output import show_table

commands = typer.Typer(no_args_is_help=True, help="Base models on offer and your organisation's own.")


@commands.command("list")
def list_models(data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Show base models, tuned models and checkpoints."""
    models = connect(data_dir).models.list().data
    if as_json:
        typer.echo(json.dumps([model.to_dict() for model in models]))
        return
    rows = [(model.id, model.owned_by, f"{datetime.fromtimestamp(model.created):%Y-%m-%d %H:%M}") for model in models]
    show_table(("model", "owner", "created"), rows)


@commands.command("broken")
def list_broken(
    models_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="TROLL_MODELS_DIR", help="The folder of base models. Default: that of the stack of the data folder."
        ),
    ] = None,
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Show folders of base models that are not offered, and why. For operators: reads the folder, needs no key."""
    from service.models.base import survey

    root = models_dir or Path(stack_state(data_dir)["models_dir"])
    if not root.is_dir():
        raise CommandError(f"There is no folder {root}. Name the folder of base models with --models-dir.")
    offered, broken = survey(root)
    if as_json:
        typer.echo(json.dumps([{"id": each.id, "reason": each.reason} for each in broken]))
        return
    typer.secho(f"{len(broken)} broken, {len(offered)} on offer in {root}", err=True)
    show_table(("folder", "reason"), [(each.id, each.reason) for each in broken])
