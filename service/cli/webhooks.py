"""``troll webhooks``: who is told when jobs end."""

import json
from typing import Annotated, Any

import typer

from service.cli.connection import AsJSON, StackFolder, connect
from service.cli.output import show_object, show_table

commands = typer.Typer(no_args_is_help=True, help="Who is told when jobs end.")

Events = Annotated[list[str] | None, typer.Option("--event", help="'troll webhooks events' lists them. Repeat it.")]


@commands.command("events")
def events(data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Show what can be told."""
    types: Any = connect(data_dir).get("/webhook_event_types", cast_to=object)
    typer.echo(json.dumps(types["data"]) if as_json else "\n".join(types["data"]))


@commands.command("list")
def list_endpoints(data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Show the addresses that are told."""
    endpoints = [each.to_dict() for each in connect(data_dir).webhooks.list(limit=100)]
    if as_json:
        typer.echo(json.dumps(endpoints))
        return
    columns = ("id", "name", "url", "event_types")
    show_table(columns, [tuple(_shown(each[column]) for column in columns) for each in endpoints])


@commands.command("create")
def create(name: str, url: str, event: Events = None, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Tell an address when jobs end, and show the secret that messages are signed with, this once."""
    client: Any = connect(data_dir)
    types = event or client.get("/webhook_event_types", cast_to=object)["data"]
    show_object(client.webhooks.create(name=name, url=url, event_types=types).to_dict(), as_json)


@commands.command("show")
def show(endpoint_id: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Show one address."""
    show_object(connect(data_dir).webhooks.retrieve(endpoint_id).to_dict(), as_json)


@commands.command("update")
def update(
    endpoint_id: str,
    name: Annotated[str | None, typer.Option()] = None,
    url: Annotated[str | None, typer.Option()] = None,
    event: Events = None,
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Change an address, its name, or what it is told."""
    client: Any = connect(data_dir)
    given = {"name": name, "url": url, "event_types": event}
    changed = {field: value for field, value in given.items() if value is not None}
    show_object(client.webhooks.update(endpoint_id, **changed).to_dict(), as_json)


@commands.command("rotate-secret")
def rotate_secret(
    endpoint_id: str,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Sign with the old one too for 24 hours.")] = False,
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Make another secret in the place of the one that messages are signed with, and show it, this once."""
    webhooks = connect(data_dir).webhooks
    made = webhooks.rotate_secret(endpoint_id, keep_old_secret_active_for_24_hours=keep_old)
    show_object(made.to_dict(), as_json)


@commands.command("test")
def try_out(
    endpoint_id: str,
    event: Annotated[str, typer.Option(help="What is told.")] = "fine_tuning.job.succeeded",
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Send an address a made-up message and show what it answered."""
    client: Any = connect(data_dir)
    show_object(client.webhooks.test(endpoint_id, event_type=event).to_dict(), as_json)


@commands.command("delete")
def delete(endpoint_id: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Tell an address no more."""
    found: Any = connect(data_dir).delete(f"/webhook_endpoints/{endpoint_id}", cast_to=object)
    show_object(found, as_json)


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
