"""``troll models`` and ``troll pull``."""

import json
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime
from http.client import HTTPResponse
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from service.cli.connection import AsJSON, StackFolder, connect
from service.cli.failure import CommandError
from service.cli.output import show_table

if TYPE_CHECKING:
    from openai import OpenAI

TIMEOUT_SECONDS = 60.0

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


def pull(
    model: Annotated[str, typer.Argument(help="A model's id, as 'troll models list' shows it.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="New folder. Default: named after the model.")
    ] = None,
    data_dir: StackFolder = None,
) -> None:
    """Download a model's weights into a folder that transformers' from_pretrained loads."""
    target = output or Path(model.replace("/", "-").replace(":", "-"))
    download(connect(data_dir), model, target)
    typer.echo(str(target))


def download(client: "OpenAI", model: str, target: Path) -> None:
    """Put the model's files into the new folder ``target``, whole or not at all. Raises ``CommandError``."""
    if target.exists():
        raise CommandError(f"{target} exists already. Name another folder with -o.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with _open(client, model) as answer:
            _unpack(answer, partial, model)
        partial.chmod(0o755)
        partial.rename(target)
    except (OSError, tarfile.TarError) as error:
        raise CommandError(f"Downloading {model} failed: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _open(client: "OpenAI", model: str) -> HTTPResponse:
    # The official client would hold all of the answer in memory.
    url = f"{str(client.base_url).rstrip('/')}/models/{urllib.parse.quote(model, safe=':')}/archive"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {client.api_key}"})
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        raise CommandError(f"{_message(error)} (HTTP {error.code})") from error
    return answer


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)


class _Counted:
    """Counts what is read, because a tar that ends early between two files looks whole."""

    def __init__(self, source: HTTPResponse) -> None:
        self.source, self.count = source, 0

    def read(self, size: int = -1) -> bytes:
        data = self.source.read(size)
        self.count += len(data)
        return data


def _unpack(answer: HTTPResponse, folder: Path, model: str) -> None:
    counted = _Counted(answer)
    with tarfile.open(fileobj=_as_file(counted), mode="r|") as archive:
        for member in archive:
            source = archive.extractfile(member) if member.isreg() else None
            if source is None or PurePosixPath(member.name).name != member.name or member.name in ("", ".", ".."):
                raise CommandError(f"The archive of {model} holds '{member.name}', which is not a plain file name.")
            with (folder / member.name).open("xb") as file:
                shutil.copyfileobj(source, file, 1024 * 1024)
    while counted.read(64 * 1024):
        pass
    expected = answer.headers.get("content-length")
    if expected is not None and counted.count != int(expected):
        raise CommandError(f"The download of {model} ended after {counted.count} of {expected} bytes. Try again.")


def _as_file(source: _Counted) -> BinaryIO:
    return source  # type: ignore[return-value]  # tarfile's stream mode only reads
