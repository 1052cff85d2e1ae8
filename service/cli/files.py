"""``troll files``: what has been uploaded, and the files of results."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connection import AsJSON, StackFolder, connect
from service.cli.output import show_object, show_table, shown_bytes, shown_time

if TYPE_CHECKING:
    from openai import OpenAI

LARGE_BYTES = 64 * 1000**2
"""From this size on a file is uploaded in parts, of this size each."""

commands = typer.Typer(no_args_is_help=True, help="Files of rows, and of results.")


def send(client: "OpenAI", path: Path) -> str:
    """Upload a file for training, a large one in parts. Returns its id."""
    if path.stat().st_size <= LARGE_BYTES:
        return client.files.create(file=path, purpose="fine-tune").id
    upload = client.uploads.create(
        bytes=path.stat().st_size, filename=path.name, mime_type="text/jsonl", purpose="fine-tune"
    )
    try:
        with path.open("rb") as file:
            parts = [
                client.uploads.parts.create(upload.id, data=data).id
                for data in iter(lambda: file.read(LARGE_BYTES), b"")
            ]
        done = client.uploads.complete(upload.id, part_ids=parts)
    except BaseException:
        client.uploads.cancel(upload.id)
        raise
    assert done.file is not None
    return done.file.id


@commands.command("upload")
def upload(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Rows, as JSONL.")],
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Upload a file and print its id. A large one goes in parts."""
    client = connect(data_dir)
    id = send(client, path)
    typer.echo(json.dumps(client.files.retrieve(id).to_dict()) if as_json else id)


@commands.command("list")
def list_files(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Show at most this many, newest first.")] = 100,
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Show files, newest first."""
    files = connect(data_dir).files.list(limit=limit).data
    if as_json:
        typer.echo(json.dumps([file.to_dict() for file in files]))
        return
    show_table(
        ("file", "name", "purpose", "size", "created"),
        [
            (each.id, each.filename, each.purpose, shown_bytes(each.bytes), shown_time(each.created_at))
            for each in files
        ],
    )


@commands.command("show")
def show(file_id: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Show one file."""
    show_object(connect(data_dir).files.retrieve(file_id).to_dict(), as_json)


@commands.command("content")
def content(
    file_id: str,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: standard output.")] = None,
    data_dir: StackFolder = None,
) -> None:
    """Fetch what is in a file: rows, or a job's results as CSV."""
    answer = connect(data_dir).files.content(file_id).content
    if output is None:
        sys.stdout.buffer.write(answer)
    else:
        output.write_bytes(answer)


@commands.command("delete")
def delete(file_id: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Delete a file. Jobs that were made of it keep their rows until they end."""
    show_object(connect(data_dir).files.delete(file_id).to_dict(), as_json)
