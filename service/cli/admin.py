"""``troll admin``: organisations, who belongs to them, and what they are due."""

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.orm import Session

from service.accounts import repository as accounts
from service.accounts import service as key_service
from service.accounts.models import Organization, Project
from service.accounts.service import KeyOwner
from service.administration import service as administration
from service.administration.schemas import ProjectObject, UserObject
from service.cli.connection import AsJSON
from service.cli.failure import CommandError
from service.cli.keys import show_secret
from service.cli.operator import OperatorFolder, use_database
from service.cli.output import show_table
from service.cli.usage import limits, usage_of_all
from service.core.db import transaction
from service.scheduling import repository

commands = typer.Typer(no_args_is_help=True, help="Organisations. For operators: needs the database, not a key.")
keys = typer.Typer(no_args_is_help=True, help="Keys that administer an organisation, under /v1/organization.")
projects = typer.Typer(no_args_is_help=True, help="Projects of an organisation.")
users = typer.Typer(no_args_is_help=True, help="Users of an organisation.")
operators = typer.Typer(
    no_args_is_help=True,
    help="Organisations whose administrators see all workers and the whole queue, and may drain workers.",
)
for name, group in (("keys", keys), ("projects", projects), ("users", users), ("operators", operators)):
    commands.add_typer(group, name=name)

Name = Annotated[str, typer.Option("--organization", help="The organisation's name.")]

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


def _organization(session: Session, name: str) -> Organization:
    found = accounts.organization_named(session, name)
    if found is None:
        raise CommandError(f"There is no organisation '{name}'. 'troll admin organizations' lists them.")
    return found


@commands.command("delete")
def delete(
    organization: Annotated[str, typer.Argument(help="The organisation's name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: OperatorFolder = None,
) -> None:
    """End an organisation: its keys at once, its jobs within seconds; its files and models are removed within days."""
    use_database(data_dir)
    if not yes:
        typer.confirm(f"Delete {organization}, with all of its files and models?", abort=True)
    with transaction("troll_operator") as session:
        found = _organization(session, organization)
        administration.delete_organization(session, found)
    typer.echo(f"{organization} ({found.id}) is deleted. Its keys have ended, and its jobs are being cancelled.")


@keys.command("create")
def create_admin_key(
    organization: Annotated[str, typer.Option(help="What it administers; made when there is none of that name.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "unnamed",
    expires_in_days: Annotated[float | None, typer.Option(min=0.001, help="Default: never.")] = None,
    data_dir: OperatorFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Make an admin key and show it, this once. 'troll keys' lists, rotates and revokes it."""
    use_database(data_dir)
    lifetime = timedelta(days=expires_in_days) if expires_in_days else None
    with transaction("troll_operator") as session:
        owner = key_service.organization_for(session, organization)
        plain, key = key_service.make_key(session, KeyOwner(owner.id, None), name=name, expires_in=lifetime)
    made = {"id": key.id, "key": plain, "organization_id": owner.id, "organization": owner.name}
    show_secret(f"Admin key {key.id} of {owner.name}", plain, made, as_json)


@projects.command("list")
def list_projects(organization: Name, data_dir: OperatorFolder = None, as_json: AsJSON = False) -> None:
    """Show an organisation's projects, archived ones too."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        rows = [ProjectObject.of(row) for row in accounts.projects(session, _organization(session, organization).id)]
    if as_json:
        typer.echo(json.dumps([row.model_dump() for row in rows]))
        return
    show_table(("id", "name", "status"), [(row.id, row.name, row.status) for row in rows])


@projects.command("create")
def create_project(organization: Name, name: str, data_dir: OperatorFolder = None) -> None:
    """Make a project and show its id."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        made = key_service.create_project(session, _organization(session, organization).id, name)
    typer.echo(made.id)


@projects.command("archive")
def archive_project(project_id: str, data_dir: OperatorFolder = None) -> None:
    """End a project: its keys at once, its jobs within seconds. What it made stays where it is."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        found: Project = administration.archivable_project(session, project_id)
        administration.end_project(session, found)
    typer.echo(f"{found.name} ({found.id}) is archived. Its keys have ended, and its jobs are being cancelled.")


@users.command("list")
def list_users(organization: Name, data_dir: OperatorFolder = None, as_json: AsJSON = False) -> None:
    """Show an organisation's users."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        rows = accounts.users(session, _organization(session, organization).id)
        used = accounts.last_use(session, [row.id for row in rows])
        shown = [UserObject.of(row, used.get(row.id)) for row in rows]
    if as_json:
        typer.echo(json.dumps([row.model_dump() for row in shown]))
        return
    show_table(("id", "e-mail", "name", "role"), [(row.id, row.email, row.name, row.role) for row in shown])


@users.command("add")
def add_user(
    organization: Name,
    email: str,
    name: Annotated[str | None, typer.Option(help="Default: the e-mail.")] = None,
    owner: Annotated[bool, typer.Option("--owner", help="Of everything in the organisation.")] = False,
    project: Annotated[
        list[str] | None, typer.Option(help="ID:ROLE, where the role is owner, member or reader. Repeat it.")
    ] = None,
    data_dir: OperatorFolder = None,
) -> None:
    """Add a user and show their id."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        where = _organization(session, organization)
        role = "owner" if owner else "reader"
        user = administration.add_user(session, where.id, email=email, name=name or email, role=role)
        for each in project or []:
            id, _, member = each.rpartition(":")
            if member not in ("owner", "member", "reader"):
                raise CommandError(f"'{each}' does not end in ':owner', ':member' or ':reader'.")
            if administration.project(session, id).organization_id != where.id:
                raise CommandError(f"{organization} has no project '{id}'.")
            administration.add_member(session, id, user_id=user.id, email=None, role=member)
    typer.echo(user.id)


@users.command("remove")
def remove_user(organization: Name, email: str, data_dir: OperatorFolder = None) -> None:
    """Remove a user. Their keys end at once."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        found = accounts.user_with(session, _organization(session, organization).id, email)
        if found is None:
            raise CommandError(f"{organization} has no user {email}.")
        administration.delete_user(session, found)
    typer.echo(f"{email} is removed, and their keys have ended.")


@operators.command("list")
def list_operators(data_dir: OperatorFolder = None, as_json: AsJSON = False) -> None:
    """Show the organisations that operate the installation."""
    use_database(data_dir)
    with transaction("troll_operator") as session:
        rows = [{"id": row.id, "name": row.name} for row in accounts.operators(session)]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    show_table(("id", "name"), [(row["id"], row["name"]) for row in rows])


@operators.command("add")
def add_operator(
    organization: Annotated[str, typer.Argument(help="The organisation's name.")], data_dir: OperatorFolder = None
) -> None:
    """Let an organisation's administrators see all workers and the whole queue, and drain workers."""
    _set_operating(organization, data_dir, operates=True)
    typer.echo(f"Administrators of {organization} see all workers and the whole queue.")


@operators.command("remove")
def remove_operator(
    organization: Annotated[str, typer.Argument(help="The organisation's name.")], data_dir: OperatorFolder = None
) -> None:
    """Let an organisation's administrators see no more than their organisation."""
    _set_operating(organization, data_dir, operates=False)
    typer.echo(f"Administrators of {organization} see no more than their organisation.")


def _set_operating(organization: str, data_dir: Path | None, *, operates: bool) -> None:
    use_database(data_dir)
    with transaction("troll_operator") as session:
        accounts.set_operating(session, _organization(session, organization).id, operates=operates)


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
