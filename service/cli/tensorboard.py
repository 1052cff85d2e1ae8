"""``troll tensorboard``: what jobs measured, as files that TensorBoard shows."""

from pathlib import Path
from typing import Annotated

import httpx2
import typer

from service.cli.connection import StackFolder, connect


def tensorboard(
    jobs: Annotated[list[str], typer.Argument(help="Jobs' ids; finished or at work.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder, with one beneath it for each job.")] = Path(
        "runs"
    ),
    data_dir: StackFolder = None,
) -> None:
    """Fetch jobs' files for TensorBoard: 'tensorboard --logdir runs' shows them. Run again, it fetches what is new."""
    client = connect(data_dir)
    for job in jobs:
        answer = client.get(f"/fine_tuning/jobs/{job}/tensorboard", cast_to=httpx2.Response)
        folder = output / job
        folder.mkdir(parents=True, exist_ok=True)
        name = Path(answer.headers["content-disposition"].split('"')[1]).name
        (folder / name).write_bytes(answer.content)
        for earlier in folder.glob("events.out.tfevents.*"):
            if earlier.name != name:
                earlier.unlink()
        typer.echo(str(folder / name))
