"""``troll check``: what the service would say of data and grader, without a service."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import yaml

from service.cli.failure import CommandError
from service.files import check as checking
from service.graders.schemas import Grader, GraderError, parse_grader


class Method(StrEnum):
    SUPERVISED = "supervised"
    REINFORCEMENT = "reinforcement"


File = typer.Option(exists=True, dir_okay=False, readable=True)


def check(
    training: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Training rows, JSONL.")],
    validation: Annotated[Path | None, File] = None,
    method: Annotated[
        Method | None, typer.Option(help="What the rows are for. Without it: what the first row looks like.")
    ] = None,
    grader: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, readable=True, help="A grader, or a job's file, as YAML or JSON."),
    ] = None,
) -> None:
    """Check the files of a job as the service would: all bad lines at once, and fields that the grader misses."""
    if grader and method is Method.SUPERVISED:
        raise CommandError("Supervised jobs have no grader: leave out --grader, or choose --method reinforcement.")
    kind = method.value if method else "reinforcement" if grader else checking.method_of(training)
    findings = checking.check(training, validation, read_grader(grader) if grader else None, method=kind)
    for warning in findings.warnings:
        typer.secho(f"Warning: {warning}", fg="yellow", err=True)
    if not findings.usable:
        raise CommandError("\n".join(findings.errors))
    typer.echo(f"The files can be trained on ({kind}).")


def read_grader(path: Path) -> Grader:
    """The grader in ``path``, which may be a whole job's file. Raises ``CommandError``."""
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not valid YAML: {error}") from error
    where = "grader"
    if isinstance(raw, dict) and isinstance(raw.get("method"), dict):
        raw, where = (raw["method"].get("reinforcement") or {}).get("grader"), "method.reinforcement.grader"
    try:
        return parse_grader(raw, where)
    except GraderError as error:
        raise CommandError(f"{path}: {error.message} ({error.param})") from error
