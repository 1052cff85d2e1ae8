"""Tables on the terminal, and the same without borders or cuts for pipes."""

import sys
from collections.abc import Iterable, Sequence

import typer
from rich.console import Console
from rich.table import Column, Table


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


def shown_bytes(size: int) -> str:
    for unit, name in ((1000**4, "TB"), (1000**3, "GB"), (1000**2, "MB"), (1000, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"
