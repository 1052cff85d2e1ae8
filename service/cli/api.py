"""``troll api``: any operation of the API by its path, as for administration with an admin key."""

import json
import os
from typing import Annotated, Any, Literal

import typer

from service.cli.connection import StackFolder, connect
from service.cli.failure import CommandError
from service.cli.output import parsed_json


def api(
    method: Annotated[Literal["GET", "POST", "DELETE"], typer.Argument(case_sensitive=False)],
    path: Annotated[str, typer.Argument(help="Behind /v1, such as organization/projects.")],
    query: Annotated[list[str] | None, typer.Option("-q", "--query", help="NAME=VALUE. Repeat it.")] = None,
    body: Annotated[str | None, typer.Option(help="A JSON object.")] = None,
    data_dir: StackFolder = None,
) -> None:
    """Ask for any operation of the API, and print its answer as JSON.

    Such as 'troll api GET organization/audit_logs -q limit=5'. What lies under organization/ is asked with
    OPENAI_ADMIN_KEY, where that is set.
    """
    client = connect(data_dir)
    path = "/" + path.strip("/").removeprefix("v1/")
    admin_key = os.environ.get("OPENAI_ADMIN_KEY")
    if path.startswith("/organization/") and admin_key:
        client = client.with_options(api_key=admin_key)
    given: dict[str, list[str]] = {}
    for each in query or []:
        name, sign, value = each.partition("=")
        if not sign:
            raise CommandError(f"'{each}' is no NAME=VALUE.")
        given.setdefault(name, []).append(value)
    options: Any = {"params": {name: value if len(value) > 1 else value[0] for name, value in given.items()}}
    if method == "GET":
        answer: Any = client.get(path, cast_to=object, options=options)
    else:
        sent = None if body is None else parsed_json(body, "--body")
        ask = client.post if method == "POST" else client.delete
        answer = ask(path, body=sent, cast_to=object, options=options)
    typer.echo(answer if isinstance(answer, str) else json.dumps(answer))
