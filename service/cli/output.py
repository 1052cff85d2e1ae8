"""What commands print: tables on the terminal, the same without borders or cuts for pipes, JSON for scripts."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Column, Table

from service.cli.failure import CommandError


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Ids are never cut: on a terminal long cells fold, in a pipe columns are separated by tabs."""
    if not sys.stdout.isatty():
        for row in [columns, *rows]:
            typer.echo("\t".join(row))
        return
    table = Table(*(Column(name, overflow="fold") for name in columns))
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def show_object(found: Mapping[str, Any], as_json: bool) -> None:
    """One thing, a line for each of its fields, or as JSON."""
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(map(len, found), default=0)
    for name, value in found.items():
        typer.echo(f"{name:<{width}}  {value if isinstance(value, str) else json.dumps(value)}")


def shown_time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"


def parsed_json(text: str, option: str) -> Any:
    """What an option holds. Raises ``CommandError``."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandError(f"{option} is not valid JSON: {error}") from error


def shown_bytes(size: int) -> str:
    for unit, name in ((1000**4, "TB"), (1000**3, "GB"), (1000**2, "MB"), (1000, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"
