"""``troll models``."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from service.cli.connection import AsJSON, StackFolder, connect, stack_state
from service.cli.failure import CommandError
from service.cli.output import show_object, show_table

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


@commands.command("show")
def show(model: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Show one model."""
    show_object(connect(data_dir).models.retrieve(model).to_dict(), as_json)


@commands.command("delete")
def delete(model: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Delete a tuned model or a checkpoint."""
    show_object(connect(data_dir).models.delete(model).to_dict(), as_json)


@commands.command("share")
def share(
    model: str,
    projects: Annotated[list[str], typer.Argument(help="Ids of projects of your organisation.")],
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Let other projects use a tuned model or checkpoint. Needs an admin key."""
    given = connect(data_dir).fine_tuning.checkpoints.permissions.create(model, project_ids=projects).data
    _show_shares([each.to_dict() for each in given], as_json)


@commands.command("shares")
def shares(model: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Show which projects may use a model besides its own. Needs an admin key."""
    found = connect(data_dir).fine_tuning.checkpoints.permissions.list(model, limit=100).data
    _show_shares([each.to_dict() for each in found], as_json)


@commands.command("unshare")
def unshare(
    model: str,
    share: Annotated[str, typer.Argument(help="Its id, as 'troll models shares' shows it.")],
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Take back what 'troll models share' gave. Needs an admin key."""
    permissions = connect(data_dir).fine_tuning.checkpoints.permissions
    show_object(permissions.delete(share, fine_tuned_model_checkpoint=model).to_dict(), as_json)


def _show_shares(found: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        return
    show_table(("id", "project"), [(str(each["id"]), str(each["project_id"])) for each in found])


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
