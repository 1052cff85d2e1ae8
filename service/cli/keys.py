"""``troll keys``: the operator's commands. They work on the database itself, not over HTTP."""

import json
from datetime import datetime, timedelta
from typing import Annotated

import typer

from service.accounts import repository
from service.accounts import service as accounts
from service.accounts.models import APIKey
from service.cli.connection import AsJSON
from service.cli.operator import OperatorFolder, use_database
from service.cli.output import show_table
from service.core import clock
from service.core.db import transaction

commands = typer.Typer(no_args_is_help=True, help="API keys. For operators: needs the database, not a key.")


@commands.command("create")
def create(
    organization: Annotated[str, typer.Option(help="Whose key it is; made when there is none of that name.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "unnamed",
    expires_in_days: Annotated[float | None, typer.Option(min=0.001, help="Default: never.")] = None,
    data_dir: OperatorFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Make an API key and show it, this once."""
    use_database(data_dir)
    lifetime = timedelta(days=expires_in_days) if expires_in_days else None
    with transaction("troll_operator") as session:
        plain, key, owner = accounts.create_key(session, organization=organization, name=name, expires_in=lifetime)
    if as_json:
        typer.echo(json.dumps({"id": key.id, "key": plain, "organization_id": owner.id, "organization": owner.name}))
        return
    typer.secho(f"Key {key.id} of {owner.name}. It is not stored and cannot be shown again:", err=True)
    typer.echo(plain)


@commands.command("list")
def list_keys(data_dir: OperatorFolder = None, as_json: AsJSON = False) -> None:
    """Show all keys, without their secrets."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        rows, now = [(key, owner.name) for key, owner in repository.keys(session)], clock.now(session)
    if as_json:
        typer.echo(json.dumps([_object(key, owner, now) for key, owner in rows]))
        return
    show_table(
        ("id", "organization", "name", "key", "created", "last used", "state"),
        [
            (key.id, owner, key.name, key.hint, _day(key.created_at), _day(key.last_used_at), _state(key, now))
            for key, owner in rows
        ],
    )


@commands.command("revoke")
def revoke(key_id: str, data_dir: OperatorFolder = None) -> None:
    """End a key at once."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        at = accounts.revoke_key(session, key_id)
    typer.echo(f"{key_id} is revoked since {at:%Y-%m-%d %H:%M:%S %Z}.")


def _object(key: APIKey, owner: str, now: datetime) -> dict[str, str | None]:
    times = {name: getattr(key, name) for name in ("created_at", "last_used_at", "expires_at", "revoked_at")}
    return {
        "id": key.id,
        "organization": owner,
        "name": key.name,
        "hint": key.hint,
        "state": _state(key, now),
        **{name: time.isoformat() if time else None for name, time in times.items()},
    }


def _state(key: APIKey, now: datetime) -> str:
    if key.revoked_at:
        return "revoked"
    if key.expires_at:
        return "expired" if key.expires_at <= now else f"until {key.expires_at:%Y-%m-%d}"
    return "valid"


def _day(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M}" if time else "never"
