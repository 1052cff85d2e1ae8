"""``troll keys``: the operator's commands. They work on the database itself, not over HTTP."""

import json
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from sqlalchemy.orm import Session

from service.accounts import repository
from service.accounts import service as accounts
from service.accounts.models import APIKey, Organization, Project, User
from service.accounts.scopes import PROJECT_SCOPES, Scope
from service.accounts.service import KeyOwner
from service.cli.connection import AsJSON
from service.cli.failure import CommandError
from service.cli.operator import OperatorFolder, use_database
from service.cli.output import show_table
from service.core import clock
from service.core.db import transaction

commands = typer.Typer(no_args_is_help=True, help="API keys. For operators: needs the database, not a key.")


@commands.command("create")
def create(
    organization: Annotated[str, typer.Option(help="Whose key it is; made when there is none of that name.")],
    project: Annotated[
        str | None, typer.Option(help="Its name or id; made when there is none of that name. Default: the default one.")
    ] = None,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "unnamed",
    scope: Annotated[
        list[str] | None, typer.Option(help="What it may do: read, submit, manage. Repeat it. Default: all of them.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="E-mail of the user who owns it, who has to be there; their role bounds it.")
    ] = None,
    expires_in_days: Annotated[float | None, typer.Option(min=0.001, help="Default: never.")] = None,
    data_dir: OperatorFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Make an API key and show it, this once."""
    use_database(data_dir)
    lifetime = timedelta(days=expires_in_days) if expires_in_days else None
    with transaction("troll_operator") as session:
        owner = accounts.organization_for(session, organization)
        where = _project(session, owner, project)
        member = None if user is None else _user(session, owner, user)
        for_whom = KeyOwner(owner.id, where.id) if member is None else KeyOwner.of(member, where)
        plain, key = accounts.make_key(session, for_whom, name=name, scopes=_scopes(scope), expires_in=lifetime)
    made = {"id": key.id, "key": plain, "organization_id": owner.id, "organization": owner.name}
    show_secret(f"Key {key.id} of {owner.name}, {where.name}", plain, made | {"project_id": where.id}, as_json)


@commands.command("rotate")
def rotate(
    key_id: str,
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=accounts.MAX_OVERLAP.days * 24, help="How long the old one is good beside it.")
    ] = accounts.OVERLAP.total_seconds() / 3600,
    data_dir: OperatorFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Make a key in place of another, with the same owner, scopes and lifetime, and show it, this once."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        plain, key, old = accounts.rotate_key(session, key_id, timedelta(hours=overlap_hours))
    assert old.expires_at is not None
    made = {"id": key.id, "key": plain, "old_id": old.id, "old_expires_at": old.expires_at.isoformat()}
    show_secret(f"Key {key.id}; {old.id} is good until {old.expires_at:%Y-%m-%d %H:%M:%S %Z}", plain, made, as_json)


@commands.command("scopes")
def scopes(
    key_id: str,
    scope: Annotated[
        list[str] | None, typer.Option(help="What it may do: read, submit, manage. Repeat it. Default: all of them.")
    ] = None,
    data_dir: OperatorFolder = None,
) -> None:
    """Change what a key may do, from its next request on."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        row = accounts.change_key(session, key_id, {"scopes": _scopes(scope)})
    typer.echo(f"{key_id} may {', '.join(row.scopes or PROJECT_SCOPES)}.")


@commands.command("list")
def list_keys(data_dir: OperatorFolder = None, as_json: AsJSON = False) -> None:
    """Show all keys, without their secrets."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        rows, now = repository.keys(session), clock.now(session)
    if as_json:
        typer.echo(json.dumps([_object(key, owner, project, now) for key, owner, project in rows]))
        return
    show_table(
        ("id", "organization", "project", "name", "key", "scopes", "created", "last used", "state"),
        [
            (
                key.id,
                owner.name,
                project.name if project else "",
                key.name,
                key.hint,
                "admin" if project is None else "all" if key.scopes is None else " ".join(key.scopes) or "none",
                _day(key.created_at),
                _day(key.last_used_at),
                _state(key, now),
            )
            for key, owner, project in rows
        ],
    )


@commands.command("revoke")
def revoke(key_id: str, data_dir: OperatorFolder = None) -> None:
    """End a key at once."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        at = accounts.revoke_key(session, key_id)
    typer.echo(f"{key_id} is revoked since {at:%Y-%m-%d %H:%M:%S %Z}.")


def show_secret(what: str, plain: str, made: dict[str, str], as_json: bool) -> None:
    """A key's plain text, for a script or a person."""
    if as_json:
        typer.echo(json.dumps(made))
        return
    typer.secho(f"{what}. It is not stored and cannot be shown again:", err=True)
    typer.echo(plain)


def _project(session: Session, organization: Organization, name: str | None) -> Project:
    """The project that a command names, or the default one."""
    found = repository.projects_named(
        session, organization.id, accounts.default_project(organization.id) if name is None else name
    )
    if len(found) > 1:
        ids = ", ".join(project.id for project in found)
        raise CommandError(f"{organization.name} has several projects '{name}'. Name one by its id: {ids}.")
    if found:
        return found[0]
    if name is None or name.startswith("proj_"):
        raise CommandError(f"{organization.name} has no project '{name or 'Default project'}', or it is archived.")
    return accounts.create_project(session, organization.id, name)


def _user(session: Session, organization: Organization, email: str) -> User:
    found = repository.user_with(session, organization.id, email)
    if found is None:
        raise CommandError(f"{organization.name} has no user {email}. 'troll admin users add' makes one.")
    return found


def _scopes(given: list[str] | None) -> list[Scope] | None:
    if not given:
        return None
    unknown = sorted(set(given) - set(PROJECT_SCOPES))
    if unknown:
        raise CommandError(f"There is no scope '{unknown[0]}'. There are {', '.join(PROJECT_SCOPES)}.")
    return [scope for scope in PROJECT_SCOPES if scope in given]


def _object(key: APIKey, owner: Organization, project: Project | None, now: datetime) -> dict[str, Any]:
    times = {name: getattr(key, name) for name in ("created_at", "last_used_at", "expires_at", "revoked_at")}
    return {
        "id": key.id,
        "organization": owner.name,
        "project": project.name if project else None,
        "project_id": key.project_id,
        "scopes": key.scopes,
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
