"""Models in other forms: ``troll pull --format``, ``troll push`` and ``troll exports``."""

import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from service.cli.connection import AsJSON, StackFolder, connect
from service.cli.download import address_of, download
from service.cli.failure import CommandError
from service.cli.output import show_table, shown_bytes
from service.contracts.export_formats import FORMATS, GGUF_TYPES

if TYPE_CHECKING:
    from openai import OpenAI

POLL_SECONDS = 1.0

commands = typer.Typer(no_args_is_help=True, help="Models in other forms, as 'troll pull --format' makes them.")

ModelId = Annotated[str, typer.Argument(help="A model's id, as 'troll models list' shows it.")]
FormatOption = typer.Option("--format", help=f"{', '.join(FORMATS)}. Without it: the files as they are.")
TypeOption = typer.Option("--type", help=f"Of a GGUF file: {', '.join(GGUF_TYPES)}. Default: what rounds nothing.")


def pull(
    model: ModelId,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="New folder. Default: named after the model.")
    ] = None,
    format: Annotated[str | None, FormatOption] = None,
    type: Annotated[str | None, TypeOption] = None,
    data_dir: StackFolder = None,
) -> None:
    """Download a model: its files, or with --format another form of it. Run again, it goes on."""
    name = model.replace("/", "-").replace(":", "-")
    target = output or Path(name if format is None else f"{name}-{format}")
    client = connect(data_dir)
    if format is None and type is None:
        download(client, model, target)
    else:
        if target.exists():
            raise CommandError(f"{target} exists already. Name another folder with -o.")
        export = _made(client, model, {"format": format or "gguf", "type": type})
        _show_notes(export)
        download(client, model, target, export["id"])
        _forget(client, model, export["id"])
    typer.echo(str(target))


def push(
    model: ModelId,
    repository: Annotated[str, typer.Argument(help="On the operator's Hugging Face hub: owner/name.")],
    format: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = "huggingface",
    type: Annotated[str | None, TypeOption] = None,
    public: Annotated[bool, typer.Option("--public", help="If the repository is made, everybody sees it.")] = False,
    data_dir: StackFolder = None,
) -> None:
    """Push a model to a Hugging Face hub, by the token in HF_TOKEN."""
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise CommandError("Set HF_TOKEN to a token of the hub that may write to the repository.")
    hub = {"repository": repository, "token": token, "private": not public}
    export = _made(connect(data_dir), model, {"format": format, "type": type, "hub": hub})
    _show_notes(export)
    typer.echo(str(export["hub"]["url"]))


@commands.command("list")
def list_exports(model: ModelId, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Show a model's exports, newest first."""
    exports = _exports(connect(data_dir), model)
    if as_json:
        typer.echo(json.dumps(exports))
        return
    rows = [
        (
            each["id"],
            each["format"] + (f" {each['type']}" if each["type"] else ""),
            each["status"],
            shown_bytes(each["bytes"]) if each["bytes"] else "",
            f"{datetime.fromtimestamp(each['expires_at']):%Y-%m-%d %H:%M}",
        )
        for each in exports
    ]
    show_table(("export", "format", "status", "size", "expires"), rows)


@commands.command("delete")
def delete_export(
    model: ModelId,
    export_id: Annotated[str, typer.Argument(help="As 'troll exports list' shows it.")],
    data_dir: StackFolder = None,
) -> None:
    """Delete an export with its files; one that is not finished is called off."""
    connect(data_dir).delete(f"/{address_of(model)}/exports/{export_id}", cast_to=object)
    typer.echo(export_id)


def _exports(client: "OpenAI", model: str) -> list[dict[str, Any]]:
    page = cast(dict[str, Any], client.get(f"/{address_of(model)}/exports?limit=100", cast_to=object))
    return list(page["data"])


def _made(client: "OpenAI", model: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """The export once it is made, or one that was asked for before. Raises ``CommandError`` where it fails."""
    before = [
        each
        for each in _exports(client, model)
        if each["status"] != "failed"
        and not (each["hub"] or wanted.get("hub"))
        and (each["format"], each["type"]) == (wanted["format"], wanted["type"])
    ]
    asked = before[0] if before else client.post(f"/{address_of(model)}/exports", body=wanted, cast_to=object)
    export = cast(dict[str, Any], asked)
    while export["status"] in ("queued", "running"):
        typer.secho(f"{export['status']} {export['progress']:.0%}", err=True)
        time.sleep(POLL_SECONDS)
        export = cast(dict[str, Any], client.get(f"/{address_of(model)}/exports/{export['id']}", cast_to=object))
    if export["status"] == "failed":
        raise CommandError(export["error"]["message"])
    return export


def _show_notes(export: dict[str, Any]) -> None:
    for note in export["notes"]:
        typer.secho(f"Note: {note}", err=True)


def _forget(client: "OpenAI", model: str, export_id: str) -> None:
    """It has been downloaded. A key that may not delete leaves it until it expires."""
    from openai import PermissionDeniedError

    try:
        client.delete(f"/{address_of(model)}/exports/{export_id}", cast_to=object)
    except PermissionDeniedError:
        typer.secho(f"The export {export_id} is kept until it expires: this key may not delete it.", err=True)
